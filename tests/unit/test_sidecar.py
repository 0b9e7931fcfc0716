"""A sidecar is the same bytes for the same job, and reads back as what was written."""

import base64
import json
from dataclasses import replace
from datetime import timedelta, timezone
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.jobs import ENDPOINT, NOW, build_result
from worker.fal.model import complete_input
from worker.ground.errors import InvalidResultError, InvalidSidecarError
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Job
from worker.media.facts import StreamFacts, VideoFacts
from worker.media.sidecar import Sidecar, VideoRecord, describe_file, parse_sidecar
from worker.media.unpack import is_unpacked, make_marker
from worker.stages.archive import (
    build_sidecar,
    list_markers,
    mark_input,
    restore_input,
)

FACTS = VideoFacts(
    container="mov,mp4,m4a,3gp,3g2,mj2",
    media_type="video/mp4",
    codec="h264",
    width=128,
    height=96,
    rotation=0,
    fps=24000 / 1001,
    frames=60,
    duration=timedelta(seconds=2.5025),
    streams=(StreamFacts("video", "h264"), StreamFacts("data", None)),
    is_whole=True,
)
VIDEO = VideoRecord(**describe_file("2026/11/23/job.mp4", b"video").model_dump(), media=FACTS)
JOB_ID = UUID("018f0000-0000-7000-8000-000000000001")
INPUT: dict[str, Any] = {
    "prompt": "Ein Schwenk über \N{WATER WAVE}",
    "video_url": "https://example.com/a.mp4?sig=a%2Fb&Expires=1",
    "seed": 7,
    "fps": 24.0,
}
DATA_URI = "data:video/mp4;base64," + base64.b64encode(b"clip").decode()
MARKER = make_marker(DATA_URI, sha256(b"clip").hexdigest(), 4)


def build_job(**columns: Any) -> Job:
    blank: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    return Job(
        **{
            **blank,
            "id": JOB_ID,
            "fence": 1,
            "priority": 0,
            "state": JobState.ARCHIVING,
            "tenant": "acme",
            "labels": {"order": "17"},
            "endpoint": ENDPOINT,
            "input": INPUT,
            "options": {"priority": "low"},
            "fal_request_id": "request-2",
            "result": build_result(),
            "enqueued_at": NOW,
            "submitted_at": NOW + timedelta(seconds=1),
            "completed_at": NOW + timedelta(minutes=2),
            **columns,
        }
    )


def build_attempt(number: int, **columns: Any) -> Attempt:
    blank: dict[str, Any] = dict.fromkeys(Attempt.__dataclass_fields__)
    return Attempt(
        **{
            **blank,
            "id": UUID(int=number),
            "job_id": JOB_ID,
            "number": number,
            "token_hash": "hash-of-a-secret-token",
            "endpoint": ENDPOINT,
            "input": INPUT,
            "options": {"priority": "low", "store_io": True},
            "started_at": NOW,
            **columns,
        },
    )


ATTEMPTS = [
    build_attempt(
        1,
        outcome="unknown",
        fal_request_id="request-1",
        extra_charge_at=NOW + timedelta(hours=2),
        options={"priority": "low"},
    ),
    build_attempt(
        2,
        outcome="accepted",
        ending="ok",
        fal_request_id="request-2",
        ended_at=NOW + timedelta(seconds=1),
    ),
]


def make_sidecar(job: Job | None = None, **files: Any) -> Sidecar:
    return build_sidecar(job or build_job(), ATTEMPTS, VIDEO, **files)


def list_wrong(content: bytes) -> dict[str, str]:
    with pytest.raises(InvalidSidecarError) as caught:
        parse_sidecar(content)
    return {one.field: str(one) for one in caught.value.violations}


def list_named(content: bytes) -> set[str]:
    """The outermost fields that are wrong, if any."""
    try:
        parse_sidecar(content)
    except InvalidSidecarError as error:
        return {one.field.partition(".")[0] for one in error.violations}
    return set()


def change(**fields: object) -> bytes:
    return json.dumps({**json.loads(make_sidecar().to_bytes()), **fields}).encode()


# ------------------------------------------------------------------ what is written


