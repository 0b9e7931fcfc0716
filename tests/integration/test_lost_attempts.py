"""Webhooks of attempts, and of jobs, whose rows are lost: a signed token has them recorded."""

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from tests.harness.jobs import REQUEST_ID
from tests.harness.lost import SECRETS, deliver, hint, queue_again, remove_job, sign_tokens
from tests.harness.stages import (
    Bench,
    build_completion,
    build_empty,
    build_failure,
)
from tests.harness.together import call_together
from worker.fal.submit import RefusalClass, Refused
from worker.ground.errors import InvalidSignatureError
from worker.jobs import restores
from worker.jobs.checks import Check, find_strays
from worker.jobs.models import StrayDeliveryRow
from worker.jobs.states import Doorbell, JobState, Step
from worker.jobs.values import Ending, Job, Outcome, Verdict
from worker.stages.complete import expect_poll
from worker.stages.submit import UNREACHABLE, Submission
from worker.stages.tokens import TokenName, read_token, sign_token

S = JobState
OTHER_ID = "7f3c1d0e-0000-4000-8000-00000000bbbb"


@pytest.fixture
def signed(bench) -> Bench:
    return sign_tokens(bench)


def lose_row(signed: Bench) -> tuple[Job, str]:
    """A queued job whose only attempt was sent, and the token that fal has."""
    submission = signed.begin(signed.insert())
    return queue_again(signed, submission.job), submission.token


def begin_later(signed: Bench, job: Job) -> Submission:
    """The job is submitted once more, in an epoch of its own."""
    with signed.db.transaction() as connection:
        restores.insert_restore(connection, signed.clock(), signed.clock())
    return signed.begin(job)


def list_strays(bench: Bench) -> list[tuple[str, int, int]]:
    row = StrayDeliveryRow
    statement = select(row.verdict, row.number, row.times_received).order_by(row.id)
    with bench.db.reading() as connection:
        return [(one[0], one[1], one[2]) for one in connection.execute(statement)]


# ------------------------------------------------------------------ tokens as they are made


@pytest.mark.both_databases
def test_token_names_the_job_and_the_number_of_each_attempt(signed):
    job = signed.insert()
    for number in (1, 2):
        submission = signed.begin(job)
        assert read_token(submission.token, SECRETS) == TokenName(job.id, number, "0")
        assert submission.attempt.number == number
        signed.reply(submission, Refused(RefusalClass.UNREACHABLE, None, "away", "nobody there"))
        signed.clock.move(UNREACHABLE.longest)
        signed.sweep()


def test_token_that_was_random_or_of_a_secret_since_given_up_is_found_by_its_hash(bench, signed):
    random = bench.begin(bench.insert())
    assert "." not in random.token
    assert deliver(signed, random.token, build_completion()).verdict is Verdict.RECORDED
    aged = signed.begin(signed.insert())
    assert bench.deliver(aged, build_completion(OTHER_ID)).verdict is Verdict.RECORDED


# ------------------------------------------------------------------ the attempt is lost


@pytest.mark.both_databases
def test_result_of_a_lost_attempt_completes_the_job_and_is_not_bought_again(signed, desk):
    job, token = lose_row(signed)
    receipt = deliver(signed, token, build_completion())
    assert (receipt.verdict, signed.read(job).state) == (Verdict.RECORDED, S.COMPLETED)
    (attempt,) = signed.attempts(job)
    assert (attempt.number, attempt.outcome, attempt.ending) == (1, Outcome.ACCEPTED, Ending.OK)
    assert (attempt.input, attempt.fal_request_id) == (job.input, REQUEST_ID)
    assert signed.reasons(job) == ["enqueued", "request_adopted", "result_arrived"]
    assert deliver(signed, token, build_completion()).verdict is Verdict.DUPLICATE
    assert signed.submit(job) is None
    assert desk.count("POST") == 0


@pytest.mark.both_databases
def test_two_deliveries_of_a_lost_attempt_at_once_make_one(signed):
    job, token = lose_row(signed)
    call_together(*(lambda: deliver(signed, token, build_completion()) for _ in range(4)))
    assert [one.number for one in signed.attempts(job)] == [1]
    assert signed.reasons(job).count("result_arrived") == 1


def test_failure_of_a_lost_attempt_fails_the_job(signed):
    job, token = lose_row(signed)
    assert deliver(signed, token, build_failure()).verdict is Verdict.RECORDED
    assert (signed.read(job).state, signed.read(job).error_code) == (S.FAILED, "bad_video")


@pytest.mark.parametrize("given_up", [False, True])
def test_result_of_a_lost_attempt_that_was_not_delivered_is_fetched(signed, desk, given_up):
    job, token = lose_row(signed)
    if given_up:
        signed.cancel(job)
    assert deliver(signed, token, build_empty()).doorbell == Doorbell(Step.RECONCILE, job.id)
    desk.finish()
    signed.reconcile(job)
    assert signed.read(job).state is S.COMPLETED


