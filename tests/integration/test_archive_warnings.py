"""A paid video that can be read is archived, and what is odd about it is told beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.spoiling import merge
from tests.harness.archives import set_columns
from tests.harness.archiving import (
    FRAMES,
    Archiver,
    archive_locally,
    make_completed,
    make_video,
    state_video,
)
from tests.harness.jobs import REQUEST_ID, build_result, make_job, read_job
from tests.harness.stages import Bench
from tests.harness.web import ScriptedServer, run_server, send_body
from worker.fal.completion import parse_webhook
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.sidecar import parse_sidecar

CASES_DIRECTORY = Path(__file__).parents[1] / "media" / "cases"
CASES: dict[str, dict[str, Any]] = json.loads((CASES_DIRECTORY / "result_cases.json").read_bytes())
VIDEO = make_video()
# The field that `archive_warnings` names; none for the cases that are odd in nothing.
NAMED = {
    "seed-null": ["seed"],
    "no-seed": ["seed"],
    "prompt-null": ["prompt"],
    "frames-float": ["video.num_frames"],
    "fps-text": ["video.fps"],
    "size-text": ["video.file_size"],
    "seed-big": ["seed"],
    "seed-text": ["seed"],
    "nan": ["video.fps", "video.duration"],
    "coding-aws": ["Content-Encoding"],
    "error-object": ["error"],
    "payload-error-object": ["payload_error"],
    "gateway-number": ["gateway_request_id"],
}


@pytest.fixture
def cdn() -> Iterator[ScriptedServer]:
    with run_server(send_body(VIDEO)) as server:
        yield server


@pytest.fixture
def root(tmp_path) -> Path:
    return Path(tmp_path) / "archive"


@pytest.fixture
def archive(db, root, cdn) -> Archiver:
    return archive_locally(db, root, cdn.place)


def list_fields(job: Job) -> list[str]:
    return [one["field"] for one in job.archive_warnings or []]


@pytest.mark.parametrize("name", CASES)
def test_odd_result_is_archived_verbatim_and_what_is_odd_is_named(
    bench: Bench, cdn, root, archive, name
) -> None:
    case = CASES[name]
    cdn.answer = send_body(
        VIDEO, **{k.replace("-", "_"): v for k, v in case.get("headers", {}).items()}
    )
    payload = merge(state_video(f"{cdn.url}/v.mp4"), case.get("merge", {}))
    payload = {key: payload[key] for key in payload if key not in case.get("delete", [])}
    message = {"request_id": REQUEST_ID, "status": "OK", "payload": payload}
    completion = parse_webhook(json.dumps(message | case.get("webhook", {})).encode())
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    bench.deliver(submission, completion)

    moved = archive(submission.job)

    assert moved is not None
    assert (moved.state, moved.result) == (JobState.ARCHIVED, payload)
    assert list_fields(moved) == NAMED.get(name, [])
    assert read_job(bench.db, moved.id).archive_warnings == moved.archive_warnings
    sidecar = parse_sidecar((root / f"{moved.id}.json").read_bytes())
    assert list(sidecar.archive_warnings) == (moved.archive_warnings or [])
    assert sidecar.seed == moved.input["seed"] == 7


def test_same_oddity_of_a_polled_result_is_named(bench: Bench, desk, cdn, archive) -> None:
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    desk.finish(merge(state_video(f"{cdn.url}/v.mp4"), {"seed": "a1b2"}))
    bench.reconcile(submission.job)

    moved = archive(submission.job)

    assert moved.archive_warnings == [
        {
            "code": "odd_field",
            "field": "seed",
            "stated": '"a1b2"',
            "message": 'seed cannot be read: "a1b2"',
        }
    ]


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"num_frames": 40}, "video.num_frames"),
        ({"width": 65}, "video.width"),
        ({"fps": 30.0}, "video.fps"),
        ({"duration": 9.0}, "video.duration"),
        ({"file_size": 17}, "video.file_size"),
    ],
)
def test_what_differs_from_what_fal_stated_is_a_warning(db, cdn, archive, stated, field) -> None:
    moved = archive(make_completed(db, f"{cdn.url}/v.mp4", **stated))

    assert moved.state is JobState.ARCHIVED
    (told,) = moved.archive_warnings
    assert (told["code"], told["field"]) == ("differs", field)
    assert told["message"] == f"{field}: stated {told['stated']}, found {told['found']}"
    assert len(cdn.asked) == 1


def test_video_without_oddity_has_no_warnings(db, cdn, archive) -> None:
    assert archive(make_completed(db, f"{cdn.url}/v.mp4")).archive_warnings is None


@pytest.mark.parametrize("name", ["late-audio.webm", "el-two.mp4", "trail.mp4", "nodur.webm"])
def test_odd_file_is_archived_byte_for_byte(db, root, cdn, archive, name) -> None:
    content = (CASES_DIRECTORY / name).read_bytes()
    cdn.answer = send_body(content)
    result = build_result(f"{cdn.url}/{name}")
    del result["video"]["num_frames"], result["video"]["content_type"]

    moved = archive(make_job(db, JobState.COMPLETED, result=result))

    assert moved.state is JobState.ARCHIVED
    assert (root / f"{moved.id}{Path(name).suffix}").read_bytes() == content
    codes = [one["code"] for one in moved.archive_warnings or []]
    assert codes == (["container"] if name == "trail.mp4" else [])


def test_damaged_file_is_unarchivable_with_its_proof(db, root, cdn, archive) -> None:
    content = (CASES_DIRECTORY / "base.mp4").read_bytes()
    third = len(content) // 3
    cdn.answer = send_body(content[:third] + bytes(third) + content[2 * third :])

    moved = archive(make_completed(db, f"{cdn.url}/v.mp4", file_size=None))

    assert (moved.state, moved.error_code) == (JobState.FAILED, "unarchivable")
    evidence = json.loads((root / "quarantine" / f"{moved.id}.json").read_bytes())["evidence"]
    assert evidence[0]["code"] == "decoder"
    assert evidence[0]["message"] in moved.error_message


@pytest.mark.parametrize("coding", ["gzip", "br", "aws-chunked, gzip"])
def test_compressed_video_stays_refused(db, cdn, archive, coding) -> None:
    cdn.answer = send_body(VIDEO, Content_Encoding=coding)

    assert archive(make_completed(db, f"{cdn.url}/v.mp4")).error_code == "media_refused"


def test_redrive_is_free_wherever_a_url_is_stored(bench: Bench, cdn, archive) -> None:
    """As left by a release that took an odd side field for no video."""
    result = merge(state_video(f"{cdn.url}/v.mp4"), {"seed": None, "video": {"fps": "25/1"}})
    job = make_job(bench.db, JobState.FAILED)
    set_columns(bench.db, job.id, result=result, error_code="invalid_result")

    assert bench.redrive(job).state is JobState.COMPLETED
    moved = archive(job)
    assert (moved.state, moved.archive_media["frames"]) == (JobState.ARCHIVED, FRAMES)
    assert list_fields(moved) == ["seed", "video.fps"]
