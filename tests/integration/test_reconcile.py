"""Asking fal about a job that waits for its webhook: what is a conclusion, and what is none."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.harness.fal import (
    FAILED,
    LISTING,
    NOT_FOUND,
    ScriptedFal,
    build_item,
    list_items,
    show_status,
)
from tests.harness.jobs import LEASE, REQUEST_ID, build_result
from tests.harness.stages import (
    POLL,
    SECOND,
    UNKNOWN,
    Bench,
    build_completion,
    build_empty,
    build_failure,
    find_attempt,
)
from tests.harness.web import Answer, break_off, send_json
from worker.jobs import table
from worker.jobs.checks import Check, check_slice
from worker.jobs.limits import MANY_POLLS
from worker.jobs.states import ENDED, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Job, Move
from worker.jobs.walks import next_slice
from worker.ops.timeline import explain_wait
from worker.stages.submit import Submission

S = JobState
HOUR = timedelta(hours=1)


def submit(bench: Bench) -> Submission:
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    return submission


def list_unanswered(bench: Bench) -> list[str]:
    with bench.db.reading() as connection:
        part = next_slice(connection, None)
        assert part is not None
        found = check_slice(connection, part, bench.clock())
        return [one.detail for one in found if one.check is Check.UNANSWERED_POLLS]


COMPLETED = show_status("COMPLETED")
# What each reply means: `unit/test_requests.py`.
NO_CONCLUSION: dict[str, tuple[Answer, Answer]] = {
    "in progress": (show_status("IN_PROGRESS"), NOT_FOUND),
    "status 404": (NOT_FOUND, NOT_FOUND),
    "status 500": (send_json({"detail": "oh"}, 500), NOT_FOUND),
    "result 404": (COMPLETED, NOT_FOUND),
    "result dropped": (COMPLETED, break_off(b"{")),
}


@pytest.mark.parametrize("name", NO_CONCLUSION)
def test_no_conclusion_leaves_the_job_waiting_and_it_is_asked_again(bench, desk, name):
    job = submit(bench).job
    desk.status, desk.result = NO_CONCLUSION[name]
    for waited in (POLL, HOUR, UNKNOWN * 2 - SECOND):
        bench.clock.now = bench.attempts(job)[0].started_at + waited
        assert bench.reconcile(job) == []
        after = bench.read(job)
        assert (after.state, after.fal_request_id) == (S.SUBMITTED, REQUEST_ID)
        assert after.due_at is not None
        assert POLL * 0.7 < after.due_at - bench.clock() < timedelta(minutes=19)
    desk.finish()
    bench.reconcile(job)
    assert bench.read(job).state is S.COMPLETED


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (send_json({"detail": "oh"}, 500), "the status call answered 500"),
        (send_json({}), "the status call named no known status"),
    ],
    ids=["500", "no-status"],
)
def test_polls_that_fail_are_counted_in_the_row_and_found_by_the_doctor(bench, desk, answer, why):
    job = submit(bench).job
    desk.status = answer
    for count in ("1 poll", "2 polls in a row", "3 polls in a row"):
        assert list_unanswered(bench) == []
        with capture_logs() as logs:
            bench.reconcile(job)
        assert bench.read(job).blocked_reason == f"unanswered: {why} ({count})"
        assert why in str(explain_wait(bench.read(job), bench.attempts(job), None, bench.clock()))
        told = [one["reason"] for one in logs if one["event"] == "poll_failed"]
        assert told == [why]
    assert list_unanswered(bench) == [bench.read(job).blocked_reason]
    assert desk.count("GET", LISTING) == 1, "the third has the listing asked"
    desk.status = show_status("IN_PROGRESS")
    bench.reconcile(job)
    assert bench.read(job).blocked_reason is None
    desk.status = answer
    bench.reconcile(job)
    assert bench.read(job).blocked_reason == f"unanswered: {why} (1 poll)"


def test_result_of_a_request_whose_polls_fail_is_taken_from_the_listing(bench, desk):
    job = submit(bench).job
    desk.status = send_json({}, 500)
    desk.listing = list_items(build_item(json_output=build_result()))
    for _ in range(MANY_POLLS):
        assert bench.read(job).state is S.SUBMITTED
        bench.reconcile(job)
    assert (bench.read(job).state, bench.read(job).blocked_reason) == (S.COMPLETED, None)


def test_job_is_not_given_up_because_its_polls_fail(bench, desk):
    job = submit(bench).job
    desk.status = send_json({}, 500)
    desk.listing = list_items(build_item())
    bench.clock.move(UNKNOWN * 5)
    for _ in range(MANY_POLLS + 1):
        bench.reconcile(job)
    assert bench.read(job).state is S.SUBMITTED


def test_running_request_is_never_given_up(bench, desk):
    job = submit(bench).job
    bench.clock.move(timedelta(days=3))
    bench.reconcile(job)
    assert bench.read(job).state is S.SUBMITTED


@pytest.mark.both_databases
def test_finished_request_goes_through_the_same_door_as_its_webhook(bench, desk):
    submission = submit(bench)
    desk.finish()
    assert bench.reconcile(submission.job) == [Doorbell(Step.ARCHIVE, submission.job.id)]
    job, attempt = bench.read(submission.job), find_attempt(bench, submission)
    assert (job.state, job.result) == (S.COMPLETED, build_result())
    assert (attempt.ending, attempt.completed_at) == ("ok", bench.clock())
    bench.deliver(submission, build_completion())
    assert bench.read(job) == job
    assert bench.reasons(job).count("result_arrived") == 1


def test_lost_webhook_costs_minutes_and_never_the_hour(bench, desk):
    job = submit(bench).job
    bench.live(timedelta(minutes=45), timedelta(minutes=3))
    desk.finish()
    finished_at = bench.clock()
    while bench.read(job).state is S.SUBMITTED:
        bench.clock.move(timedelta(minutes=1))
        bench.turn()
        assert bench.clock() - finished_at < HOUR / 2
    assert bench.read(job).state is S.COMPLETED


@pytest.mark.both_databases
def test_failed_request_fails_the_job_by_its_type(bench, desk):
    job = submit(bench).job
    desk.fail()
    assert bench.reconcile(job) == []
    failed = bench.read(job)
    assert (failed.state, failed.due_at, failed.error_code) == (S.FAILED, None, "bad_video")
    assert failed.error_message


# ------------------------------------------------------------------ a result that is gone


def gone(desk: ScriptedFal) -> None:
    desk.status, desk.result = COMPLETED, NOT_FOUND


def forgotten(desk: ScriptedFal) -> None:
    desk.forget()


GONE = pytest.mark.parametrize("lost", [gone, forgotten], ids=lambda one: one.__name__)


@GONE
def test_result_that_the_listing_has_kept_is_recovered(bench, desk, lost):
    job = submit(bench).job
    lost(desk)
    desk.listing = list_items(build_item(json_output=build_result()))
    bench.reconcile(job)
    assert (bench.read(job).state, bench.read(job).result) == (S.COMPLETED, build_result())


@GONE
def test_failure_that_the_listing_has_kept_is_recorded(bench, desk, lost):
    job = submit(bench).job
    lost(desk)
    desk.listing = list_items(build_item(status_code=422, json_output=FAILED))
    bench.reconcile(job)
    assert (bench.read(job).state, bench.read(job).error_code) == (S.FAILED, "bad_video")


@GONE
@pytest.mark.parametrize(
    ("listing", "times"),
    [(list_items(build_item()), 1), (list_items(), 2)],
    ids=["ended", "never-listed"],
)
def test_result_is_given_up_only_after_its_time(bench, desk, lost, listing, times):
    submission = submit(bench)
    job, started_at = submission.job, submission.attempt.started_at
    lost(desk)
    desk.listing = listing
    bench.clock.now = started_at + UNKNOWN * times - SECOND
    bench.reconcile(job)
    assert bench.read(job).state is S.SUBMITTED
    bench.clock.now = started_at + UNKNOWN * times
    assert bench.reconcile(job) == []
    ended = bench.read(job)
    assert (ended.state, ended.error_code) == (S.FAILED, "result_gone")
    assert REQUEST_ID in str(ended.error_message)


@pytest.mark.parametrize(
    ("listing", "account"),
    [(send_json({}, 401), "tester"), (list_items(), "another key")],
    ids=["listing-unreadable", "another-account"],
)
def test_result_that_nobody_can_deny_is_never_given_up(bench, desk, listing, account):
    job = submit(bench).job
    desk.forget()
    desk.listing = listing
    bench.clock.move(UNKNOWN * 5)
    bench.resolving(account=account).reconcile(job)
    assert bench.read(job).state is S.SUBMITTED


def test_result_is_not_given_up_while_the_listing_says_that_it_runs(bench, desk):
    job = submit(bench).job
    desk.forget()
    desk.listing = list_items(build_item(ended_at=None))
    bench.clock.move(UNKNOWN * 5)
    bench.reconcile(job)
    assert bench.read(job).state is S.SUBMITTED


@pytest.mark.both_databases
def test_result_that_was_given_up_is_taken_when_a_webhook_brings_it(bench, desk):
    submission = submit(bench)
    desk.forget()
    bench.clock.move(UNKNOWN * 2)
    bench.reconcile(submission.job)
    assert bench.read(submission.job).state is S.FAILED
    bench.deliver(submission, build_completion())
    job = bench.read(submission.job)
    assert (job.state, job.error_code, job.error_message) == (S.COMPLETED, None, None)
    assert find_attempt(bench, submission).ending == "ok"


# ------------------------------------------------------------------ who asks, and when


def test_completion_without_payload_is_fetched_at_once(bench, desk):
    submission = submit(bench)
    receipt = bench.deliver(submission, build_empty())
    assert receipt.doorbell == Doorbell(Step.RECONCILE, submission.job.id)
    assert bench.read(submission.job).due_at == bench.clock()
    desk.finish()
    bench.publish(receipt.doorbell)
    assert bench.read(submission.job).state is S.COMPLETED


def test_hint_has_fal_asked_at_once_and_is_not_believed(bench, desk):
    submission = submit(bench)
    receipt = bench.hint(submission, build_failure())
    assert bench.read(submission.job).due_at == bench.clock()
    assert receipt.doorbell is not None
    bench.publish(receipt.doorbell)
    assert bench.read(submission.job).state is S.SUBMITTED
    desk.finish()
    bench.publish(receipt.doorbell)
    assert bench.read(submission.job).state is S.COMPLETED


@pytest.mark.both_databases
def test_webhook_that_comes_during_the_poll_wins(bench, desk):
    submission = submit(bench)

    def deliver_meanwhile(handler):
        bench.deliver(submission, build_completion())
        show_status("IN_PROGRESS")(handler)

    desk.status = deliver_meanwhile
    assert bench.reconcile(submission.job) == []
    job = bench.read(submission.job)
    assert (job.state, job.due_at) == (S.COMPLETED, bench.clock() + LEASE)


@pytest.mark.both_databases
def test_failure_webhook_that_comes_during_the_last_poll_wins(bench, desk):
    submission = submit(bench)
    bench.clock.move(UNKNOWN * 2)

    def deliver_meanwhile(handler):
        bench.deliver(submission, build_failure())
        NOT_FOUND(handler)

    desk.status, desk.result = deliver_meanwhile, NOT_FOUND
    bench.reconcile(submission.job)
    assert bench.read(submission.job).error_code == "bad_video"
    assert bench.reasons(submission.job).count("failure_arrived") == 1


def archive(bench: Bench, job: Job) -> None:
    claim = Claim("tester:2", bench.clock(), bench.clock() + LEASE)
    with bench.db.transaction() as connection:
        claimed = table.claim_job(connection, job.id, JobEvent.ARCHIVE_CLAIMED, claim)
        assert claimed is not None
        table.apply_permitted(connection, claimed, JobEvent.ARCHIVE_RECORDED, Move(bench.clock()))


def end(bench: Bench, desk: ScriptedFal, name: str) -> Submission:
    """A job at its end, by what fal has said or not said of its request."""
    submission = submit(bench)
    match name:
        case "failed":
            bench.deliver(submission, build_failure())
        case "cancelled":
            bench.cancel(submission.job)
            bench.deliver(submission, build_failure(code="client_cancelled"))
        case "archived":
            bench.deliver(submission, build_completion())
            archive(bench, submission.job)
        case _:
            desk.forget()
            bench.clock.move(UNKNOWN * 2)
            bench.reconcile(submission.job)
    assert bench.read(submission.job).state in ENDED
    return submission


@pytest.mark.parametrize("name", ["cancelled", "archived", "gone"])
def test_late_doorbell_leaves_an_ended_job_alone(bench, desk, name):
    submission = end(bench, desk, name)
    before, events = bench.read(submission.job), bench.events(submission.job)
    desk.asked.clear()
    for step in Step:
        if step is not Step.ARCHIVE:
            assert bench.publish(Doorbell(step, before.id)) == []
    assert (bench.read(before), bench.events(before)) == (before, events)
    assert desk.asked == []


@pytest.mark.parametrize(("name", "told"), [("failed", "hint"), ("archived", "empty")])
def test_stale_redelivery_leaves_a_job_alone_whose_request_is_known_to_have_ended(
    bench, desk, name, told
):
    submission = end(bench, desk, name)
    before = bench.read(submission.job)
    receipt = (
        bench.hint(submission, build_failure())
        if told == "hint"
        else bench.deliver(submission, build_empty())
    )
    for doorbell in [receipt.doorbell] if receipt.doorbell else []:
        assert bench.publish(doorbell) == []
    assert bench.read(before) == before


@pytest.mark.parametrize("state", [S.QUEUED, S.SUBMITTING])
def test_doorbell_for_a_job_that_does_not_wait_for_fal_asks_nothing(bench, desk, state):
    job = bench.insert()
    if state is S.SUBMITTING:
        bench.begin(job)
    before = bench.read(job)
    assert bench.reconcile(job) == []
    assert (bench.read(job), desk.asked) == (before, [])


def test_listing_is_not_searched_for_a_request_that_is_known(bench, desk):
    job = submit(bench).job
    bench.reconcile(job)
    assert desk.count("GET", LISTING) == 0