def test_sidecar_says_all_that_the_video_came_of() -> None:
    poster = describe_file("2026/11/23/job.jpg", b"poster")

    told = json.loads(make_sidecar(poster=poster).to_bytes())

    assert told == {
        "recipe": 1,
        "archive_warnings": [],
        "software": told["software"],
        "job_id": str(JOB_ID),
        "tenant": "acme",
        "labels": {"order": "17"},
        "endpoint": ENDPOINT,
        "request_id": "request-2",
        "input": INPUT,
        "options": {"priority": "low", "store_io": True},
        "result": build_result(),
        "seed": 7,
        "attempts": [
            {
                "number": 1,
                "started_at": "2026-11-23T12:00:00Z",
                "ended_at": None,
                "outcome": "unknown",
                "ending": None,
                "request_id": "request-1",
                "extra_charge_at": "2026-11-23T14:00:00Z",
            },
            {
                "number": 2,
                "started_at": "2026-11-23T12:00:00Z",
                "ended_at": "2026-11-23T12:00:01Z",
                "outcome": "accepted",
                "ending": "ok",
                "request_id": "request-2",
                "extra_charge_at": None,
            },
        ],
        "times": {
            "enqueued_at": "2026-11-23T12:00:00Z",
            "submitted_at": "2026-11-23T12:00:01Z",
            "completed_at": "2026-11-23T12:02:00Z",
        },
        "video": {
            "name": "2026/11/23/job.mp4",
            "bytes": 5,
            "sha256": sha256(b"video").hexdigest(),
            "media": {
                "container": "mov,mp4,m4a,3gp,3g2,mj2",
                "media_type": "video/mp4",
                "codec": "h264",
                "width": 128,
                "height": 96,
                "rotation": 0,
                "fps": 24000 / 1001,
                "frames": 60,
                "duration": 2.5025,
                "streams": [
                    {"kind": "video", "codec": "h264"},
                    {"kind": "data", "codec": None},
                ],
                "is_whole": True,
            },
        },
        "poster": {
            "name": "2026/11/23/job.jpg",
            "bytes": 6,
            "sha256": sha256(b"poster").hexdigest(),
        },
    }
    assert told["software"].startswith("extend-video ")


def test_sidecar_is_sorted_indented_text_that_keeps_every_letter() -> None:
    content = make_sidecar().to_bytes()

    told = json.loads(content)
    assert list(told) == sorted(told)
    assert content.endswith(b"}\n")
    assert b'\n  "input": {\n    "fps": 24.0,' in content
    assert "über \N{WATER WAVE}".encode() in content


def test_sidecar_keeps_signed_links_and_no_secret_of_ours() -> None:
    content = make_sidecar().to_bytes()

    assert INPUT["video_url"].encode() in content
    assert b"token" not in content


def test_order_of_fields_and_offset_of_times_change_no_byte() -> None:
    east = timezone(timedelta(hours=2))
    turned = build_job(
        input=dict(reversed(INPUT.items())),
        enqueued_at=NOW.astimezone(east),
        labels={"order": "17"},
    )
    attempts = [replace(one, input=dict(reversed(INPUT.items()))) for one in ATTEMPTS]

    again = build_sidecar(turned, attempts, VIDEO)

    assert again.to_bytes() == make_sidecar().to_bytes()


def test_job_whose_attempt_is_not_known_gives_its_own_input() -> None:
    sidecar = make_sidecar(build_job(fal_request_id=None))

    assert (sidecar.input, sidecar.options) == (INPUT, {"priority": "low"})


def test_job_without_result_has_no_sidecar() -> None:
    with pytest.raises(InvalidResultError):
        make_sidecar(build_job(result=None))


# ------------------------------------------------------------------ data URIs


def test_content_of_data_uris_is_replaced_by_what_it_is() -> None:
    given = {**INPUT, "video_url": DATA_URI}
    result = build_result(DATA_URI)
    attempts = [build_attempt(2, fal_request_id="request-2", input=given)]

    sidecar = build_sidecar(build_job(input=given, result=result), attempts, VIDEO)

    assert sidecar.input["video_url"] == MARKER
    told = sidecar.result["video"]
    assert isinstance(told, dict)
    assert told["url"] == make_marker(DATA_URI, VIDEO.sha256, VIDEO.bytes)
    assert told["num_frames"] == 144
    assert is_unpacked(MARKER)


