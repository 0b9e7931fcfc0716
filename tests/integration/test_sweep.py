"""Rows that stand still are found, rung for once, and given back; the clock is moved."""

from contextlib import closing
from datetime import timedelta

import pytest
from sqlalchemy import text

from tests.harness.clock import FakeClock
from tests.harness.jobs import (
    LEASE,
    NOW,
    WAYS,
    insert_job,
    lead_job,
    make_job,
    move_job,
    read_attempts,
    read_job,
)
from tests.harness.together import call_together
from worker.ground.db import Database
from worker.jobs import attempts, table
from worker.jobs.states import ENDED, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Move, Outcome, Settlement
from worker.media.local_store import PARTIAL_DIRECTORY, LocalStore
from worker.stages.sweep import Swept, remove_partials, sweep_jobs

DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
DUE = NOW + LEASE
STEPS = {
    JobState.SUBMITTING: Step.RECONCILE,
    JobState.SUBMISSION_UNKNOWN: Step.RECONCILE,
    JobState.SUBMITTED: Step.RECONCILE,
    JobState.COMPLETED: Step.ARCHIVE,
    JobState.ARCHIVING: Step.ARCHIVE,
}


@pytest.fixture
def clock():
    """Stands where the harness's jobs are just due."""
    return FakeClock(DUE)


def sweep(db, clock, **options):
    """Whom to ring for; each was a row of the batch."""
    swept = sweep_jobs(db=db, lease=LEASE, clock=clock, **options)
    assert swept.rows >= len(swept.doorbells)
    return swept.doorbells


def make_due(db, now=NOW, **columns):
    """A job that waits for its archive step, without an attempt."""
    return move_job(db, insert_job(db, now=now, **columns), JobEvent.RESULT_ARRIVED, now=now)


def list_reasons(db, job):
    with db.reading() as connection:
        return [event.reason for event in table.list_events(connection, job.id)]


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.ARCHIVING])
def test_sweep_jobs_before_their_time_touches_nothing(db, clock, state):
    job = make_job(db, state)
    clock.move(-TICK)
    assert sweep(db, clock) == []
    assert read_job(db, job.id) == job


@pytest.mark.both_databases
@pytest.mark.parametrize("state", STEPS)
def test_sweep_jobs_rings_for_what_is_due_and_pushes_it_on(db, clock, state):
    job = make_job(db, state)
    assert sweep(db, clock) == [Doorbell(STEPS[state], job.id)]
    assert read_job(db, job.id).due_at == DUE + LEASE
    assert sweep(db, clock) == []
    clock.move(LEASE)
    assert sweep(db, clock) == [Doorbell(STEPS[state], job.id)]


def test_sweep_jobs_of_a_lost_message_writes_no_history(db, clock):
    job = make_job(db, JobState.SUBMITTED)
    reasons = list_reasons(db, job)
    sweep(db, clock)
    assert list_reasons(db, job) == reasons
    assert read_job(db, job.id).fence == job.fence


@pytest.mark.both_databases
def test_sweep_jobs_gives_an_expired_download_back(db, clock):
    job = make_job(db, JobState.ARCHIVING)
    sweep(db, clock)
    after = read_job(db, job.id)
    assert (after.state, after.claimed_by, after.fence) == (JobState.COMPLETED, None, job.fence)
    assert after.completed_at == job.completed_at
    with db.reading() as connection:
        event = table.list_events(connection, job.id)[-1]
    assert (event.reason, event.at) == ("archive_claim_expired", DUE)
    assert event.detail == f"{job.claimed_by} fell silent"


