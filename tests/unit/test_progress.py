"""What a status reply tells of a request's progress, and how much of its logs is kept."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fal.progress import (
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


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"status": "IN_QUEUE", "queue_position": 0}, Progress("IN_QUEUE", 0)),
        ({"status": "IN_QUEUE", "queue_position": 7, "logs": None}, Progress("IN_QUEUE", 7)),
        ({"status": "IN_PROGRESS", "logs": []}, Progress("IN_PROGRESS", logs=())),
        ({"status": "IN_PROGRESS", "logs": [ENTRY]}, Progress("IN_PROGRESS", logs=(KEPT,))),
        (
            {"status": "COMPLETED", "metrics": {"inference_time": 2}},
            Progress("COMPLETED", inference_seconds=2.0),
        ),
        ({"status": "COMPLETED", "metrics": {}}, Progress("COMPLETED")),
        ({"status": "COMPLETED", "metrics": None, "logs": {"a": 1}}, Progress("COMPLETED")),
        ({"status": "IN_QUEUE", "queue_position": -1}, Progress("IN_QUEUE")),
        ({"status": "IN_QUEUE", "queue_position": 2**31}, Progress("IN_QUEUE")),
        ({"status": "IN_QUEUE", "queue_position": True}, Progress("IN_QUEUE")),
        ({"status": "IN_QUEUE", "queue_position": "3"}, Progress("IN_QUEUE")),
        ({"status": "COMPLETED", "metrics": {"inference_time": -1}}, Progress("COMPLETED")),
        ({"status": 7}, None),
        ({"detail": "Not found"}, None),
        ([], None),
        (None, None),
    ],
)
def test_read_progress_takes_what_is_told_and_leaves_the_rest(body, expected) -> None:
    assert read_progress(body) == expected


@given(st.dictionaries(st.sampled_from(NAMES), JSON) | JSON)
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


@pytest.mark.parametrize(("count", "kept"), [(199, 199), (200, 200), (201, 200), (5000, 200)])
def test_bound_logs_counts_entries(count, kept) -> None:
    logs = bound_logs({"message": str(number)} for number in range(count))
    assert [one["message"] for one in logs] == [str(one) for one in range(count - kept, count)]


def test_bound_logs_counts_bytes_not_characters() -> None:
    logs = bound_logs([{"message": "\N{CLAPPER BOARD}" * 2000}] * 200)
    assert len(logs) == MAX_LOG_BYTES // (2000 * 4 + 20)


@pytest.mark.parametrize(
    ("entry", "message"),
    [("text", "text"), (None, "null"), ({"a": 1}, "null"), ({"message": ["a"]}, '["a"]')],
)
def test_bound_logs_takes_entries_of_any_shape(entry, message) -> None:
    assert bound_logs([entry]) == ({"message": message},)


A, B, C = ({"message": letter} for letter in "abc")


@pytest.mark.parametrize(
    ("logs", "before", "expected"),
    [
        ([A, B], [], [A, B]),
        ([A, B], [A], [B]),
        ([A, B], [A, B], []),
        ([A, A], [A], []),
        ([B, C], [A], [B, C]),
        ([], [A], []),
    ],
)
def test_list_new_gives_what_came_after(logs, before, expected) -> None:
    assert list_new(logs, before) == expected