def test_marked_input_is_restored_from_the_same_content_only() -> None:
    marked = mark_input({**INPUT, "video_url": DATA_URI})
    other = DATA_URI.replace("base64,", "base64,AAAA")

    assert list_markers(marked, ()) == ["video_url"]
    assert list_markers(marked, ("video_url",)) == []
    assert restore_input(marked, {"video_url": DATA_URI}) == {**INPUT, "video_url": DATA_URI}
    assert restore_input(marked, {"video_url": other}) == marked
    assert restore_input(marked, INPUT) == marked


# ------------------------------------------------------------------ what is read


def test_each_fault_of_a_sidecar_is_named_with_its_reason() -> None:
    for content, field, reason in [
        (b"\xff\xfe{}", "sidecar", "JSON object in UTF-8"),
        (b"<html>", "sidecar", "6 bytes that are not"),
        (b"[" * 100_000, "sidecar", "JSON object in UTF-8"),
        (b"[1]", "sidecar", "a JSON object"),
        (b'{"recipe": 2}', "recipe", "recipe=2: 1, the version that this software reads"),
        (change(job_id="x"), "job_id", 'job_id="x": a UUID'),
        (change(labels={"a": 1}), "labels", "an object of texts"),
        (change(seed="x"), "seed", 'seed="x": a valid integer'),
        (change(input=[]), "input", "a JSON object"),
        (change(attempts=[{}]), "attempts", "a list of attempts"),
        (change(times={}), "times.enqueued_at", "required: a time with its offset"),
        (change(video={"name": "x"}), "video.sha256", "required: 64 hexadecimal digits"),
        (change(video={"name": "x", "media": {}}), "video.media.frames", "required"),
        (change(poster={"name": "x", "bytes": 1, "sha256": "AB"}), "poster.sha256", "64 hex"),
    ]:
        assert reason in list_wrong(content)[field]
    assert list(list_wrong(change(seed="x", job_id="x"))) == ["job_id", "seed"]


def test_fields_of_a_later_software_are_passed_over() -> None:
    assert parse_sidecar(change(weather="fine")) == make_sidecar()


TEXTS = st.text(max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)
TIMES = st.timedeltas(timedelta(0), timedelta(days=10_000)).map(lambda since: NOW + since)
FILES = st.builds(describe_file, TEXTS, st.binary(max_size=20))


@given(OBJECTS, OBJECTS, OBJECTS, st.dictionaries(TEXTS, TEXTS, max_size=3), TIMES, FILES)
def test_sidecar_reads_back_as_it_was_written(
    given_input, options, result, labels, time, file
) -> None:
    sidecar = make_sidecar().model_copy(
        update={
            "input": given_input,
            "options": options,
            "result": result,
            "labels": labels,
            "times": make_sidecar().times.model_copy(update={"completed_at": time}),
            "poster": file,
        }
    )

    content = sidecar.to_bytes()

    again = parse_sidecar(content)
    assert again == sidecar
    assert again.to_bytes() == content
    assert json.loads(content)["input"] == given_input


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_in_words(content) -> None:
    assert list_wrong(content)


@given(st.sampled_from(sorted(json.loads(make_sidecar().to_bytes()))), JSON)
def test_any_value_of_a_field_is_read_or_named(field, value) -> None:
    assert list_named(change(**{field: value})) <= {field}


def test_complete_input_of_a_wish_survives_the_sidecar() -> None:
    """24.0 stays 24.0: the listing at fal is searched for exactly this input."""
    fields = complete_input({"prompt": "p", "video_url": "https://example.com/a.mp4"}).to_json()
    attempts = [build_attempt(2, fal_request_id="request-2", input=fields)]
    sidecar = build_sidecar(build_job(), attempts, VIDEO)

    again = parse_sidecar(sidecar.to_bytes()).input

    assert json.dumps(again, sort_keys=True) == json.dumps(fields, sort_keys=True)
