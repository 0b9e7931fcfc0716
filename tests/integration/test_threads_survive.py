"""Threads that others rely on end when their work does, and by no error before."""

import os
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace

import pytest
from typing_extensions import override

from tests.harness.clock import FakeClock
from tests.harness.jobs import make_job, read_job
from tests.harness.waiting import wait_until
from worker.ground.db import Database
from worker.jobs.states import JobState
from worker.lifecycle import shutdown
from worker.stages.lease import Heartbeat

SHORT = timedelta(seconds=0.06)


class BrokenDatabase(Database):
    """The first renewals raise what nobody has foreseen."""

    failures = 3

    @override
    def statement(self):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a mistake")
        return super().statement()


def test_heartbeat_survives_any_error(db, database_url):
    job, clock = make_job(db, JobState.SUBMITTING), FakeClock()
    clock.move(timedelta(seconds=1))
    with (
        closing(BrokenDatabase(database_url)) as broken,
        Heartbeat(job, db=broken, lease=SHORT, clock=clock),
    ):
        wait_until(lambda: read_job(db, job.id).due_at == clock() + SHORT)


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The exit codes with which this process would have ended."""
    codes: list[int] = []
    settings = SimpleNamespace(drain_seconds=timedelta())
    runtime = SimpleNamespace(worker="tester:1", db=None, settings=settings)
    monkeypatch.setattr(shutdown, "get_runtime", lambda: runtime)
    monkeypatch.setattr(shutdown, "RELEASE_TIME", timedelta())
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_worker_ends_in_time_whatever_cannot_be_given_back(ended, monkeypatch):
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(shutdown, "return_downloads", break_down)
    monkeypatch.setattr(shutdown, "end_leases", break_down)
    shutdown.drain()
    assert ended == [0]


def test_worker_ends_in_time_if_its_children_cannot_be_ended(ended, monkeypatch):
    def break_down() -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(shutdown, "active_children", break_down)
    with pytest.raises(RuntimeError):
        shutdown.drain()
    assert ended == [0]