@pytest.mark.both_databases
def test_lost_attempt_does_not_disturb_the_one_in_flight(signed):
    job, lost = lose_row(signed)
    later = begin_later(signed, job)
    assert deliver(signed, lost, build_failure(REQUEST_ID)).verdict is Verdict.KEPT
    assert signed.accept(later, OTHER_ID) is not None
    assert signed.read(job).state is S.SUBMITTED
    found = [(one.number, one.fal_request_id) for one in signed.attempts(job)]
    assert found == [(1, OTHER_ID), (2, REQUEST_ID)]
    assert deliver(signed, later.token, build_completion(OTHER_ID)).verdict is Verdict.RECORDED


@pytest.mark.both_databases
def test_first_result_wins_also_of_a_lost_attempt_and_the_other_is_counted(signed):
    job, lost = lose_row(signed)
    later = begin_later(signed, job)
    signed.accept(later, OTHER_ID)
    assert deliver(signed, lost, build_completion(REQUEST_ID)).verdict is Verdict.RECORDED
    assert signed.read(job).fal_request_id == REQUEST_ID
    assert deliver(signed, later.token, build_completion(OTHER_ID)).verdict is Verdict.KEPT
    extra = {one.fal_request_id for one in signed.attempts(job) if one.extra_charge_at}
    assert extra == {OTHER_ID}


def test_request_that_an_attempt_of_the_job_has_already_is_that_ones(signed):
    job, token = lose_row(signed)
    signed.accept(begin_later(signed, job), REQUEST_ID)
    assert deliver(signed, token, build_completion(REQUEST_ID)).verdict is Verdict.RECORDED
    assert len(signed.attempts(job)) == 1


# ------------------------------------------------------------------ what proves nothing


@pytest.mark.both_databases
def test_hint_of_a_lost_attempt_has_fal_asked_before_the_job_is_bought_again(signed, desk):
    job, token = lose_row(signed)
    receipt = hint(signed, token, build_completion())
    assert (receipt.verdict, receipt.doorbell) == (
        Verdict.HINT,
        Doorbell(Step.RECONCILE, job.id),
    )
    assert signed.read(job).state is S.SUBMISSION_UNKNOWN
    assert signed.read(job).result is None
    desk.finish()
    signed.reconcile(job)
    assert signed.read(job).fal_request_id == REQUEST_ID
    assert desk.count("POST") == 0


def test_hint_of_a_lost_attempt_beside_one_in_flight_is_followed(signed, desk):
    job, token = lose_row(signed)
    signed.accept(begin_later(signed, job), OTHER_ID)
    hint(signed, token, build_completion(REQUEST_ID))
    desk.finish()
    signed.reconcile(job)
    assert signed.read(job).state is S.COMPLETED
    assert {one.fal_request_id for one in signed.attempts(job)} == {REQUEST_ID, OTHER_ID}


def test_hints_of_lost_attempts_of_a_cancelled_job_are_followed(signed, desk):
    job, token = lose_row(signed)
    again = begin_later(signed, job).token
    signed.cancel(queue_again(signed, job))
    hint(signed, token, build_completion(REQUEST_ID))
    hint(signed, again, build_completion(OTHER_ID))
    desk.finish()
    signed.reconcile(job)
    assert signed.read(job).state is S.COMPLETED
    assert len(signed.attempts(job)) == 2


@pytest.mark.parametrize("receive", [deliver, hint])
def test_token_that_we_have_not_signed_is_refused(signed, receive):
    job, _ = lose_row(signed)
    name = TokenName(job.id, 1, "0")
    for token in (sign_token(name, SecretStr("x" * 32)), "random"):
        with pytest.raises(InvalidSignatureError):
            receive(signed, token, build_completion())
    assert signed.read(job) == job
    assert list_strays(signed) == []


def test_delivery_too_large_to_read_has_fal_asked_about_the_job_of_its_token(signed):
    job, token = lose_row(signed)
    assert expect_poll(token, db=signed.db, token_secrets=SECRETS) is None
    signed.lose(begin_later(signed, job))
    published = expect_poll(token, db=signed.db, token_secrets=SECRETS)
    assert published == Doorbell(Step.RECONCILE, job.id)
    assert expect_poll(token, db=signed.db) is None


# ------------------------------------------------------------------ the job is lost


@pytest.mark.both_databases
def test_delivery_of_a_job_without_a_row_is_kept_and_counted(signed):
    submission = signed.begin(signed.insert())
    remove_job(signed.db, submission.job)
    for receive, kept in (
        (hint, ("hint", 1, 1)),
        (deliver, ("kept", 1, 2)),
        (hint, ("kept", 1, 3)),
    ):
        receipt = receive(signed, submission.token, build_completion())
        assert (receipt.verdict, receipt.job, receipt.doorbell) == (Verdict.STRAY, None, None)
        assert list_strays(signed) == [kept]
    with signed.db.reading() as connection:
        (finding,) = find_strays(connection)
    assert (finding.check, finding.job_id) == (Check.STRAY_DELIVERY, submission.job.id)
    assert finding.fal_request_id == REQUEST_ID


def test_delivery_of_a_request_that_another_job_has_is_kept(signed):
    """Two jobs of the same input and seed: the listing has paired them the other way round."""
    signed.make_submitted(REQUEST_ID)
    job, token = lose_row(signed)
    assert deliver(signed, token, build_completion(REQUEST_ID)).verdict is Verdict.STRAY
    assert signed.read(job) == job
