"""A wish to cancel in every state, and every answer that fal may give to it."""

import pytest

from tests.harness.fal import NOT_FOUND, show_status
from tests.harness.jobs import LEASE, REQUEST_ID
from tests.harness.stages import (
    SECOND,
    UNKNOWN,
    Bench,
    build_completion,
    build_empty,
    build_failure,
    find_attempt,
)
from tests.harness.together import call_together
from tests.harness.web import break_off, send_json
from worker.fal.submit import Ambiguous, RefusalClass, Refused
from worker.ground.errors import JobNotFoundError, TooLateError
from worker.jobs import table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Move
from worker.stages.cancel import RETRY_PAUSE, cancel_job
from worker.stages.submit import Submission

S = JobState
BUSY = Refused(RefusalClass.BUSY, 429, "too_many", "later")


def submit(bench: Bench) -> Submission:
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    return submission


# ------------------------------------------------------------------ before there is a request


@pytest.mark.both_databases
def test_queued_job_is_cancelled_free(bench, desk):
    job = bench.insert()
    cancelled = bench.cancel(job)
    assert cancelled.doorbell is None
    assert (cancelled.job.state, cancelled.job.due_at) == (S.CANCELLED, None)
    assert cancelled.job.cancel_requested_at == bench.clock()
    assert bench.submit(job) is None
    assert desk.asked == []


@pytest.mark.both_databases
def test_wish_during_the_post_leaves_the_claim_to_its_worker(bench):
    submission = bench.begin(bench.insert())
    cancelled = bench.cancel(submission.job)
    assert (cancelled.job.state, cancelled.doorbell) == (S.SUBMITTING, None)
    assert cancelled.job.claimed_by == submission.job.claimed_by
    assert cancelled.job.due_at == submission.job.due_at


def test_wish_during_the_post_reaches_fal_once_it_is_accepted(bench, desk):
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    bench.accept(submission)
    assert bench.read(submission.job).state is S.SUBMITTED
    bench.turn()
    assert desk.count("PUT", f"/{REQUEST_ID}/cancel") == 1


@pytest.mark.both_databases
@pytest.mark.parametrize("lost", [False, True], ids=["in time", "late"])
def test_wish_is_granted_by_a_refusal(bench, lost):
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    if lost:
        bench.lose(submission)
    moved = bench.reply(submission, BUSY)
    assert moved is not None
    assert (moved.state, moved.due_at) == (S.CANCELLED, None)


def test_wish_outlives_a_lost_reply(bench):
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    bench.reply(submission, Ambiguous(None, "dropped"))
    job = bench.read(submission.job)
    assert (job.state, job.cancel_requested_at) == (S.SUBMISSION_UNKNOWN, bench.clock())


def test_refusal_does_not_cancel_a_job_whose_request_has_shown_itself(bench):
    """The refusal was none: its result is awaited, and archived if it comes."""
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    bench.deliver(submission, build_empty())
    bench.reply(submission, BUSY)
    assert bench.read(submission.job).state is S.SUBMITTED
    bench.deliver(submission, build_completion())
    assert bench.read(submission.job).state is S.COMPLETED


def test_finished_request_is_fetched_in_spite_of_the_wish_and_not_cancelled(bench, desk):
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    bench.deliver(submission, build_empty())
    desk.finish()
    bench.turn()
    assert bench.read(submission.job).state is S.COMPLETED
    assert desk.count("PUT") == 0


# ------------------------------------------------------------------ what fal answers

# What each answer means: `unit/test_requests.py`.
ANSWERS = {
    "OK": send_json({"status": "OK"}),
    "NOT_FOUND": NOT_FOUND,
}
NO_ANSWERS = {
    "500": send_json({"detail": "oh"}, 500),
    "dropped": break_off(),
}


def ask(bench: Bench) -> Submission:
    """A submitted job whose cancellation has been asked for."""
    submission = submit(bench)
    cancelled = bench.cancel(submission.job)
    assert cancelled.doorbell == Doorbell(Step.CANCEL, submission.job.id)
    assert cancelled.job.state is S.SUBMITTED
    bench.publish(cancelled.doorbell)
    return submission


@pytest.mark.both_databases
@pytest.mark.parametrize("name", ANSWERS)
def test_answer_is_noted_and_the_end_is_asked_for_at_once(bench, desk, name):
    desk.cancel = ANSWERS[name]
    submission = ask(bench)
    attempt, job = find_attempt(bench, submission), bench.read(submission.job)
    assert (attempt.cancel_status, attempt.cancel_due_at) == (name, None)
    assert (job.state, job.due_at) == (S.SUBMITTED, bench.clock())


def test_request_that_was_cancelled_ends_the_job_and_costs_nothing_extra(bench, desk):
    submission = ask(bench)
    desk.status = show_status("COMPLETED", error="cancelled", error_type="client_cancelled")
    desk.result = send_json({"detail": "cancelled", "error_type": "client_cancelled"}, 499)
    bench.turn()
    job, attempt = bench.read(submission.job), find_attempt(bench, submission)
    assert (job.state, job.due_at) == (S.CANCELLED, None)
    assert (attempt.ending, attempt.extra_charge_at) == ("cancelled", None)


