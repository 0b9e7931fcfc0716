"""A result is good if it names a video; what is odd beside that is named, and not compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from emulator.spoiling import merge
from worker.fal.completion import Completion, parse_webhook
from worker.fal.model import list_oddities, parse_output
from worker.ground.errors import InvalidResultError
from worker.stages.endings import find_failure, needs_fetching

CASES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "media/cases/result_cases.json").read_bytes()
)
VIDEO: dict[str, Any] = {
    "url": "https://v3.fal.media/files/a/b.mp4",
    "content_type": "video/mp4",
    "file_name": "b.mp4",
    "file_size": 20_000,
    "width": 1248,
    "height": 704,
    "fps": 25.0,
    "duration": 6.44,
    "num_frames": 161,
}
RESULT: dict[str, Any] = {"video": VIDEO, "seed": 7, "prompt": "a fox"}
# What `archive_warnings` names of each case; the other cases are odd in nothing, or in a header.
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
    "error-object": ["error"],
    "payload-error-object": ["payload_error"],
    "gateway-number": ["gateway_request_id"],
}


def deliver(case: dict[str, Any]) -> Completion:
    payload = merge(RESULT, case.get("merge", {}))
    payload = {name: payload[name] for name in payload if name not in case.get("delete", [])}
    message = {"request_id": "r", "gateway_request_id": "r", "status": "OK", "payload": payload}
    return parse_webhook(json.dumps(message | case.get("webhook", {})).encode())


@pytest.mark.parametrize("name", CASES)
def test_paid_result_is_good_and_what_is_odd_about_it_is_named(name) -> None:
    completion = deliver(CASES[name])

    assert not needs_fetching(completion)
    assert find_failure(completion) is None
    assert parse_output(completion.payload).video.url == VIDEO["url"]
    told = (*completion.oddities, *list_oddities(completion.payload))
    assert [one.field for one in told] == NAMED.get(name, [])
    assert all(str(one.field) in one.message for one in told)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("width", 1280.5),
        ("file_size", 12.5),
        ("duration", "5s"),
        ("file_name", 17),
        ("content_type", []),
        ("num_frames", {}),
        ("height", 10**400),
    ],
)
def test_side_field_that_cannot_be_read_counts_as_not_stated(path, value) -> None:
    payload: Any = merge(RESULT, {"video": {path: value}})

    assert getattr(parse_output(payload).video, path) is None
    (told,) = list_oddities(payload)
    assert (told.code, told.field) == ("odd_field", f"video.{path}")


def test_all_side_fields_may_be_odd_at_once() -> None:
    names = [name for name in VIDEO if name != "url"]
    odd: Any = {"video": {"url": "data:,", **{name: {} for name in names}}, "prompt": 1}

    assert parse_output(odd).video.url == "data:,"
    fields = [one.field for one in list_oddities(odd)]
    assert sorted(map(str, fields)) == sorted(["prompt", "seed", *(f"video.{n}" for n in names)])


@pytest.mark.parametrize("video", [None, [], "https://a.test/b", {}, {"url": None}, {"url": 5}])
def test_without_url_there_is_no_result(video) -> None:
    with pytest.raises(InvalidResultError):
        parse_output({**RESULT, "video": video})


def test_error_beside_a_video_does_not_lose_it() -> None:
    completion = deliver({"webhook": {"status": "ERROR", "error": {"code": 1}}})

    assert completion.error == '{"code": 1}'
    assert find_failure(completion) is None


def test_error_without_video_fails_by_its_own_words() -> None:
    completion = deliver({"webhook": {"status": "ERROR", "error": {"code": 1}, "payload": {}}})
    failure = find_failure(completion)

    assert failure is not None
    assert failure.message == '{"code": 1}'
