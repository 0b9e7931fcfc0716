"""The scheduler ends when it is told to, also if what it was doing swallows the order."""

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import NoReturn

import pytest
from celery.beat import Scheduler, Service
from typing_extensions import override

from worker.app import create_app
from worker.settings import Settings

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
