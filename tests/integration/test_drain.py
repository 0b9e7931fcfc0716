"""What a worker that must end does with the rows it holds, on both databases."""

import pytest

from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, make_job, read_job
from worker.ground.errors import ClaimLostError
from worker.jobs.states import Doorbell, JobState, Step
from worker.stages.lease import Heartbeat
from worker.stages.sweep import end_leases, return_downloads, sweep_jobs

pytestmark = pytest.mark.both_databases


@pytest.fixture
def clock():
    return FakeClock()


def test_downloads_of_the_worker_are_claimable_at_once(db, clock):
    job = make_job(db, JobState.ARCHIVING)

    assert return_downloads(str(job.claimed_by), db=db, clock=clock) == [
        Doorbell(Step.ARCHIVE, job.id)
    ]

    returned = read_job(db, job.id)
    assert (returned.state, returned.due_at) == (JobState.COMPLETED, clock())
    assert returned.claimed_by is returned.blocked_reason is None


def test_holder_of_a_returned_download_loses_it_at_its_next_look(db, clock):
    job = make_job(db, JobState.ARCHIVING)
    with Heartbeat(job, db=db, lease=LEASE, clock=clock) as heartbeat:
        heartbeat.check()
        return_downloads(str(job.claimed_by), db=db, clock=clock)
        with pytest.raises(ClaimLostError):
            heartbeat.check()


def test_submission_is_not_returned_with_the_downloads(db, clock):
    job = make_job(db, JobState.SUBMITTING)
    assert return_downloads(str(job.claimed_by), db=db, clock=clock) == []
    assert read_job(db, job.id) == job


def test_submission_whose_lease_is_ended_becomes_unknown_with_the_next_sweep(db, clock):
    job = make_job(db, JobState.SUBMITTING)
    assert sweep_jobs(db=db, lease=LEASE, clock=clock).rows == 0

    assert end_leases(str(job.claimed_by), db=db, clock=clock) == [job.id]

    assert sweep_jobs(db=db, lease=LEASE, clock=clock).rows == 1
    assert read_job(db, job.id).state is JobState.SUBMISSION_UNKNOWN


@pytest.mark.parametrize("state", [JobState.SUBMITTING, JobState.ARCHIVING])
def test_rows_of_other_workers_are_left_alone(db, clock, state):
    job = make_job(db, state)
    assert return_downloads("another:1", db=db, clock=clock) == []
    assert end_leases("another:1", db=db, clock=clock) == []
    assert read_job(db, job.id) == job
