"""What becomes of a submission whose reply was lost: adopted, proven dead, held, or waited for."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.harness.clock import FakeClock
from tests.harness.fal import LISTING, build_item, list_items, show_status
from tests.harness.jobs import LEASE, REQUEST_ID
from tests.harness.stages import (
    SECOND,
    UNKNOWN,
    Bench,
    build_completion,
    build_empty,
    build_failure,
    find_attempt,
    open_clients,
)
from tests.harness.together import call_together
from worker.ground.settings import UnknownPolicy
from worker.jobs.states import Doorbell, JobState, Step
from worker.jobs.values import Job, Outcome
from worker.stages.resolve import SEARCH_PAUSE
from worker.stages.submit import Submission

S = JobState
OTHER_ID = "7f3c1d0e-0000-4000-8000-00000000bbbb"


def lose(bench: Bench, **columns: object) -> Submission:
    submission = bench.begin(bench.insert(**columns))
    bench.lose(submission)
    return submission


def look_after(bench: Bench, job: Job, waited: timedelta) -> list[Doorbell]:
    """Ask about the job so long after its submission."""
    attempt = bench.attempts(job)[-1]
    bench.clock.now = attempt.started_at + waited
    return bench.reconcile(job)


# ------------------------------------------------------------------ found in the listing


@pytest.mark.both_databases
def test_request_with_the_exact_input_is_adopted_and_polled_at_once(bench, desk):
    submission = lose(bench)
    desk.listing = list_items(
        build_item("other", {"seed": 8}), build_item(REQUEST_ID, submission.job.input)
    )
    assert bench.reconcile(submission.job) == [Doorbell(Step.RECONCILE, submission.job.id)]
    job, attempt = bench.read(submission.job), find_attempt(bench, submission)
    assert (job.state, job.fal_request_id, job.due_at) == (S.SUBMITTED, REQUEST_ID, bench.clock())
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)
    assert job.blocked_reason is None
    assert "exact input" in str(bench.events(job)[-1].detail)


@pytest.mark.both_databases
def test_request_that_any_attempt_knows_is_skipped(bench, desk):
    """Two jobs may have the very same input."""
    bench.make_submitted(REQUEST_ID)
    submission = lose(bench)
    desk.listing = list_items(build_item(REQUEST_ID, submission.job.input))
    bench.reconcile(submission.job)
    assert bench.read(submission.job).state is S.SUBMISSION_UNKNOWN
    desk.listing = list_items(
        build_item(REQUEST_ID, submission.job.input), build_item(OTHER_ID, submission.job.input)
    )
    look_after(bench, submission.job, LEASE + SEARCH_PAUSE * 2)
    assert bench.read(submission.job).fal_request_id == OTHER_ID


@pytest.mark.both_databases
def test_twins_are_told_apart_only_once_neither_can_answer(bench, desk):
    first, second = lose(bench), lose(bench)
    sent = first.job.input
    desk.listing = list_items(build_item(REQUEST_ID, sent), build_item(OTHER_ID, sent))
    bench.reconcile(first.job)
    assert {bench.read(one.job).state for one in (first, second)} == {S.SUBMISSION_UNKNOWN}
    look_after(bench, second.job, UNKNOWN)
    found = {bench.read(one.job).fal_request_id for one in (first, second)}
    assert found == {REQUEST_ID, OTHER_ID}


def test_twin_whose_post_is_under_way_keeps_the_other_waiting(bench, desk):
    first = lose(bench)
    twin = bench.begin(bench.insert())
    desk.listing = list_items(build_item(REQUEST_ID, first.job.input))
    bench.reconcile(first.job)
    assert bench.read(first.job).state is S.SUBMISSION_UNKNOWN
    bench.accept(twin, REQUEST_ID)
    bench.clock.move(SEARCH_PAUSE)
    bench.reconcile(first.job)
    assert bench.read(first.job).state is S.SUBMISSION_UNKNOWN
    assert bench.read(twin.job).fal_request_id == REQUEST_ID


@pytest.mark.both_databases
def test_one_search_serves_all_unknown_jobs_of_all_workers(bench, desk):
    lost = [lose(bench, input={"prompt": "on", "seed": seed}) for seed in range(4)]
    desk.listing = list_items(*(build_item(f"r{i}", one.job.input) for i, one in enumerate(lost)))
    call_together(*(lambda one=one: bench.reconcile(one.job) for one in lost))
    assert desk.count("GET", LISTING) == 1
    assert {bench.read(one.job).state for one in lost} == {S.SUBMITTED}


def test_job_that_comes_while_another_searches_is_looked_at_soon(bench, desk):
    first, second = lose(bench), lose(bench, input={"seed": 8})
    bench.reconcile(first.job)
    bench.reconcile(second.job)
    assert desk.count("GET", LISTING) == 1
    due_at = bench.read(second.job).due_at
    assert due_at is not None
    assert due_at <= bench.clock() + SEARCH_PAUSE


# ------------------------------------------------------------------ proven dead


@pytest.mark.both_databases
def test_absence_is_proof_after_its_time_and_the_job_is_submitted_again(bench, desk):
    job = lose(bench).job
    look_after(bench, job, UNKNOWN - SECOND)
    assert bench.read(job).state is S.SUBMISSION_UNKNOWN
    assert look_after(bench, job, UNKNOWN + SECOND) == [Doorbell(Step.SUBMIT, job.id)]
    (attempt,) = bench.attempts(job)
    event = bench.events(job)[-1]
    assert (bench.read(job).state, attempt.outcome) == (S.QUEUED, Outcome.DEAD)
    assert (event.reason, event.detail) == (
        "death_proven",
        "no webhook within 5401 s, and fal's listing has no request with its input",
    )
    assert bench.submit(job) is not None
    assert bench.read(job).state is S.SUBMITTED


def test_running_request_that_the_listing_omits_comes_to_light_once_it_has_ended(bench, desk):
    submission = lose(bench)
    look_after(bench, submission.job, UNKNOWN / 2)
    desk.listing = list_items(build_item(REQUEST_ID, submission.job.input))
    look_after(bench, submission.job, UNKNOWN)
    assert bench.read(submission.job).fal_request_id == REQUEST_ID


@pytest.mark.both_databases
def test_bound_on_lost_submissions_ends_the_job_and_counts_anew_after_a_redrive(bench, desk):
    job = bench.insert()
    for _ in range(3):
        bench.lose(bench.begin(job))
        look_after(bench, job, UNKNOWN)
    ended = bench.read(job)
    assert (ended.state, ended.error_code) == (S.FAILED, "submission_exhausted")
    assert [one.outcome for one in bench.attempts(job)] == [Outcome.DEAD] * 3
    bench.clock.move(SECOND)
    bench.redrive(job, pay_again=True)
    for _ in range(2):
        bench.lose(bench.begin(job))
        look_after(bench, job, UNKNOWN)
        assert bench.read(job).state is S.QUEUED
    bench.lose(bench.begin(job))
    look_after(bench, job, UNKNOWN)
    assert bench.read(job).state is S.FAILED


# ------------------------------------------------------------------ held


@pytest.fixture
def holding(bench) -> Bench:
    held: Bench = bench.resolving(policy=UnknownPolicy.HOLD)
    return held


@pytest.mark.both_databases
def test_dead_submission_is_held_once_and_looked_for_for_ever(holding, desk):
    submission = lose(holding)
    for times in range(1, 5):
        look_after(holding, submission.job, UNKNOWN * times)
        job = holding.read(submission.job)
        assert (job.state, job.is_held) == (S.SUBMISSION_UNKNOWN, True)
        assert job.due_at is not None
        assert job.due_at > holding.clock()
        holding.turn()
    assert holding.reasons(submission.job).count("submission_held") == 1
    assert desk.count("POST") == 0
    desk.listing = list_items(build_item(REQUEST_ID, submission.job.input))
    look_after(holding, submission.job, UNKNOWN * 6)
    adopted = holding.read(submission.job)
    assert (adopted.state, adopted.blocked_reason) == (S.SUBMITTED, None)


def test_held_submission_is_taken_by_its_webhook(holding):
    submission = lose(holding)
    look_after(holding, submission.job, UNKNOWN)
    holding.deliver(submission, build_completion())
    assert holding.read(submission.job).state is S.COMPLETED


def test_held_submission_is_cancelled_at_once(holding):
    submission = lose(holding)
    look_after(holding, submission.job, UNKNOWN)
    assert holding.cancel(submission.job).job.state is S.CANCELLED


# ------------------------------------------------------------------ hints


@pytest.mark.both_databases
def test_hint_is_adopted_if_fal_knows_the_request(bench, desk):
    submission = lose(bench)
    receipt = bench.hint(submission, build_completion())
    assert receipt.doorbell == Doorbell(Step.RECONCILE, submission.job.id)
    assert bench.read(submission.job).due_at == bench.clock()
    assert bench.reconcile(submission.job) == [Doorbell(Step.RECONCILE, submission.job.id)]
    job = bench.read(submission.job)
    assert (job.state, job.fal_request_id) == (S.SUBMITTED, REQUEST_ID)
    assert desk.count("GET", LISTING) == 0


@pytest.mark.parametrize("answer", ["500", "dropped"])
def test_hint_that_fal_does_not_deny_is_no_proof_of_death(bench, desk, answer):
    submission = lose(bench)
    bench.hint(submission, build_completion())
    desk.status = answer
    look_after(bench, submission.job, UNKNOWN + SECOND)
    assert bench.read(submission.job).state is S.SUBMISSION_UNKNOWN
    desk.status = show_status("IN_PROGRESS")
    look_after(bench, submission.job, UNKNOWN + SECOND * 9)
    assert bench.read(submission.job).state is S.SUBMITTED


def test_hint_that_fal_denies_does_not_keep_the_dead_alive(bench, desk):
    submission = lose(bench)
    bench.hint(submission, build_completion())
    desk.forget()
    look_after(bench, submission.job, UNKNOWN)
    assert bench.read(submission.job).state is S.QUEUED


def test_hint_brings_a_job_back_that_was_given_up(bench, desk):
    submission = lose(bench)
    look_after(bench.resolving(max_attempts=1), submission.job, UNKNOWN)
    assert bench.read(submission.job).state is S.FAILED
    desk.finish()
    receipt = bench.hint(submission, build_completion())
    assert receipt.doorbell is not None
    for doorbell in bench.publish(receipt.doorbell):
        bench.publish(doorbell)
    assert bench.read(submission.job).state is S.COMPLETED


def test_request_that_a_webhook_named_is_taken_without_a_search(bench, desk):
    submission = bench.begin(bench.insert())
    bench.deliver(submission, build_empty())
    job = bench.read(submission.job)
    assert (job.state, job.fal_request_id, job.due_at) == (S.SUBMITTED, REQUEST_ID, bench.clock())
    desk.finish()
    bench.turn()
    assert bench.read(job).state is S.COMPLETED
    assert desk.count("GET", LISTING) == 0


# ------------------------------------------------------------------ a wish to cancel


@pytest.mark.both_databases
def test_wish_is_granted_once_death_is_proven(bench):
    job = lose(bench).job
    bench.cancel(job)
    look_after(bench, job, UNKNOWN)
    ended = bench.read(job)
    assert (ended.state, ended.due_at) == (S.CANCELLED, None)
    assert "no webhook" in str(bench.events(job)[-1].detail)


def test_wish_reaches_fal_once_the_request_is_found(bench, desk):
    submission = lose(bench)
    bench.cancel(submission.job)
    desk.listing = list_items(build_item(REQUEST_ID, submission.job.input))
    bench.reconcile(submission.job)
    bench.clock.move(SECOND)
    bench.turn()
    assert desk.count("PUT", f"/{REQUEST_ID}/cancel") == 1
    bench.deliver(submission, build_failure(code="client_cancelled"))
    assert bench.read(submission.job).state is S.CANCELLED


# ------------------------------------------------------------------ against the emulator


@pytest.fixture
def real(db, emulator) -> Iterator[Bench]:
    """On the emulator's clock, for it lists by its own."""
    with open_clients(emulator.url) as clients:
        yield Bench(db, *clients, FakeClock(datetime.now(UTC)))


