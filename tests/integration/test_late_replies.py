"""A reply that comes late, wherever its job is by then, and whoever has it by then."""

from collections.abc import Callable
from datetime import timedelta

import pytest

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
from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused, SubmitReply
from worker.jobs import table
from worker.jobs.states import ENDED, JobEvent, JobState, Step
from worker.jobs.values import Claim, Job, Move, Outcome
from worker.stages import submit
from worker.stages.submit import Submission, begin_submission

S = JobState
OTHER_ID = "7f3c1d0e-0000-4000-8000-00000000bbbb"
ACCEPTED = Accepted(REQUEST_ID, None, None, None)
REPLIES: dict[str, SubmitReply] = {
    "ambiguous": Ambiguous(None, "no reply within 30 s"),
    "input": Refused(RefusalClass.INPUT, 400, "code_input", "refused: input"),
    "busy": Refused(RefusalClass.BUSY, 429, "code_busy", "refused: busy"),
}


# ------------------------------------------------------------------ where the job may be by then


def stay(_bench: Bench, _submission: Submission) -> None:
    """The reply is in time."""


def lose(bench: Bench, submission: Submission) -> None:
    bench.lose(submission)


def lose_and_cancel(bench: Bench, submission: Submission) -> None:
    bench.cancel(bench.lose(submission))


def prove_dead(bench: Bench, submission: Submission) -> None:
    """Its worker has been stopped for as long as it takes to give the attempt up."""
    bench.lose(submission)
    bench.clock.move(UNKNOWN)
    bench.reconcile(submission.job)


def prove_dead_and_cancel(bench: Bench, submission: Submission) -> None:
    prove_dead(bench, submission)
    bench.cancel(submission.job)


def cancel_and_prove_dead(bench: Bench, submission: Submission) -> None:
    bench.cancel(bench.lose(submission))
    bench.clock.move(UNKNOWN)
    bench.reconcile(submission.job)


def exhaust(bench: Bench, submission: Submission) -> None:
    bench.lose(submission)
    bench.clock.move(UNKNOWN)
    bench.resolving(max_attempts=1).reconcile(submission.job)


def finish(bench: Bench, submission: Submission) -> None:
    bench.deliver(submission, build_completion())


def fail(bench: Bench, submission: Submission) -> None:
    bench.deliver(submission, build_failure())


def finish_without_result(bench: Bench, submission: Submission) -> None:
    bench.deliver(submission, build_empty())


def finish_without_result_and_cancel(bench: Bench, submission: Submission) -> None:
    finish_without_result(bench, submission)
    bench.cancel(submission.job)


def archive(bench: Bench, submission: Submission) -> None:
    finish(bench, submission)
    job = claim_archive(bench, submission.job)
    with bench.db.transaction() as connection:
        move = Move(bench.clock())
        assert table.apply_event(connection, job, JobEvent.ARCHIVE_RECORDED, move) is not None


def begin_archive(bench: Bench, submission: Submission) -> None:
    finish(bench, submission)
    claim_archive(bench, submission.job)


def claim_archive(bench: Bench, job: Job) -> Job:
    claim = Claim("tester:2", bench.clock(), bench.clock() + LEASE)
    with bench.db.transaction() as connection:
        claimed = table.claim_job(connection, job.id, JobEvent.ARCHIVE_CLAIMED, claim)
    assert claimed is not None
    return claimed


def begin_again(bench: Bench, submission: Submission) -> Submission:
    prove_dead(bench, submission)
    return bench.begin(submission.job)


def accept_again(bench: Bench, submission: Submission) -> Submission:
    again = begin_again(bench, submission)
    bench.accept(again, OTHER_ID)
    return again


def lose_again(bench: Bench, submission: Submission) -> None:
    bench.lose(begin_again(bench, submission))


def finish_again(bench: Bench, submission: Submission) -> None:
    bench.deliver(accept_again(bench, submission), build_completion(OTHER_ID))


def fail_again(bench: Bench, submission: Submission) -> None:
    bench.deliver(accept_again(bench, submission), build_failure(OTHER_ID))


