"""The scheduler ends when it is told to, also if what it was doing swallows the order."""

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import structlog
from celery.beat import Scheduler, Service
from redis.exceptions import ReadOnlyError, ResponseError
from structlog.testing import capture_logs
from typing_extensions import override

from worker.broker import beat
from worker.broker import transport as broker
from worker.broker.app import create_app
from worker.broker.transport import Outage
from worker.ground.settings import Settings

MOST_TICKS = 3


class SwallowingScheduler(Scheduler):
    """Gets the signal in the middle of a tick, and loses what its handler raises."""

    ticks = 0
    number = signal.SIGTERM

    @override
    def tick(self, *args: object, **kwargs: object) -> float:
        SwallowingScheduler.ticks += 1
        if self.ticks > MOST_TICKS:
            raise KeyboardInterrupt
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), self.number)
        return 0


def end_as_celery_does(*_: object) -> NoReturn:
    raise SystemExit


@pytest.fixture(autouse=True)
def celery_handlers() -> Iterator[None]:
    """What `celery beat` has installed before it starts its service."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    kept = {number: signal.signal(number, end_as_celery_does) for number in numbers}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_beat_whose_tick_swallows_the_signal_ends_all_the_same(monkeypatch, number):
    monkeypatch.setattr(SwallowingScheduler, "ticks", 0)
    monkeypatch.setattr(SwallowingScheduler, "number", number)
    app = create_app(Settings(broker_url="redis://127.0.0.1:1/0", sweep_seconds=timedelta(hours=1)))
    Service(app, scheduler_cls=SwallowingScheduler).start()
    assert SwallowingScheduler.ticks == 1


def test_outage_is_said_once_and_each_failure_is_tried_on_a_new_connection(monkeypatch) -> None:
    outage, connections = Outage(), []
    monkeypatch.setattr(beat, "OUTAGE", outage)
    # one that no earlier test has bound to its own configuration
    monkeypatch.setattr(broker, "log", structlog.stdlib.get_logger())
    settings = Settings(broker_url="redis://127.0.0.1:1/0")
    scheduler = beat.Scheduler(create_app(settings), lazy=True)
    errors: list[Exception | None] = [ResponseError("MOVED 1 a:1"), ReadOnlyError("READONLY"), None]

    def publish(_entry: object, producer: object, **_: object) -> None:
        connections.append(scheduler.connection)
        if (error := errors[len(connections) - 1]) is not None:
            raise error

    monkeypatch.setattr(scheduler, "apply_async", publish)
    monkeypatch.setattr(scheduler, "_ensure_connected", lambda: None)
    entry: Any = SimpleNamespace(name="sweep")
    states = []
    with capture_logs() as lines:
        for _ in errors:
            scheduler.apply_entry(entry)
            states.append(outage.is_on)
    assert states == [True, True, False]
    assert len(set(map(id, connections))) == len(errors)
    said = [line["event"] for line in lines if line["log_level"] != "debug"]
    assert said == ["broker_unavailable", "broker_back"]