@pytest.mark.both_databases
@pytest.mark.parametrize("name", ["OK", "500"])
def test_result_that_comes_anyway_is_archived_and_marked(bench, desk, name):
    desk.cancel = {**ANSWERS, **NO_ANSWERS}[name]
    submission = ask(bench)
    bench.deliver(submission, build_completion())
    job = bench.read(submission.job)
    assert (job.state, job.doorbell) == (S.COMPLETED, Doorbell(Step.ARCHIVE, job.id))
    assert job.cancel_requested_at is not None
    assert "in spite of the cancellation" in str(bench.events(job)[-1].detail)
    bench.clock.move(RETRY_PAUSE * 3)
    asked = desk.count("PUT")
    bench.turn()
    assert desk.count("PUT") == asked


def test_failure_that_comes_anyway_is_a_failure(bench):
    submission = ask(bench)
    bench.deliver(submission, build_failure())
    job = bench.read(submission.job)
    assert (job.state, job.error_code) == (S.FAILED, "bad_video")


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_no_answer_is_asked_for_again_up_to_a_time(bench, desk, name):
    desk.cancel = NO_ANSWERS[name]
    submission = ask(bench)
    attempt = find_attempt(bench, submission)
    assert (attempt.cancel_status, attempt.cancel_due_at) == (
        "UNCLEAR",
        bench.clock() + RETRY_PAUSE,
    )
    bench.clock.move(RETRY_PAUSE)
    bench.turn()
    assert desk.count("PUT") == 2
    bench.clock.now = attempt.started_at + UNKNOWN
    bench.turn()
    assert find_attempt(bench, submission).cancel_due_at is None
    bench.clock.move(LEASE * 2)
    bench.turn()
    assert desk.count("PUT") == 3


def test_lost_message_is_healed_by_the_sweep(bench, desk):
    submission = submit(bench)
    bench.cancel(submission.job)
    bench.clock.move(SECOND)
    assert Doorbell(Step.CANCEL, submission.job.id) in bench.turn()
    assert desk.count("PUT") == 1
    bench.clock.move(LEASE * 2)
    bench.turn()
    assert desk.count("PUT") == 1


@pytest.mark.both_databases
def test_sweep_rings_once_per_lease_while_the_message_is_on_its_way(bench):
    submission = submit(bench)
    bench.cancel(submission.job)
    cancel = Doorbell(Step.CANCEL, submission.job.id)
    published = call_together(*[bench.sweep] * 4)
    assert sum(one.doorbells.count(cancel) for one in published) == 1
    bench.clock.move(LEASE)
    assert cancel in bench.sweep().doorbells


# ------------------------------------------------------------------ again, too late, by others


def test_wish_again_is_as_good_as_once(bench):
    submission = ask(bench)
    wished_at = bench.clock()
    bench.clock.move(SECOND)
    again = bench.cancel(submission.job)
    assert (again.job.state, again.job.cancel_requested_at) == (S.SUBMITTED, wished_at)
    assert bench.reasons(submission.job).count("cancel_requested") == 1
    bench.deliver(submission, build_failure(code="client_cancelled"))
    ended = bench.read(submission.job)
    assert bench.cancel(ended).job == ended


@pytest.mark.both_databases
def test_wishes_at_once_are_one(bench):
    submission = submit(bench)
    call_together(*[lambda: bench.cancel(submission.job)] * 4)
    assert bench.reasons(submission.job).count("cancel_requested") == 1


@pytest.mark.both_databases
@pytest.mark.parametrize("state", [S.COMPLETED, S.ARCHIVING, S.ARCHIVED, S.FAILED])
def test_wish_is_too_late_once_there_is_a_result_or_an_end(bench, state):
    submission = submit(bench)
    failed = state is S.FAILED
    bench.deliver(submission, build_failure() if failed else build_completion())
    with bench.db.transaction() as connection:
        claim = Claim("tester:2", bench.clock(), bench.clock() + LEASE)
        if state in {S.ARCHIVING, S.ARCHIVED}:
            claimed = table.claim_job(
                connection, submission.job.id, JobEvent.ARCHIVE_CLAIMED, claim
            )
            assert claimed is not None
            if state is S.ARCHIVED:
                move = Move(bench.clock())
                table.apply_permitted(connection, claimed, JobEvent.ARCHIVE_RECORDED, move)
    before = bench.read(submission.job)
    with pytest.raises(TooLateError, match=state.value):
        bench.cancel(before)
    assert bench.read(before) == before


def test_unknown_id_is_not_found(bench, db):
    with pytest.raises(JobNotFoundError):
        cancel_job(submit(bench).attempt.id, db=db, clock=bench.clock)
