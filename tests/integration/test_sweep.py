"""Rows that stand still are found, rung for once, and given back; the clock is moved."""

from contextlib import closing
from datetime import timedelta
from os import utime

import pytest

from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, NOW, WAYS, insert_job, lead_job, make_job, move_job, read_job
from tests.harness.together import call_together
from worker.db import Database
from worker.jobs import table
from worker.jobs.states import ENDED, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Move
from worker.media.store import PARTIAL_DIRECTORY, LocalStore
from worker.stages.sweep import PARTIAL_AGE, SWEPT_STATES, remove_partials, sweep_jobs

TICK = timedelta(microseconds=1)
DUE = NOW + LEASE
STEPS = {
    JobState.QUEUED: Step.SUBMIT,
    JobState.COMPLETED: Step.ARCHIVE,
    JobState.ARCHIVING: Step.ARCHIVE,
}


@pytest.fixture
def clock():
    """Stands where the harness's jobs are just due."""
    return FakeClock(DUE)


def sweep(db, clock, **options):
    return sweep_jobs(db=db, lease=LEASE, clock=clock, **options)


def list_reasons(db, job):
    with db.reading() as connection:
        return [event.reason for event in table.list_events(connection, job.id)]


@pytest.mark.parametrize("state", WAYS)
def test_sweep_jobs_before_their_time_touches_nothing(db, clock, state):
    job = make_job(db, state)
    clock.move(-TICK)
    assert sweep(db, clock) == []
    assert read_job(db, job.id) == job


def test_swept_states_are_those_with_a_step():
    assert set(SWEPT_STATES) == set(STEPS)


@pytest.mark.parametrize("state", STEPS)
def test_sweep_jobs_rings_for_what_is_due_and_pushes_it_on(db, clock, state):
    job = make_job(db, state)
    assert sweep(db, clock) == [Doorbell(STEPS[state], job.id)]
    assert read_job(db, job.id).due_at == DUE + LEASE
    assert sweep(db, clock) == []
    clock.move(LEASE)
    assert sweep(db, clock) == [Doorbell(STEPS[state], job.id)]


@pytest.mark.parametrize("state", sorted(set(WAYS) - set(STEPS)))
def test_sweep_jobs_leaves_other_states_alone(db, clock, state):
    job = make_job(db, state)
    clock.move(timedelta(days=30))
    assert sweep(db, clock) == []
    assert read_job(db, job.id) == job


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.COMPLETED])
def test_sweep_jobs_of_a_lost_message_writes_no_history(db, clock, state):
    job = make_job(db, state)
    reasons = list_reasons(db, job)
    sweep(db, clock)
    assert list_reasons(db, job) == reasons
    assert read_job(db, job.id).fence == job.fence


def test_sweep_jobs_gives_an_expired_claim_back(db, clock):
    job = make_job(db, JobState.ARCHIVING)
    sweep(db, clock)
    after = read_job(db, job.id)
    assert (after.state, after.claimed_by, after.fence) == (JobState.COMPLETED, None, job.fence)
    assert after.completed_at == job.completed_at
    with db.reading() as connection:
        event = table.list_events(connection, job.id)[-1]
    assert (event.reason, event.at) == ("archive_claim_expired", DUE)
    assert event.detail == f"{job.claimed_by} fell silent"


@pytest.mark.parametrize(
    "event",
    [JobEvent.ARCHIVE_RECORDED, JobEvent.ARCHIVE_POSTPONED, JobEvent.ARCHIVE_REFUSED],
)
@pytest.mark.parametrize("claimed_again", [False, True])
def test_sweep_jobs_leaves_a_zombie_nothing_to_write(db, clock, event, claimed_again):
    zombie = make_job(db, JobState.ARCHIVING)
    sweep(db, clock)
    if claimed_again:
        assert lead_job(db, zombie, JobEvent.ARCHIVE_CLAIMED, now=DUE)
    before = read_job(db, zombie.id)
    assert lead_job(db, zombie, event, now=DUE) is None
    with db.transaction() as connection:
        assert not table.extend_claim(connection, zombie, DUE + 9 * LEASE)
    assert read_job(db, zombie.id) == before