@pytest.mark.both_databases
def test_sweep_jobs_gives_an_expired_submission_to_nobody(db, clock):
    """Its POST may have left: whoever claims it again may pay again."""
    job = make_job(db, JobState.SUBMITTING)
    sweep(db, clock)
    after = read_job(db, job.id)
    assert (after.state, after.claimed_by) == (JobState.SUBMISSION_UNKNOWN, None)
    assert (after.fence, after.due_at) == (job.fence, DUE + LEASE)
    assert f"{job.claimed_by} fell silent" in str(after.blocked_reason)
    with db.reading() as connection:
        event = table.list_events(connection, job.id)[-1]
    assert (event.reason, event.at) == ("submission_claim_expired", DUE)
    assert event.detail == f"{job.claimed_by} fell silent"
    (attempt,) = read_attempts(db, job.id)
    assert (attempt.outcome, attempt.ended_at) == (Outcome.UNKNOWN, DUE)
    assert lead_job(db, after, JobEvent.SUBMISSION_CLAIMED, now=DUE + 9 * LEASE) is None


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.SUBMISSION_UNKNOWN])
def test_sweep_jobs_of_what_waits_for_fal_keeps_its_reason(db, clock, state):
    job = make_job(db, state)
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET blocked_reason = 'held: by a human'"))
    assert sweep(db, clock) == [Doorbell(Step.RECONCILE, job.id)]
    assert read_job(db, job.id).blocked_reason == "held: by a human"


@pytest.mark.both_databases
@pytest.mark.parametrize("claimed_again", [False, True])
def test_sweep_jobs_leaves_a_zombie_nothing_to_write(db, clock, claimed_again):
    zombie = make_job(db, JobState.ARCHIVING)
    sweep(db, clock)
    if claimed_again:
        assert lead_job(db, zombie, JobEvent.ARCHIVE_CLAIMED, now=DUE)
    before = read_job(db, zombie.id)
    for event in (JobEvent.ARCHIVE_RECORDED, JobEvent.ARCHIVE_POSTPONED, JobEvent.ARCHIVE_REFUSED):
        assert lead_job(db, zombie, event, now=DUE) is None
    with db.transaction() as connection:
        assert not table.extend_claim(connection, zombie, DUE + 9 * LEASE)
    assert read_job(db, zombie.id) == before


@pytest.mark.both_databases
def test_sweep_jobs_releases_a_blocked_job_at_its_time(db, clock):
    claimed = make_job(db, JobState.ARCHIVING)
    move = Move(NOW, DUE, columns={"blocked_by": "retry", "blocked_reason": "store_unavailable"})
    with db.transaction() as connection:
        table.apply_event(connection, claimed, JobEvent.ARCHIVE_POSTPONED, move)
    assert lead_job(db, claimed, JobEvent.ARCHIVE_CLAIMED, now=DUE - TICK) is None
    assert sweep(db, clock) == [Doorbell(Step.ARCHIVE, claimed.id)]
    after = read_job(db, claimed.id)
    assert (after.blocked_by, after.blocked_reason, after.due_at) == (None, None, DUE + LEASE)
    assert lead_job(db, after, JobEvent.ARCHIVE_CLAIMED, now=DUE)


@pytest.mark.both_databases
def test_sweep_jobs_takes_batches_the_important_and_the_oldest_first(db, clock):
    old, older, oldest = (make_due(db, now=NOW - age * LEASE) for age in (1, 2, 3))
    important = make_due(db, priority=1)
    batches = [[bell.job_id for bell in sweep(db, clock, limit=2)] for _ in range(3)]
    assert [set(batch) for batch in batches] == [
        {important.id, oldest.id},
        {older.id, old.id},
        set(),
    ]


@pytest.mark.both_databases
def test_sweep_jobs_of_all_states_rings_for_each_once(db, clock):
    jobs = {make_job_of_its_own(db, state).id: state for state in WAYS}
    published = sweep(db, clock)
    assert sorted(jobs[bell.job_id] for bell in published) == sorted(STEPS)
    assert set(STEPS) == set(JobState) - ENDED - {JobState.QUEUED}
    assert len(published) == len(set(published))
    assert all(bell.step is STEPS[jobs[bell.job_id]] for bell in published)


def make_job_of_its_own(db, state):
    """The harness gives every first attempt the same token, so let each job be its only one."""
    job = insert_job(db)
    for event in WAYS[state]:
        if event is JobEvent.SUBMISSION_CLAIMED:
            job = claim_without_attempt(db, job)
        else:
            job = move_job(db, job, event)
    return job


