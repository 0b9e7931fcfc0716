"""Sweeps: a pile of them is one, and each worker stands in for those that do not come."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from tests.harness.together import call_together
from worker import tasks
from worker.broker.app import create_app
from worker.ground.db import Database
from worker.ground.settings import Settings, load_settings
from worker.jobs import observed
from worker.lifecycle.liveness import PERIODS, Standby
from worker.runtime import Runtime

PERIOD = timedelta(seconds=10)


@pytest.fixture
def settings(tmp_path, database_url, redis_url) -> Settings:
    return load_settings(
        database_url=database_url,
        broker_url=redis_url,
        archive_url=f"file:{tmp_path / 'archive'}",
        sweep_seconds=PERIOD.total_seconds(),
    )


@pytest.fixture
def make_runtime(settings) -> Iterator[Callable[[], Runtime]]:
    """As of another process."""
    made: list[Runtime] = []

    def make() -> Runtime:
        made.append(Runtime(settings))
        return made[-1]

    yield make
    for one in made:
        one.db.close()
        one.dispatcher.close()


def shift(db: Database, seconds: float) -> None:
    """Let the last sweep be so much longer ago, for the database's clock stays."""
    with db.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE observed_time SET noted_at = noted_at - {seconds}")


@pytest.mark.both_databases
def test_of_sweeps_that_come_together_one_sweeps(make_runtime) -> None:
    runtimes = [make_runtime() for _ in range(6)]
    shift(runtimes[0].db, 60)
    swept = call_together(*(lambda one=one: one.publish_overdue(PERIOD / 2) for one in runtimes))
    assert sorted(swept, key=str) == [(0, 0), *[None] * 5]


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("ago", "is_swept"), [(4, False), (6, True), (-3600, True)], ids=["early", "due", "clock-back"]
)
def test_sweep_passes_over_what_was_swept_within_half_a_period(make_runtime, ago, is_swept) -> None:
    runtime = make_runtime()
    runtime.publish_overdue()
    shift(runtime.db, ago)
    assert (runtime.publish_overdue(PERIOD / 2) is not None) is is_swept


def test_sweep_by_hand_does_not_wait_for_its_turn(make_runtime) -> None:
    runtime = make_runtime()
    assert runtime.publish_overdue() is not None
    assert runtime.publish_overdue() is not None


def test_beat_sends_no_time_of_its_own_clock(settings) -> None:
    """A worker whose clock is 6 s ahead would find each sweep expired on its way."""
    [entry] = create_app(settings).conf.beat_schedule.values()
    assert "expires" not in entry.get("options", {})


@pytest.mark.both_databases
def test_worker_stands_in_for_sweeps_that_do_not_come_and_only_one_does(
    settings, make_runtime, monkeypatch
) -> None:
    swept: list[object] = []
    monkeypatch.setattr(tasks, "refresh_measures", lambda **given: swept.append(given))
    first, second = Standby(settings), Standby(settings)
    runtime = make_runtime()
    runtime.publish_overdue()

    assert not first.sweep_if_missing()
    shift(runtime.db, PERIODS * PERIOD.total_seconds() + 1)
    did = call_together(first.sweep_if_missing, second.sweep_if_missing)

    assert sorted(did) == [False, True]
    assert len(swept) == 1
    assert not first.sweep_if_missing()
    with runtime.db.reading() as connection:
        assert not observed.is_pass_missing(connection, PERIOD)
