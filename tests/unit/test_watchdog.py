"""A worker that consumes nothing is ended; one that is busy, idle, or without broker never is."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest

from worker.lifecycle.watchdog import LONGEST_STEP, Look, Watchdog

LIMIT = 100.0
IDLE = Look(at=0, looped_at=0, received_at=0, waiting=0, is_busy=False, is_full=False)


def judge(looks: Iterable[Look]) -> list[str]:
    """What a watchdog says to these looks."""
    watchdog = Watchdog(timedelta(seconds=LIMIT))
    return [reason for look in looks if (reason := watchdog.judge(look)) is not None]


def look_every_ten_seconds(until: float, **columns: object) -> list[Look]:
    """`looped_at` and `received_at` follow the time unless they are given."""
    return [
        replace(IDLE, **({"at": at, "looped_at": at, "received_at": 0.0} | columns))  # type: ignore[arg-type]  # any field
        for at in range(0, int(until) + 1, 10)
    ]


def test_loop_that_stands_still_is_told_once_the_limit_is_over() -> None:
    assert judge(look_every_ten_seconds(LIMIT, looped_at=0.0)) == []
    (reason,) = judge(look_every_ten_seconds(LIMIT + 10, looped_at=0.0))
    assert "stood still for 110 s" in reason


def test_worker_that_takes_no_waiting_message_is_told_once_the_limit_is_over() -> None:
    assert judge(look_every_ten_seconds(LIMIT, waiting=3)) == []
    (reason,) = judge(look_every_ten_seconds(LIMIT + 10, waiting=3))
    assert reason == "3 messages wait, and it has taken none for 110 s"


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({}, id="idle"),
        pytest.param({"waiting": 9, "is_busy": True, "is_full": True}, id="busy"),
        pytest.param({"waiting": None, "looped_at": 0.0}, id="no broker"),
        pytest.param({"waiting": 0, "received_at": 0.0}, id="nothing to take"),
    ],
)
def test_healthy_worker_is_left_alone_for_a_day(columns) -> None:
    assert judge(look_every_ten_seconds(86_400, **columns)) == []


def test_worker_that_takes_one_message_now_and_then_is_left_alone() -> None:
    """Others take most of them."""
    looks = look_every_ten_seconds(3600, waiting=5)
    assert judge(replace(one, received_at=one.at // 90 * 90) for one in looks) == []


def test_worker_whose_steps_stop_its_loop_is_left_alone_as_long_as_any_step_may_take() -> None:
    """A pool that works in the main thread."""
    longest = LONGEST_STEP.total_seconds()
    busy = {"looped_at": 0.0, "is_busy": True, "is_full": True, "waiting": 4}
    assert judge(look_every_ten_seconds(longest, **busy)) == []
    assert len(judge(look_every_ten_seconds(longest + 10, **busy))) == 1


def test_outage_of_the_broker_gives_the_loop_its_whole_time_again() -> None:
    away = look_every_ten_seconds(500, looped_at=0.0, waiting=None)
    back = [replace(one, at=one.at + 510) for one in look_every_ten_seconds(LIMIT, looped_at=0.0)]
    assert judge([*away, *back]) == []
    assert len(judge([*away, *back, replace(back[-1], at=620.0)])) == 1


def test_queue_that_was_empty_for_a_moment_begins_the_time_again() -> None:
    looks = look_every_ten_seconds(190, waiting=1)
    looks[9] = replace(looks[9], waiting=0)
    assert judge(looks) == []
