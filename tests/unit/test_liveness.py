"""A worker's loop is observed; one that consumes nothing is ended, a busy or idle one is not."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.dispatch import Signal

from worker.broker.app import ARCHIVE, QUEUES
from worker.lifecycle import liveness
from worker.lifecycle.archive_probe import ArchiveProbe
from worker.lifecycle.liveness import LONGEST_STEP, Observation, Pulse, Standby, Watchdog


class BlockingConsumer:
    """One of a transport without event loop, such as gevent's workers have."""

    hub = None
    hostname = "w@h"
    turned = 0

    def perform_pending_operations(self) -> None:
        self.turned += 1


def test_turn_of_a_blocking_loop_is_noted_and_does_what_it_did(monkeypatch) -> None:
    monkeypatch.setattr(Pulse, "begin", lambda _: None)
    consumer = BlockingConsumer()
    step = Pulse(consumer)
    step.start(consumer)
    step.start(consumer)
    step.monitor.looped_at = 0.0
    consumer.perform_pending_operations()
    assert step.monitor.looped_at > 0
    assert consumer.turned == 1, "a second connection must not turn twice"


def test_turns_of_an_event_loop_are_noted_until_the_connection_ends(monkeypatch) -> None:
    monkeypatch.setattr(Pulse, "begin", lambda _: None)
    entries: list[SimpleNamespace] = []

    def call_repeatedly(seconds, call):
        entry = SimpleNamespace(seconds=seconds, call=call, cancelled=False)
        entry.cancel = lambda: setattr(entry, "cancelled", True)
        entries.append(entry)
        return entry

    timer = SimpleNamespace(call_repeatedly=call_repeatedly)
    consumer = SimpleNamespace(hub=object(), timer=timer, hostname="w@h")
    step = Pulse(consumer)
    step.start(consumer)
    (entry,) = entries
    step.monitor.looped_at = 0.0
    entry.call()
    assert step.monitor.looped_at > 0
    step.stop(consumer)
    assert entry.cancelled


@pytest.mark.parametrize(("queue", "fault"), [(QUEUES[ARCHIVE], "disk full"), ("other", None)])
def test_worker_that_archives_tries_its_archive_and_says_what_came_of_it(
    monkeypatch, queue, fault
) -> None:
    for name in ("task_received", "worker_shutting_down", "worker_shutdown"):
        monkeypatch.setattr(liveness, name, Signal())
    monkeypatch.setattr(liveness.Monitor, "run", lambda *_: None)
    monkeypatch.setattr(Standby, "run", lambda *_: None)
    monkeypatch.setattr(ArchiveProbe, "begin", lambda probe: setattr(probe, "fault", "disk full"))
    consumed = SimpleNamespace(queues=[SimpleNamespace(name=queue)])
    consumer: Any = SimpleNamespace(hostname="w@h", task_consumer=consumed)
    step = Pulse(consumer)
    step.begin()
    assert step.monitor.describe().archive_fault == fault


# ------------------------------------------------------------------ when a worker is wedged

LIMIT = 100.0
IDLE = Observation(at=0, looped_at=0, received_at=0, waiting=0, is_busy=False, is_full=False)


def judge(looks: Iterable[Observation]) -> list[str]:
    """What a watchdog says to these looks."""
    watchdog = Watchdog(timedelta(seconds=LIMIT))
    return [reason for look in looks if (reason := watchdog.judge(look)) is not None]


def look_every_ten_seconds(until: float, **columns: object) -> list[Observation]:
    """`looped_at` and `received_at` follow the time unless they are given."""
    return [
        replace(IDLE, **({"at": at, "looped_at": at, "received_at": 0.0} | columns))  # type: ignore[arg-type]  # any field
        for at in range(0, int(until) + 1, 10)
    ]


def test_loop_that_stands_still_is_told_once_the_limit_is_over() -> None:
    assert judge(look_every_ten_seconds(LIMIT, looped_at=0.0)) == []
    (reason,) = judge(look_every_ten_seconds(LIMIT + 10, looped_at=0.0))
    assert "has been blocked for 110 s" in reason


def test_worker_that_takes_no_waiting_message_is_told_once_the_limit_is_over() -> None:
    assert judge(look_every_ten_seconds(LIMIT, waiting=3)) == []
    (reason,) = judge(look_every_ten_seconds(LIMIT + 10, waiting=3))
    assert reason == "3 messages are waiting, and it has consumed none for 110 s"


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