def claim_without_attempt(db, job):
    with db.transaction() as connection:
        claim = Claim("tester:1", NOW, DUE)
        claimed = table.claim_job(connection, job.id, JobEvent.SUBMISSION_CLAIMED, claim)
    assert claimed is not None
    return claimed


@pytest.mark.both_databases
def test_sweep_jobs_by_two_at_once_rings_for_each_once(db, clock):
    jobs = {make_due(db).id for _ in range(60)}
    published = call_together(*[lambda: sweep(db, clock, limit=40)] * 2)
    first, second = ([bell.job_id for bell in bells] for bells in published)
    assert len(first) + len(second) == len({*first, *second})
    rest = sweep(db, clock)
    assert {*first, *second, *(bell.job_id for bell in rest)} == jobs


def test_sweep_jobs_passes_over_rows_that_another_sweep_holds(postgres_url, clock):
    with closing(Database(postgres_url)) as db:
        held, free = make_due(db, priority=1), make_due(db)
        with db.transaction() as connection:
            found = table.list_due(connection, clock(), DAY, 1)
            assert [job.id for job in table.lock_due(connection, found, clock(), DAY)] == [held.id]
            assert [bell.job_id for bell in sweep(db, clock)] == [free.id]
        assert [bell.job_id for bell in sweep(db, clock)] == [held.id]


@pytest.mark.both_databases
def test_sweep_jobs_against_a_claim_at_once_leaves_one_holder(db, clock):
    """A doorbell that comes late, and the sweep for the same row: whoever is first."""
    job = make_job(db, JobState.COMPLETED)
    claimed, published = call_together(
        lambda: lead_job(db, job, JobEvent.ARCHIVE_CLAIMED, now=DUE),
        lambda: sweep(db, clock),
    )
    after = read_job(db, job.id)
    assert (after.state, after.fence) == (JobState.ARCHIVING, job.fence + 1)
    assert after.claimed_by == claimed.claimed_by
    assert after.due_at == DUE + LEASE
    assert len(published) <= 1


# requests to be cancelled


@pytest.fixture
def paid(db):
    """An ended job with a request of fal's that is not its own any more."""
    job = make_job(db, JobState.ARCHIVED)
    with db.transaction() as connection:
        (attempt,) = attempts.list_attempts(connection, job.id)
        known = Settlement(Outcome.ACCEPTED, NOW, 200, "the-request")
        attempts.record_outcome(connection, attempt.id, known)
        attempts.order_cancel(connection, attempt.id, DUE)
    return job


@pytest.mark.both_databases
def test_sweep_jobs_rings_for_a_due_cancellation_until_it_is_answered(db, clock, paid):
    clock.move(-TICK)
    assert sweep(db, clock) == []
    clock.move(TICK)
    assert sweep_jobs(db=db, lease=LEASE, clock=clock) == Swept(1, [Doorbell(Step.CANCEL, paid.id)])
    assert sweep(db, clock) == []
    clock.move(LEASE)
    assert sweep(db, clock) == [Doorbell(Step.CANCEL, paid.id)]
    with db.transaction() as connection:
        (attempt,) = attempts.list_attempts(connection, paid.id)
        attempts.record_cancel(connection, attempt.id, "accepted", None)
    clock.move(9 * LEASE)
    assert sweep(db, clock) == []
    assert read_job(db, paid.id) == paid


@pytest.mark.both_databases
def test_sweep_jobs_by_two_at_once_rings_for_a_cancellation_once(db, clock, paid):
    first, second = call_together(*[lambda: sweep(db, clock)] * 2)
    assert [*first, *second] == [Doorbell(Step.CANCEL, paid.id)]


def test_remove_partials_takes_only_those_that_nobody_writes(tmp_path):
    store = LocalStore(tmp_path)
    with store.spool.begin("living") as file:
        (tmp_path / PARTIAL_DIRECTORY / "left.part").touch()
        assert remove_partials(store) == 1
        assert list((tmp_path / PARTIAL_DIRECTORY).iterdir()) == [file.path]