def test_sweep_jobs_releases_a_blocked_job_at_its_time(db, clock):
    claimed = make_job(db, JobState.SUBMITTING)
    move = Move(NOW, DUE, columns={"blocked_reason": "fal_http_403: User is locked"})
    with db.transaction() as connection:
        table.apply_event(connection, claimed, JobEvent.SUBMISSION_POSTPONED, move)
    assert lead_job(db, claimed, JobEvent.SUBMISSION_CLAIMED, now=DUE - TICK) is None
    assert sweep(db, clock) == [Doorbell(Step.SUBMIT, claimed.id)]
    after = read_job(db, claimed.id)
    assert (after.blocked_reason, after.due_at) == (None, DUE + LEASE)
    assert lead_job(db, after, JobEvent.SUBMISSION_CLAIMED, now=DUE)


def test_sweep_jobs_takes_batches_the_important_and_the_oldest_first(db, clock):
    old, older, oldest = (insert_job(db, now=NOW - age * LEASE) for age in (1, 2, 3))
    important = insert_job(db, priority=1)
    batches = [[bell.job_id for bell in sweep(db, clock, limit=2)] for _ in range(3)]
    assert [set(batch) for batch in batches] == [
        {important.id, oldest.id},
        {older.id, old.id},
        set(),
    ]


def test_sweep_jobs_of_all_states_rings_for_each_once(db, clock):
    jobs = {make_job_of_its_own(db, state).id: state for state in WAYS}
    rung = sweep(db, clock)
    assert sorted(jobs[bell.job_id] for bell in rung) == sorted(STEPS)
    assert all(bell.step is STEPS[jobs[bell.job_id]] for bell in rung)


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


def test_sweep_jobs_by_two_at_once_rings_for_each_once(db, clock):
    jobs = {insert_job(db).id for _ in range(60)}
    rung = call_together(*[lambda: sweep(db, clock, limit=40)] * 2)
    first, second = ([bell.job_id for bell in bells] for bells in rung)
    assert len(first) + len(second) == len({*first, *second})
    rest = sweep(db, clock)
    assert {*first, *second, *(bell.job_id for bell in rest)} == jobs


def test_sweep_jobs_passes_over_rows_that_another_sweep_holds(postgres_url, clock):
    with closing(Database(postgres_url)) as db:
        held, free = insert_job(db, priority=1), insert_job(db)
        with db.transaction() as connection:
            found = table.find_overdue(connection, SWEPT_STATES, clock(), 1)
            assert [job.id for job in found] == [held.id]
            assert [bell.job_id for bell in sweep(db, clock)] == [free.id]
        assert [bell.job_id for bell in sweep(db, clock)] == [held.id]


def test_sweep_jobs_against_a_claim_at_once_leaves_one_holder(db, clock):
    """A doorbell that comes late, and the sweep for the same row: whoever is first."""
    job = make_job(db, JobState.COMPLETED)
    claimed, rung = call_together(
        lambda: lead_job(db, job, JobEvent.ARCHIVE_CLAIMED, now=DUE),
        lambda: sweep(db, clock),
    )
    after = read_job(db, job.id)
    assert (after.state, after.fence) == (JobState.ARCHIVING, job.fence + 1)
    assert after.claimed_by == claimed.claimed_by
    assert after.due_at == DUE + LEASE
    assert len(rung) <= 1


def test_sweep_jobs_of_an_empty_table_gives_none(db, clock):
    assert sweep(db, clock) == []


def test_sweep_jobs_never_touches_an_ended_row(db, clock):
    clock.move(timedelta(days=365))
    job = make_job(db, JobState.ARCHIVED)
    assert job.state in ENDED
    assert sweep(db, clock) == []
    assert read_job(db, job.id) == job


def test_remove_partials_takes_only_those_older_than_any_download(tmp_path):
    partials = tmp_path / PARTIAL_DIRECTORY
    partials.mkdir()
    for name in ("old.part", "new.part"):
        (partials / name).touch()
    long_ago = (partials / "new.part").stat().st_mtime - PARTIAL_AGE.total_seconds() - 60
    utime(partials / "old.part", (long_ago, long_ago))
    assert remove_partials(LocalStore(tmp_path)) == 1
    assert [path.name for path in partials.iterdir()] == ["new.part"]
