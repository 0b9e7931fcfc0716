"""What a status reply tells of a request's progress, and how much of its logs is kept."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.fal.requests import (
    MAX_ENTRIES,
    MAX_LOG_BYTES,
    MAX_MESSAGE,
    Progress,
    bound_logs,
    list_new,
    read_progress,
)

ENTRY = {"timestamp": "2026-11-23T12:00:00Z", "level": "INFO", "message": "25%", "source": "USER"}
KEPT = {name: ENTRY[name] for name in ("timestamp", "level", "message")}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
NAMES = ("status", "queue_position", "metrics", "logs")


def test_read_progress_takes_what_is_told_and_leaves_the_rest() -> None:
    bodies: list[tuple[Any, Progress | None]] = [
        ({"status": "IN_QUEUE", "queue_position": 7, "logs": None}, Progress("IN_QUEUE", 7)),
        ({"status": "IN_PROGRESS", "logs": [ENTRY]}, Progress("IN_PROGRESS", logs=(KEPT,))),
        (
            {"status": "COMPLETED", "metrics": {"inference_time": 2}},
            Progress("COMPLETED", inference_seconds=2.0),
        ),
        ({"status": "COMPLETED", "metrics": None, "logs": {"a": 1}}, Progress("COMPLETED")),
        ({"status": "COMPLETED", "metrics": {"inference_time": -1}}, Progress("COMPLETED")),
        *(
            ({"status": "IN_QUEUE", "queue_position": odd}, Progress("IN_QUEUE"))
            for odd in (-1, 2**31, True, "3")
        ),
        ({"status": 7}, None),
    ]
    for body, expected in bodies:
        assert read_progress(body) == expected


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_read_progress_never_raises_and_gives_what_a_row_can_hold(body) -> None:
    progress = read_progress(body)
    if progress is not None:
        assert progress.queue_position is None or 0 <= progress.queue_position < 2**31
        assert json.loads(json.dumps(progress.logs)) == (progress.logs and [*progress.logs])


@given(st.lists(st.fixed_dictionaries({"message": st.text(max_size=3000)}), max_size=300))
def test_bound_logs_keeps_the_newest_within_both_bounds(entries) -> None:
    kept = bound_logs(entries)
    assert len(kept) <= MAX_ENTRIES
    assert sum(len(json.dumps(one, ensure_ascii=False).encode()) for one in kept) <= MAX_LOG_BYTES
    newest = [entry["message"][:MAX_MESSAGE] for entry in entries[len(entries) - len(kept) :]]
    assert [one["message"] for one in kept] == newest


def test_bound_logs_counts_entries() -> None:
    for count in (199, 200, 201, 5000):
        logs = bound_logs({"message": str(number)} for number in range(count))
        kept = range(max(count - 200, 0), count)
        assert [one["message"] for one in logs] == [str(number) for number in kept]


def test_bound_logs_counts_bytes_not_characters() -> None:
    logs = bound_logs([{"message": "\N{CLAPPER BOARD}" * 2000}] * 200)
    assert len(logs) == MAX_LOG_BYTES // (2000 * 4 + 20)


def test_bound_logs_takes_entries_of_any_shape() -> None:
    logs = bound_logs(["text", None, {"a": 1}, {"message": ["a"]}])
    assert [one["message"] for one in logs] == ["text", "null", "null", '["a"]']


def test_list_new_gives_what_came_after() -> None:
    a, b, c = ({"message": letter} for letter in "abc")
    for logs, before, expected in [
        ([a, b], [], [a, b]),
        ([a, b], [a], [b]),
        ([a, a], [a], []),
        ([b, c], [a], [b, c]),
        ([], [a], []),
    ]:
        assert list_new(logs, before) == expected