def test_executed_submission_without_a_reply_is_found_finished_and_paid_once(real, emulator):
    prompt = f"lost on {real.db.engine.dialect.name}"
    emulator.order({"point": "submit", "kind": "execute_then_drop"})
    job = real.insert(input={"prompt": prompt, "video_url": f"{emulator.url}/files/a.mp4"})
    real.submit(job)
    assert real.read(job).state is S.SUBMISSION_UNKNOWN
    real.live(timedelta(minutes=3), timedelta(seconds=20))
    done = real.read(job)
    assert (done.state, len(real.attempts(job))) == (S.COMPLETED, 1)
    mine = [one for one in emulator.list_requests() if one["input"]["prompt"] == prompt]
    assert [one["request_id"] for one in mine] == [done.fal_request_id]


def test_result_erased_before_it_was_read_is_recovered_from_the_listing(real, emulator):
    job = real.insert(input={"prompt": "erased", "video_url": f"{emulator.url}/files/a.mp4"})
    moved = real.submit(job)
    assert moved is not None
    emulator.wait_for_status(str(moved.fal_request_id), "COMPLETED")
    assert emulator.client.post(f"/_emulator/requests/{moved.fal_request_id}/erase").is_success
    real.reconcile(job)
    assert real.read(job).state is S.COMPLETED