def cancel_again(bench: Bench, submission: Submission) -> None:
    again = accept_again(bench, submission)
    bench.cancel(submission.job)
    bench.deliver(again, build_failure(OTHER_ID, "client_cancelled"))


Meanwhile = Callable[[Bench, Submission], object]
# What happened meanwhile, and where an acceptance that comes then leads: a state, and whether its
# request is to be cancelled as one too many.
ADOPTED, DISMISSED, KNOWN = "adopted", "dismissed", "known"
PLACES: dict[Meanwhile, tuple[JobState, JobState, str]] = {
    stay: (S.SUBMITTING, S.SUBMITTED, ADOPTED),
    lose: (S.SUBMISSION_UNKNOWN, S.SUBMITTED, ADOPTED),
    lose_and_cancel: (S.SUBMISSION_UNKNOWN, S.SUBMITTED, ADOPTED),
    prove_dead: (S.QUEUED, S.SUBMITTED, ADOPTED),
    prove_dead_and_cancel: (S.CANCELLED, S.CANCELLED, DISMISSED),
    cancel_and_prove_dead: (S.CANCELLED, S.CANCELLED, DISMISSED),
    exhaust: (S.FAILED, S.SUBMITTED, ADOPTED),
    finish: (S.COMPLETED, S.COMPLETED, KNOWN),
    fail: (S.FAILED, S.FAILED, KNOWN),
    finish_without_result: (S.SUBMITTED, S.SUBMITTED, KNOWN),
    finish_without_result_and_cancel: (S.SUBMITTED, S.SUBMITTED, KNOWN),
    begin_archive: (S.ARCHIVING, S.ARCHIVING, KNOWN),
    archive: (S.ARCHIVED, S.ARCHIVED, KNOWN),
    begin_again: (S.SUBMITTING, S.SUBMITTING, DISMISSED),
    accept_again: (S.SUBMITTED, S.SUBMITTED, DISMISSED),
    lose_again: (S.SUBMISSION_UNKNOWN, S.SUBMISSION_UNKNOWN, DISMISSED),
    finish_again: (S.COMPLETED, S.COMPLETED, DISMISSED),
    fail_again: (S.FAILED, S.FAILED, DISMISSED),
    cancel_again: (S.CANCELLED, S.CANCELLED, DISMISSED),
}
ALL_PLACES = pytest.mark.parametrize("meanwhile", PLACES, ids=lambda place: place.__name__)


def reach(bench: Bench, meanwhile: Meanwhile) -> tuple[Submission, Job]:
    submission = bench.begin(bench.insert())
    meanwhile(bench, submission)
    job = bench.read(submission.job)
    assert job.state is PLACES[meanwhile][0]
    return submission, job


def test_the_places_are_all_states_of_the_machine():
    assert {before for before, _, _ in PLACES.values()} == set(S)


@pytest.mark.both_databases
@ALL_PLACES
def test_late_acceptance_is_adopted_or_counted_and_cancelled(bench, meanwhile):
    submission, before = reach(bench, meanwhile)
    bench.clock.move(SECOND)
    moved = bench.reply(submission, ACCEPTED)
    _, state, fate = PLACES[meanwhile]
    after, attempt = bench.read(before), find_attempt(bench, submission)
    assert after.state is state
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)
    assert (after.due_at is None) == (after.state in ENDED)
    dismissed = fate == DISMISSED
    assert (attempt.extra_charge_at is not None) == dismissed
    wanted = dismissed or before.cancel_requested_at is not None
    assert (attempt.cancel_due_at is not None) == wanted
    if fate == ADOPTED:
        assert moved == after
        assert (after.fal_request_id, after.blocked_reason) == (REQUEST_ID, None)
        assert (after.error_code, after.error_message) == (None, None)
    else:
        assert (moved, after) == (None, before)
    # The same reply once more, as from a worker whose commit was not confirmed.
    assert bench.reply(submission, ACCEPTED) is None
    assert (bench.read(after), find_attempt(bench, submission)) == (after, attempt)


