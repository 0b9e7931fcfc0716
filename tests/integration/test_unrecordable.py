"""A result that the database refuses: its reason is in the row, and it is never bought again."""

import pytest
from sqlalchemy.exc import IntegrityError

from tests.harness.refusing import REASON, refusing_results
from tests.harness.stages import POLL, UNKNOWN, Bench, build_completion
from worker.jobs.checks import Check, check_slice
from worker.jobs.states import Doorbell, JobState, Step
from worker.jobs.values import Job
from worker.jobs.walks import next_slice
from worker.ops.timeline import explain_wait
from worker.stages.complete import note_unrecordable


def poll(bench: Bench, job: Job) -> Job | None:
    (attempt,) = bench.attempts(job)
    return bench.reconciler._record(bench.read(job), attempt, build_completion())


def list_unrecorded(bench: Bench) -> list[str]:
    with bench.db.reading() as connection:
        part = next_slice(connection, None)
        assert part is not None
        found = check_slice(connection, part, bench.clock())
        return [one.detail for one in found if one.check is Check.UNRECORDED_RESULT]


@pytest.mark.both_databases
def test_polled_result_that_is_refused_leaves_its_reason_until_it_is_taken(bench):
    job = bench.make_submitted()
    with refusing_results(bench.db):
        assert poll(bench, job) is None
        after = bench.read(job)
        assert after.state is JobState.SUBMITTED
        assert after.due_at is not None
        assert after.due_at >= bench.clock() + POLL / 2
        assert after.blocked_reason is not None
        assert after.blocked_reason.startswith("unrecordable: IntegrityError: ")
        assert REASON in after.blocked_reason
        wait = explain_wait(after, bench.attempts(job), None, bench.clock())
        assert after.blocked_reason in str(wait)
        bench.clock.move(2 * POLL)
        bench.sweep()
        assert list_unrecorded(bench) == [after.blocked_reason], "no sweep clears it"
    moved = poll(bench, job)
    assert moved is not None
    assert (moved.state, moved.blocked_reason) == (JobState.COMPLETED, None)
    assert list_unrecorded(bench) == []


@pytest.mark.both_databases
def test_request_of_a_refused_delivery_is_adopted_and_never_counts_as_lost(bench, desk):
    submission = bench.begin(bench.insert())
    bench.lose(submission)
    with refusing_results(bench.db):
        with pytest.raises(IntegrityError, match=REASON) as caught:
            bench.deliver(submission, build_completion())
        doorbell = note_unrecordable(
            submission.token, build_completion(), caught.value, db=bench.db, clock=bench.clock
        )
    job = bench.read(submission.job)
    assert doorbell == Doorbell(Step.RECONCILE, job.id)
    assert (job.state, job.due_at) == (JobState.SUBMITTED, bench.clock())
    assert job.is_unrecordable
    bench.live(3 * UNKNOWN, UNKNOWN)
    assert bench.read(job).state is JobState.SUBMITTED
    assert len(bench.attempts(job)) == 1


def test_mistake_of_our_own_leaves_its_reason_and_is_raised(bench, monkeypatch):
    job = bench.make_submitted()

    def break_down(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("worker.stages.poll.record_completion", break_down)
    with pytest.raises(RuntimeError):
        poll(bench, job)
    assert list_unrecorded(bench) == ["unrecordable: RuntimeError"]
