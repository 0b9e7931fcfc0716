"""A claim is its holder's while the holder lives; the clock is moved, the beats are real."""

from contextlib import closing
from datetime import timedelta
from threading import Event
from threading import enumerate as list_threads

import pytest
from sqlalchemy.exc import OperationalError
from typing_extensions import override

from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, make_job, move_job, read_job
from tests.harness.waiting import wait_until
from worker.ground.db import Database
from worker.ground.errors import ClaimLostError
from worker.jobs.states import JobEvent, JobState
from worker.stages.lease import Heartbeat
from worker.stages.sweep import sweep_jobs

# Beats come by real time, so the lease has to be short; what is written follows the clock.
SHORT = timedelta(seconds=0.06)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=[JobState.SUBMITTING, JobState.ARCHIVING])
def claimed(db, request):
    """A job in the hands of this worker; both paid and unpaid work is held so."""
    return make_job(db, request.param)


def take_over(db, job):
    """Whoever held the job was silent for its whole lease."""
    event = {
        JobState.SUBMITTING: JobEvent.SUBMISSION_CLAIM_EXPIRED,
        JobState.ARCHIVING: JobEvent.ARCHIVE_CLAIM_EXPIRED,
    }[job.state]
    return move_job(db, job, event)


def list_beats(job):
    return [thread for thread in list_threads() if thread.name == f"heartbeat {job.id}"]


@pytest.mark.both_databases
def test_heartbeat_renews_again_and_again_while_its_context_is_open(db, claimed, clock):
    with Heartbeat(claimed, db=db, lease=SHORT, clock=clock) as heartbeat:
        for _ in range(3):
            clock.move(LEASE)
            wait_until(lambda: read_job(db, claimed.id).due_at == clock() + SHORT)
            assert sweep_jobs(db=db, lease=LEASE, clock=clock).rows == 0
        heartbeat.check()
    assert list_beats(claimed) == []


def test_heartbeat_does_not_beat_before_a_third_of_the_lease(db, claimed, clock):
    clock.move(LEASE / 2)
    with Heartbeat(claimed, db=db, lease=LEASE, clock=clock) as heartbeat:
        assert len(list_beats(claimed)) == 1
        heartbeat.check()
    assert read_job(db, claimed.id) == claimed
    assert list_beats(claimed) == []


def test_heartbeat_ends_with_its_context_and_the_lease_runs_out(db, claimed, clock):
    with Heartbeat(claimed, db=db, lease=SHORT, clock=clock):
        clock.move(LEASE / 2)
        wait_until(lambda: read_job(db, claimed.id).due_at == clock() + SHORT)
    clock.move(SHORT)
    assert sweep_jobs(db=db, lease=LEASE, clock=clock).rows == 1
    assert read_job(db, claimed.id).claimed_by is None


def test_heartbeat_ends_with_its_context_also_by_an_exception(db, claimed, clock):
    with (
        pytest.raises(ZeroDivisionError),
        Heartbeat(claimed, db=db, lease=SHORT, clock=clock),
    ):
        _ = 1 / 0
    assert list_beats(claimed) == []


@pytest.mark.both_databases
def test_heartbeat_of_a_lost_claim_tells_at_the_next_check(db, claimed, clock):
    with Heartbeat(claimed, db=db, lease=SHORT, clock=clock) as heartbeat:
        after = take_over(db, claimed)
        wait_until(lambda: list_beats(claimed) == [])
        with pytest.raises(ClaimLostError, match=str(claimed.id)):
            heartbeat.check()
        with pytest.raises(ClaimLostError):
            heartbeat.renew()
    assert read_job(db, claimed.id) == after


@pytest.mark.both_databases
def test_heartbeat_does_not_renew_what_another_worker_has_claimed_since(db, clock):
    """Same state again, but of a later fence: the zombie must not keep the new holder's claim."""
    zombie = make_job(db, JobState.ARCHIVING)
    holder = move_job(db, take_over(db, zombie), JobEvent.ARCHIVE_CLAIMED)
    heartbeat = Heartbeat(zombie, db=db, lease=LEASE, clock=clock)
    clock.move(LEASE / 2)
    with pytest.raises(ClaimLostError):
        heartbeat.renew()
    with pytest.raises(ClaimLostError):
        heartbeat.check()
    assert read_job(db, zombie.id) == holder


class FlakyDatabase(Database):
    """Away for the first renewals, then back."""

    def __init__(self, url, failures):
        super().__init__(url)
        self.failures = failures
        self.failed = Event()

    @override
    def statement(self):
        if self.failures:
            self.failures -= 1
            self.failed.set()
            raise OperationalError("SELECT 1", {}, Exception("the database is away"))
        return super().statement()


@pytest.mark.both_databases
def test_heartbeat_outlives_an_outage_of_the_database(db, database_url, claimed, clock):
    with (
        closing(FlakyDatabase(database_url, failures=3)) as flaky,
        Heartbeat(claimed, db=flaky, lease=SHORT, clock=clock) as heartbeat,
    ):
        assert flaky.failed.wait(10)
        heartbeat.check()
        clock.move(LEASE / 2)
        wait_until(lambda: read_job(db, claimed.id).due_at == clock() + SHORT)
