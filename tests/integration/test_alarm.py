"""A paid video that is still only at fal when the deadline nears is told of, once."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from tests.harness.clock import FakeClock
from tests.harness.jobs import (
    LEASE,
    NOW,
    REQUEST_ID,
    insert_job,
    lead_job,
    make_job,
    move_job,
    read_job,
)
from tests.harness.stages import build_completion
from worker.fal.options import RequestOptions
from worker.jobs import table
from worker.jobs.checks import Check, check_slice
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Move
from worker.jobs.walks import next_slice
from worker.stages import sweep as stage
from worker.stages.sweep import choose_deadline, sweep_jobs

DEADLINE = timedelta(hours=1)
SECOND = timedelta(seconds=1)
REASON = "store_unavailable: no space left on device"
UNARCHIVED = [JobState.COMPLETED, JobState.ARCHIVING]


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, dict[str, object]]]:
    """The error lines of the sweep: event and fields."""
    lines: list[tuple[str, dict[str, object]]] = []

    class Log:
        def error(self, event: str, **fields: object) -> None:
            lines.append((event, fields))

    monkeypatch.setattr(stage, "log", Log())
    return lines


def sweep(db, now, deadline=DEADLINE):
    return sweep_jobs(db=db, lease=LEASE, archive_deadline=deadline, clock=FakeClock(now))


def postpone(db, job, due_at=NOW + LEASE):
    with db.transaction() as connection:
        move = Move(NOW, due_at, columns={"blocked_reason": REASON})
        moved = table.apply_event(connection, job, JobEvent.ARCHIVE_POSTPONED, move)
    assert moved is not None
    return moved


def list_late(db, now):
    with db.reading() as connection:
        part = next_slice(connection, None)
        assert part is not None
        found = check_slice(connection, part, now)
        return [one for one in found if one.check is Check.LATE_ARCHIVE]


@pytest.mark.both_databases
@pytest.mark.parametrize("state", UNARCHIVED)
def test_job_not_archived_at_the_deadline_goes_first_and_is_told_of(db, told, state):
    job = make_job(db, state, priority=-7)
    sweep(db, NOW + DEADLINE)
    after = read_job(db, job.id)
    assert (after.archive_alarmed_at, after.priority) == (NOW + DEADLINE, -7)
    urgent = lead_job(db, insert_job(db, priority=100), JobEvent.RESULT_ARRIVED)
    assert urgent is not None
    with db.transaction() as connection:
        now = NOW + DEADLINE + LEASE
        assert table.list_due(connection, now, DEADLINE, 2) == [job.id, urgent.id]
    line = {"job_id": str(job.id), "age_seconds": 3600, "blocked_reason": None}
    assert told == [("archive_deadline_near", line)]


def test_alarm_says_what_the_job_waited_for(db, told):
    job = postpone(db, make_job(db, JobState.ARCHIVING))
    sweep(db, NOW + DEADLINE)
    ((_, fields),) = told
    assert fields["blocked_reason"] == REASON
    assert read_job(db, job.id).blocked_reason is None, "the sweep lets it be claimed again"


@pytest.mark.parametrize("state", UNARCHIVED)
def test_job_before_the_deadline_is_not_told_of(db, told, state):
    job = make_job(db, state)
    sweep(db, NOW + DEADLINE - SECOND)
    assert (read_job(db, job.id).archive_alarmed_at, told) == (None, [])


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.FAILED])
def test_job_that_waits_for_something_else_is_not_told_of(db, told, state):
    job = make_job(db, state)
    sweep(db, NOW + 9 * DEADLINE)
    assert (read_job(db, job.id).archive_alarmed_at, told) == (None, [])


@pytest.mark.both_databases
def test_alarm_is_raised_once_in_a_jobs_life(db, told):
    job = make_job(db, JobState.COMPLETED)
    for late in range(3):
        sweep(db, NOW + DEADLINE + late * 2 * LEASE)
    assert len(told) == 1
    assert read_job(db, job.id).archive_alarmed_at == NOW + DEADLINE


@pytest.mark.both_databases
def test_alarm_is_kept_as_a_fact_after_archiving_and_listed_no_more(db, told):
    job = make_job(db, JobState.COMPLETED)
    now = NOW + DEADLINE
    sweep(db, now)
    (found,) = list_late(db, now)
    assert (found.job_id, found.detail) == (
        job.id,
        "completed, and its video is late: nothing holds it up",
    )
    claimed = move_job(db, read_job(db, job.id), JobEvent.ARCHIVE_CLAIMED, now=now)
    assert len(list_late(db, now)) == 1
    archived = move_job(db, claimed, JobEvent.ARCHIVE_RECORDED, now=now)
    assert archived.archive_alarmed_at == now
    assert list_late(db, now) == []


def submit_with_options(bench, **options):
    """A job whose request was told so, completed at NOW."""
    job = bench.make_submitted(options=options)
    (attempt,) = bench.attempts(job)
    bench.reconciler._record(job, attempt, build_completion(REQUEST_ID))
    return bench.read(job)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("expiration", "late_after"),
    [
        (3600, timedelta(minutes=45)),
        (7200, DEADLINE),
    ],
)
def test_file_that_fal_deletes_sooner_is_told_of_sooner(bench, told, expiration, late_after):
    job = submit_with_options(bench, object_expiration=expiration)
    assert job.state is JobState.COMPLETED
    sweep(bench.db, NOW + late_after - SECOND)
    assert told == []
    sweep(bench.db, NOW + late_after + LEASE)
    assert len(told) == 1


def test_options_that_this_release_cannot_read_do_not_stop_the_sweep(bench, told):
    submit_with_options(bench, object_expiration=3600)
    with bench.db.transaction() as connection:
        connection.execute(text('UPDATE attempts SET options = \'{"object_expiration": "soon"}\''))
    sweep(bench.db, NOW + timedelta(minutes=50))
    assert told == []
    sweep(bench.db, NOW + DEADLINE + LEASE)
    assert len(told) == 1


def test_choose_deadline_is_never_later_than_the_setting():
    for hours in range(1, 48):
        options = RequestOptions(object_expiration=timedelta(hours=hours))
        expected = min(DEADLINE, timedelta(hours=hours) * 0.75)
        assert choose_deadline(DEADLINE, options) == expected
