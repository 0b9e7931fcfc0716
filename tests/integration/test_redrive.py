"""Restarting a job from every end: from what is paid first, and never paying again unasked."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.harness.jobs import LEASE, REQUEST_ID, build_result
from tests.harness.stages import (
    RETRY,
    SECOND,
    UNKNOWN,
    Bench,
    build_completion,
    build_failure,
    find_attempt,
)
from worker.fal.submit import RefusalClass, Refused
from worker.ground.errors import JobNotFoundError, PaysAgainError, TooLateError
from worker.ground.settings import UnknownPolicy
from worker.jobs import table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Job, Move
from worker.stages.redrive import redrive_job

S = JobState
INPUT = Refused(RefusalClass.INPUT, 422, "bad_input", "no")
AWAY = Refused(RefusalClass.UNREACHABLE, 503, "fal_unavailable", "later")


def reject(bench: Bench) -> Job:
    submission = bench.begin(bench.insert())
    bench.reply(submission, INPUT)
    return submission.job


def turn_away(bench: Bench) -> Job:
    job = bench.insert()
    bench.reply(bench.begin(job), AWAY)
    bench.clock.move(RETRY)
    bench.sweep()
    bench.reply(bench.begin(job), AWAY)
    return job


def fail(bench: Bench) -> Job:
    job = bench.make_submitted()
    return record(bench, job, failure=True)


def record(bench: Bench, job: Job, *, failure: bool = False) -> Job:
    (attempt,) = bench.attempts(job)
    completion = build_failure() if failure else build_completion()
    bench.reconciler._record(job, attempt, completion)
    return job


def lose_all(bench: Bench) -> Job:
    submission = bench.begin(bench.insert())
    bench.lose(submission)
    bench.clock.move(UNKNOWN)
    bench.resolving(max_attempts=1).reconcile(submission.job)
    return submission.job


def hold(bench: Bench) -> Job:
    submission = bench.begin(bench.insert())
    bench.lose(submission)
    bench.clock.move(UNKNOWN)
    bench.resolving(policy=UnknownPolicy.HOLD).reconcile(submission.job)
    assert bench.read(submission.job).is_held
    return submission.job


def cancel_unpaid(bench: Bench) -> Job:
    job = bench.insert()
    bench.cancel(job)
    return job


def cancel_paid(bench: Bench) -> Job:
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    bench.cancel(submission.job)
    bench.deliver(submission, build_failure(code="client_cancelled"))
    return submission.job


def lose_result(bench: Bench) -> Job:
    job = bench.make_submitted()
    (attempt,) = bench.attempts(job)
    bench.reconciler._give_up(job, attempt, REQUEST_ID)
    return job


def refuse_archive(bench: Bench) -> Job:
    job = record(bench, bench.make_submitted())
    claim = Claim("tester:2", bench.clock(), bench.clock() + LEASE)
    with bench.db.transaction() as connection:
        claimed = table.claim_job(connection, job.id, JobEvent.ARCHIVE_CLAIMED, claim)
        assert claimed is not None
        why = {"error_code": "not_a_video", "error_message": "no"}
        move = Move(bench.clock(), columns=why)
        table.apply_permitted(connection, claimed, JobEvent.ARCHIVE_REFUSED, move)
    return job


End = Callable[[Bench], Job]
FREE: dict[End, tuple[JobState, JobState, JobEvent]] = {
    reject: (S.FAILED, S.QUEUED, JobEvent.SUBMIT_REDRIVEN),
    turn_away: (S.FAILED, S.QUEUED, JobEvent.SUBMIT_REDRIVEN),
    cancel_unpaid: (S.CANCELLED, S.QUEUED, JobEvent.SUBMIT_REDRIVEN),
    lose_result: (S.FAILED, S.SUBMITTED, JobEvent.POLL_REDRIVEN),
    refuse_archive: (S.FAILED, S.COMPLETED, JobEvent.ARCHIVE_REDRIVEN),
}
PAID: dict[End, JobState] = {
    fail: S.FAILED,
    lose_all: S.FAILED,
    hold: S.SUBMISSION_UNKNOWN,
    cancel_paid: S.CANCELLED,
}


def name(end: object) -> str:
    return str(getattr(end, "__name__", end))


@pytest.mark.both_databases
@pytest.mark.parametrize("end", FREE, ids=name)
def test_redrive_restarts_at_the_latest_step_that_needs_no_money(bench, end):
    job = end(bench)
    before, target, event = FREE[end]
    assert bench.read(job).state is before
    bench.clock.move(SECOND)
    redriven = bench.redrive(job)
    assert redriven == bench.read(job)
    assert (redriven.state, redriven.redriven_at) == (target, bench.clock())
    assert redriven.due_at == bench.clock() + LEASE
    assert (redriven.error_code, redriven.error_message) == (None, None)
    assert (redriven.blocked_by, redriven.blocked_reason) == (None, None)
    last = bench.events(job)[-1]
    assert (last.reason, last.from_state, last.to_state) == (event, before, target)
    assert "operator" in str(last.detail)


@pytest.mark.both_databases
@pytest.mark.parametrize("end", PAID, ids=name)
def test_redrive_pays_again_only_if_it_is_told_to(bench, end):
    job = end(bench)
    before = bench.read(job)
    assert before.state is PAID[end]
    with pytest.raises(PaysAgainError):
        bench.redrive(job)
    assert bench.read(job) == before
    redriven = bench.redrive(job, pay_again=True)
    assert (redriven.state, redriven.fal_request_id, redriven.result) == (S.QUEUED, None, None)
    assert redriven.cancel_requested_at is None
    assert "pay again" in str(bench.events(job)[-1].detail)
    submitted = bench.accept(bench.begin(job), "second")
    assert submitted is not None
    assert (submitted.state, submitted.fal_request_id) == (S.SUBMITTED, "second")


def test_result_is_archived_again_rather_than_bought_again(bench):
    redriven = bench.redrive(refuse_archive(bench))
    assert (redriven.state, redriven.result) == (S.COMPLETED, build_result())
    assert redriven.doorbell == Doorbell(Step.ARCHIVE, redriven.id)


def test_result_whose_video_is_gone_can_be_bought_again(bench):
    redriven = bench.redrive(refuse_archive(bench), pay_again=True)
    assert (redriven.state, redriven.result) == (S.QUEUED, None)


def test_result_that_was_gone_is_asked_for_again_and_taken(bench, desk):
    job = lose_result(bench)
    bench.redrive(job)
    desk.finish()
    bench.reconcile(job)
    assert bench.read(job).state is S.COMPLETED
    assert desk.count("POST") == 0


def test_result_that_is_still_gone_fails_the_job_again(bench, desk):
    job = lose_result(bench)
    bench.clock.move(UNKNOWN * 2)
    bench.redrive(job)
    desk.forget()
    bench.reconcile(job)
    after = bench.read(job)
    assert (after.state, after.error_code) == (S.FAILED, "result_gone")


def test_refusal_is_not_free_once_a_request_of_it_has_turned_up(bench):
    """Somebody between us and fal refused what fal had taken."""
    submission = bench.begin(bench.insert())
    bench.reply(submission, INPUT)
    bench.deliver(submission, build_failure())
    with pytest.raises(PaysAgainError):
        bench.redrive(submission.job)


def test_job_that_was_turned_away_has_its_whole_time_again(bench):
    job = turn_away(bench)
    assert bench.read(job).error_code == "submission_exhausted"
    bench.clock.move(timedelta(days=2))
    bench.redrive(job)
    bench.reply(bench.begin(job), AWAY)
    assert bench.read(job).state is S.QUEUED
    bench.clock.move(RETRY)
    bench.sweep()
    bench.reply(bench.begin(job), AWAY)
    assert bench.read(job).state is S.FAILED


@pytest.mark.both_databases
def test_result_of_the_first_run_is_taken_while_the_redriven_job_still_waits(bench):
    """Then nothing is paid a second time, although it was agreed to."""
    job = lose_result(bench)
    bench.redrive(job, pay_again=True)
    (attempt,) = bench.attempts(job)
    bench.reconciler._record(job, attempt, build_completion())
    assert bench.read(job).state is S.COMPLETED
    assert bench.try_begin(job) is None


def test_late_doorbell_does_not_lead_a_redriven_job_back_to_its_old_request(bench, desk):
    job = fail(bench)
    redriven = bench.redrive(job, pay_again=True)
    assert bench.reconcile(job) == []
    assert bench.read(job) == redriven


@pytest.mark.parametrize("state", [S.QUEUED, S.SUBMITTING, S.SUBMITTED, S.COMPLETED])
def test_live_job_is_not_redriven(bench, state):
    job = bench.insert()
    if state is not S.QUEUED:
        submission = bench.begin(job)
        if state is not S.SUBMITTING:
            bench.accept(submission)
        if state is S.COMPLETED:
            bench.deliver(submission, build_completion())
            assert find_attempt(bench, submission).ending == "ok"
    before = bench.read(job)
    assert before.state is state
    for pay_again in (False, True):
        with pytest.raises(TooLateError):
            bench.redrive(job, pay_again=pay_again)
    assert bench.read(job) == before


def test_unknown_id_is_not_found(bench, db):
    submission = bench.begin(bench.insert())
    with pytest.raises(JobNotFoundError):
        redrive_job(submission.attempt.id, db=db, pay_again=False, dispatch_timeout=LEASE)
