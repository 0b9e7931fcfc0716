"""The status stream: what it tells, when, and how it ends."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.emulator.processes import SHORT, Emulator

Event = dict[str, Any]


def name_path(request_id: str) -> str:
    return f"{SHORT}/requests/{request_id}/status/stream"


def read_lines(emulator: Emulator, request_id: str, **query: str) -> Iterator[str]:
    """The lines of the stream that are not empty, as they come."""
    path = name_path(request_id)
    with emulator.client.stream("GET", path, params=query, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-fal-request-id"] == request_id
        yield from filter(None, response.iter_lines())


def read_events(emulator: Emulator, request_id: str, **query: str) -> list[Event]:
    lines = read_lines(emulator, request_id, **query)
    return [parse(line) for line in lines if not line.startswith(":")]


def parse(line: str) -> Event:
    assert line.startswith("data: "), line
    return dict(json.loads(line.removeprefix("data: ")))


def test_stream_tells_each_change_and_log_entry_once_and_ends_after_completion(unhurried):
    request_id = unhurried.submit()
    lines = list(read_lines(unhurried, request_id, logs="1"))
    events = [parse(line) for line in lines if line != ": keep-alive"]
    states = [one["status"] for one in events]
    told = [entry for one in events for entry in one["logs"]]
    assert states == sorted(states, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert set(states) == {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
    assert states.count("COMPLETED") == 1
    assert events[0]["queue_position"] == 0
    assert events[-1]["metrics"]["inference_time"] >= 0.3
    assert all(one["request_id"] == request_id for one in events)
    assert told == unhurried.get_status(request_id, logs="1")["logs"]
    assert any(one["logs"] for one in events if one["status"] == "IN_PROGRESS")
    assert ": keep-alive" in lines


def test_stream_tells_of_positions_in_the_queue_and_no_logs_unasked(busy):
    ahead, behind = busy.submit(), busy.submit()
    events = map(parse, read_lines(busy, behind, logs="0"))
    told = [next(events)]
    busy.cancel(ahead)
    told.append(next(events))
    busy.cancel(behind)
    assert [one["queue_position"] for one in told] == [1, 0]
    told += events
    assert told[-1]["error_type"] == "client_cancelled"
    assert {one["logs"] for one in told} == {None}


def test_stream_of_a_completed_request_is_one_event(quick):
    request_id = quick.submit()
    quick.wait_for_status(request_id, "COMPLETED")
    [event] = read_events(quick, request_id, logs="1")
    assert event == quick.get_status(request_id, logs="1")


def test_stream_of_unknown_request_is_not_found(quick):
    response = quick.client.get(name_path("none"))
    assert (response.status_code, response.json()) == (404, {"status": "NOT_FOUND"})


def test_stream_without_key_is_refused(quick):
    url = f"{quick.url}{name_path(quick.submit())}"
    assert httpx.get(url, trust_env=False).status_code == 401


def test_stream_whose_reader_goes_harms_nobody(busy):
    request_id = busy.submit()
    assert parse(next(read_lines(busy, request_id)))["status"] == "IN_QUEUE"
    assert busy.get_status(request_id)["status"] == "IN_QUEUE"


def test_cut_stream_breaks_off_after_so_many_events(faulty):
    request_id = faulty.submit()
    faulty.wait_for_status(request_id, "COMPLETED")
    faulty.order({"point": "stream", "kind": "cut", "events": 1, "times": 1})
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        read_events(faulty, request_id)
    assert len(read_events(faulty, request_id)) == 1


@pytest.mark.parametrize(("kind", "code"), [("status", 500), ("ingress", 502)])
def test_fault_comes_instead_of_the_stream(faulty, kind, code):
    request_id = faulty.submit({"prompt": "to be streamed"})
    faulty.order({"point": "stream", "kind": kind, "match": {"prompt": "to be streamed"}})
    assert faulty.client.get(name_path(request_id)).status_code == code
    other = faulty.submit()
    assert read_events(faulty, other)[-1]["status"] == "COMPLETED"