FREED: dict[Meanwhile, dict[str, JobState]] = {
    stay: {"input": S.FAILED, "busy": S.QUEUED},
    lose: {"input": S.FAILED, "busy": S.QUEUED},
    lose_and_cancel: {"input": S.CANCELLED, "busy": S.CANCELLED},
}


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", ["input", "busy"])
@pytest.mark.parametrize("meanwhile", FREED, ids=lambda place: place.__name__)
def test_refusal_moves_a_job_that_waits_for_it(bench, meanwhile, kind):
    submission, _ = reach(bench, meanwhile)
    bench.reply(submission, REPLIES[kind])
    after = bench.read(submission.job)
    assert after.state is FREED[meanwhile][kind]
    assert (after.due_at is None) == (after.state in ENDED)
    assert find_attempt(bench, submission).extra_charge_at is None


@pytest.mark.parametrize(
    "meanwhile", [place for place in PLACES if place not in FREED], ids=lambda m: m.__name__
)
def test_late_refusal_leaves_a_job_alone_that_does_not_wait_for_it(bench, meanwhile):
    submission, before = reach(bench, meanwhile)
    bench.reply(submission, REPLIES["busy"])
    assert bench.read(before) == before
    assert find_attempt(bench, submission).extra_charge_at is None


@pytest.mark.parametrize("meanwhile", [stay, lose, begin_again], ids=lambda m: m.__name__)
def test_late_ambiguity_moves_only_a_job_that_is_still_submitting(bench, meanwhile):
    submission, before = reach(bench, meanwhile)
    bench.reply(submission, REPLIES["ambiguous"])
    after = bench.read(before)
    if meanwhile is stay:
        assert (after.state, after.due_at) == (S.SUBMISSION_UNKNOWN, bench.clock())
    else:
        assert after == before


@pytest.mark.parametrize("kind", ["input", "ambiguous"])
@pytest.mark.parametrize("meanwhile", [fail, finish_without_result], ids=lambda m: m.__name__)
def test_refusal_after_a_proven_webhook_does_not_make_a_paid_attempt_free(bench, meanwhile, kind):
    """Fal's own webhook says that there is a request: redriving must not pay unasked."""
    submission, _ = reach(bench, meanwhile)
    bench.reply(submission, REPLIES[kind])
    attempt = find_attempt(bench, submission)
    assert attempt.fal_request_id == REQUEST_ID
    assert attempt.outcome not in {Outcome.REJECTED, Outcome.POSTPONED}


# ------------------------------------------------------------------ what comes of it


def test_request_of_a_dismissed_attempt_is_cancelled_at_fal_by_the_sweep(bench, desk):
    submission, job = reach(bench, accept_again)
    bench.reply(submission, ACCEPTED)
    doorbells = bench.sweep().doorbells
    assert [(one.step, one.job_id) for one in doorbells] == [(Step.CANCEL, job.id)]
    bench.publish(doorbells[0])
    (asked,) = [one for one in desk.asked if one.method == "PUT"]
    assert asked.path.endswith(f"/requests/{REQUEST_ID}/cancel")
    attempt = find_attempt(bench, submission)
    assert (attempt.cancel_status, attempt.cancel_due_at) == ("OK", None)
    assert bench.sweep().doorbells == []


def test_dismissed_attempt_that_fal_did_cancel_is_no_extra_charge(bench):
    submission, job = reach(bench, accept_again)
    bench.reply(submission, ACCEPTED)
    bench.deliver(submission, build_failure(REQUEST_ID, "client_cancelled"))
    attempt = find_attempt(bench, submission)
    assert (attempt.ending, attempt.extra_charge_at) == ("cancelled", None)
    assert bench.read(job) == job


def test_acceptance_of_a_cancelled_job_is_adopted_by_its_result(bench):
    """The wish came too late: what is paid is archived, and nothing is counted as extra."""
    submission, job = reach(bench, cancel_and_prove_dead)
    bench.reply(submission, ACCEPTED)
    bench.deliver(submission, build_completion())
    after, attempt = bench.read(job), find_attempt(bench, submission)
    assert (after.state, after.fal_request_id) == (S.COMPLETED, REQUEST_ID)
    assert (attempt.extra_charge_at, attempt.cancel_due_at) == (None, None)
    assert "in spite of the cancellation" in str(bench.events(job)[-1].detail)


@pytest.fixture
def stopped(bench, monkeypatch) -> list[Submission]:
    """The process of each submission is stopped between its intent and its POST."""
    begun: list[Submission] = []

    def begin(*args, **kwargs) -> Submission | None:
        submission = begin_submission(*args, **kwargs)
        assert submission is not None
        bench.lose(submission)
        begun.append(submission)
        return submission

    monkeypatch.setattr(submit, "begin_submission", begin)
    return begun


def test_post_is_not_made_once_the_lease_is_over(bench, desk, stopped):
    moved = bench.submit(bench.insert())
    assert desk.count("POST") == 0
    # The sweep had it for unknown: it is given back without cost.
    assert moved is not None
    assert (moved.state, find_attempt(bench, *stopped).outcome) == (S.QUEUED, Outcome.POSTPONED)


@pytest.mark.both_databases
def test_new_attempt_of_a_redriven_job_has_no_request_id_of_the_old_one(bench):
    submission, job = reach(bench, fail)
    bench.redrive(job, pay_again=True)
    again = bench.begin(job)
    assert again.job.fal_request_id is None
    bench.reply(again, REPLIES["ambiguous"])
    lost = bench.read(job)
    assert (lost.state, lost.fal_request_id) == (S.SUBMISSION_UNKNOWN, None)
    bench.accept(again, OTHER_ID)
    assert bench.read(job).fal_request_id == OTHER_ID
    assert find_attempt(bench, submission).fal_request_id == REQUEST_ID


# ------------------------------------------------------------------ equal inputs


def adopt_by_listing(bench: Bench, submission: Submission, request_id: str) -> None:
    resolver = bench.reconciler.resolver
    assert resolver._adopt(submission.attempt, request_id, "found in the listing") is not None


@pytest.mark.both_databases
def test_acceptance_of_a_request_that_the_listing_gave_to_its_twin_keeps_both_jobs_going(bench):
    mine, twin = bench.begin(bench.insert()), bench.begin(bench.insert())
    bench.lose(mine)
    adopt_by_listing(bench, twin_unknown(bench, twin), REQUEST_ID)
    bench.reply(mine, ACCEPTED)
    job, attempt = bench.read(mine.job), find_attempt(bench, mine)
    assert (job.state, job.fal_request_id) == (S.SUBMITTED, REQUEST_ID)
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, None)
    assert REQUEST_ID in str(attempt.error_message)
    assert bench.read(twin.job).state is S.SUBMITTED


def test_acceptance_under_another_id_than_the_listing_found_cancels_nothing_of_the_job(bench):
    """The listing's request had the very same input: it is as good, and the job goes on with it."""
    submission = bench.begin(bench.insert())
    bench.lose(submission)
    adopt_by_listing(bench, submission, OTHER_ID)
    assert bench.reply(submission, ACCEPTED) is None
    job, attempt = bench.read(submission.job), find_attempt(bench, submission)
    assert (job.state, job.fal_request_id) == (S.SUBMITTED, OTHER_ID)
    assert (attempt.fal_request_id, attempt.cancel_due_at) == (OTHER_ID, None)
    assert attempt.extra_charge_at == bench.clock()


def test_nobody_asks_fal_to_cancel_a_request_without_an_id(bench, desk):
    mine, twin = bench.begin(bench.insert()), bench.begin(bench.insert())
    bench.lose(mine)
    adopt_by_listing(bench, twin_unknown(bench, twin), REQUEST_ID)
    bench.clock.move(UNKNOWN)
    bench.reconcile(mine.job)
    bench.begin(mine.job)
    bench.reply(mine, ACCEPTED)
    bench.clock.move(timedelta(seconds=1))
    bench.turn()
    assert desk.count("PUT") == 0


def twin_unknown(bench: Bench, twin: Submission) -> Submission:
    if bench.read(twin.job).state is S.SUBMITTING:
        bench.lose(twin)
    return twin
