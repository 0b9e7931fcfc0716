"""One sentence for each state: what the job waits for, until when, what follows, what to do."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.harness.jobs import NOW, build_result
from tests.harness.values import ATTEMPT, JOB, JOB_ID
from worker.ground.settings import UnknownPolicy
from worker.jobs.states import ENDED, BlockedBy, JobState, PauseCause
from worker.jobs.values import Job
from worker.ops.timeline import describe_time, explain_wait
from worker.ops.waiting import Hold
from worker.stages.resolve import ResolvePolicy

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
TERMS = ResolvePolicy(90 * MINUTE, UnknownPolicy.RESUBMIT, 3, MINUTE)
PAUSED = Hold(
    "account",
    "submissions to be resumed",
    "fal refuses the account: fal_http_403: no balance",
    3,
    NOW + MINUTE,
    NOW + HOUR,
    PauseCause.ACCOUNT,
)
CANCEL = f"extend-video cancel {JOB_ID}"
REDRIVE = f"extend-video redrive {JOB_ID}"


def build_job(state: JobState, **columns: object) -> Job:
    values: dict[str, object] = {"blocked_reason": None, "due_at": NOW + MINUTE, "fence": 1}
    if state in ENDED:
        values["due_at"] = None
    if state in {JobState.SUBMITTING, JobState.ARCHIVING}:
        values["claimed_by"] = "host:1:a"
    return replace(JOB, state=state, **(values | columns))  # type: ignore[arg-type]  # any column


def test_wait_of_each_state_tells_its_parts_in_one_sentence() -> None:
    for state in JobState:
        wait = explain_wait(build_job(state), [ATTEMPT], None, NOW)
        assert wait.sentence.startswith("It waits for ")
        assert wait.sentence.endswith(".")
        for part in (wait.waits_for, wait.then, wait.may_do):
            assert part
            assert part in wait.sentence
        # A queued job waits for its turn, which no time brings.
        has_time = state not in ENDED and state is not JobState.QUEUED
        assert (wait.until is not None) == has_time
        assert ("12:01:00 UTC (in 1 min)" in wait.sentence) == has_time


def test_overdue_wait_says_since_when_and_where_to_look() -> None:
    for state in set(JobState) - ENDED - {JobState.QUEUED}:
        wait = explain_wait(build_job(state), [ATTEMPT], None, NOW + 2 * MINUTE, policy=TERMS)
        assert "due since 12:01:00 UTC (1 min ago)" in wait.sentence
        assert "next sweep" in wait.waits_for
        assert "extend-video status" in wait.may_do


def test_queued_job_that_nothing_holds_waits_for_a_worker_whatever_its_due_time() -> None:
    wait = explain_wait(build_job(JobState.QUEUED), [], None, NOW + HOUR)
    assert wait.waits_for == "a free worker to submit it"
    assert wait.until is None
    assert wait.then == "the next submission takes it"
    assert wait.may_do == f"{CANCEL} cancels it at no charge"


def test_job_that_fal_turned_away_waits_for_its_next_try() -> None:
    words = "fal_unreachable: no {route}"
    job = build_job(JobState.QUEUED, blocked_by=BlockedBy.RETRY.value, blocked_reason=words)
    hold = Hold("retry", "its next attempt", words, 2, NOW + MINUTE, None)
    wait = explain_wait(job, [ATTEMPT], hold, NOW)
    assert wait.waits_for == f"its next attempt ({words}; place 2 in its tenant's queue)"
    assert wait.until == NOW + MINUTE
    assert wait.then == "it has its turn"


def test_pause_of_all_submissions_is_told_with_place_and_estimate() -> None:
    job = build_job(JobState.QUEUED, due_at=NOW + HOUR)
    wait = explain_wait(job, [], PAUSED, NOW)
    assert "no balance; place 3 in its tenant's queue" in wait.waits_for
    assert "by an estimate it is submitted at about 13:00:00 UTC" in wait.waits_for
    assert wait.until == PAUSED.until
    assert "FAL_KEY" in wait.may_do
    busy = explain_wait(job, [], replace(PAUSED, pause=PauseCause.BUSY), NOW)
    assert busy.may_do == f"nothing has to be done; {CANCEL} cancels it at no charge"


def test_what_holds_queued_jobs_does_not_concern_what_is_at_fal() -> None:
    job = build_job(JobState.SUBMITTED)
    assert explain_wait(job, [ATTEMPT], PAUSED, NOW) == explain_wait(job, [ATTEMPT], None, NOW)


def test_submitted_job_tells_fal_s_last_word() -> None:
    attempt = replace(ATTEMPT, fal_status="IN_QUEUE", queue_position=3)
    wait = explain_wait(build_job(JobState.SUBMITTED), [attempt], None, NOW)
    assert wait.waits_for == "fal's webhook (fal's last status: IN_QUEUE, 3 ahead)"
    assert wait.may_do == f"{CANCEL} requests its cancellation at fal"


def test_submitted_job_to_be_cancelled_waits_for_fal_to_end_it() -> None:
    job = build_job(JobState.SUBMITTED, cancel_requested_at=NOW)
    attempt = replace(ATTEMPT, cancel_status="CANCELLATION_REQUESTED")
    wait = explain_wait(job, [attempt], None, NOW)
    assert "CANCELLATION_REQUESTED" in wait.waits_for
    assert CANCEL not in wait.sentence
    assert "a result that arrives anyway is archived" in wait.then


UNKNOWN_JOB = build_job(JobState.SUBMISSION_UNKNOWN, blocked_reason="fal may or may not have it")
LOST = replace(ATTEMPT, outcome="unknown")


@pytest.mark.parametrize(
    ("columns", "follows"),
    [({}, "UNKNOWN_POLICY decides"), ({"cancel_requested_at": NOW}, "it is cancelled")],
)
def test_unknown_submission_foresees_when_it_counts_as_not_accepted(columns, follows) -> None:
    wait = explain_wait(replace(UNKNOWN_JOB, **columns), [LOST], None, NOW, policy=TERMS)
    assert f"not found from 13:30:00 UTC on, it counts as not accepted, and {follows}" in wait.then
    assert f"{REDRIVE} --pay-again" in wait.may_do
    assert "may pay twice" in wait.may_do


def test_held_submission_waits_for_an_operator() -> None:
    words = "held: no webhook within 5400 s"
    job = replace(UNKNOWN_JOB, blocked_by=BlockedBy.HOLD.value, blocked_reason=words)
    wait = explain_wait(job, [LOST], None, NOW, policy=TERMS)
    assert "an operator's decision (held: no webhook" in wait.waits_for
    assert f"{REDRIVE} --pay-again buys a new run" in wait.may_do
    assert f"{CANCEL} cancels it" in wait.may_do


def test_download_that_failed_waits_for_its_next_try() -> None:
    job = build_job(JobState.COMPLETED, blocked_reason="media_unavailable: 503")
    wait = explain_wait(job, [ATTEMPT], None, NOW)
    assert "media_unavailable: 503" in wait.waits_for
    assert wait.then == "a worker takes it"
    assert CANCEL not in wait.sentence


@pytest.mark.parametrize(
    ("attempts", "columns", "may_do"),
    [
        (
            [replace(ATTEMPT, outcome="rejected")],
            {},
            f"{REDRIVE} submits it; nothing has been paid yet",
        ),
        ([replace(ATTEMPT, outcome="accepted")], {}, f"{REDRIVE} --pay-again buys a new run"),
        (
            [replace(ATTEMPT, outcome="accepted")],
            {"result": build_result()},
            f"{REDRIVE} archives the paid result again",
        ),
        (
            [replace(ATTEMPT, outcome="accepted")],
            {"error_code": "content_policy_violation"},
            (
                "enqueue another input, because fal says that this one fails again; "
                f"{REDRIVE} --pay-again buys a new run of it anyway"
            ),
        ),
        (
            [replace(ATTEMPT, outcome="accepted")],
            {"error_code": "client_cancelled"},
            f"{REDRIVE} --pay-again buys a new run",
        ),
    ],
)
def test_failed_job_tells_the_cheapest_way_on(attempts, columns, may_do) -> None:
    wait = explain_wait(build_job(JobState.FAILED, **columns), attempts, None, NOW)
    assert wait.may_do == may_do


def test_archived_job_tells_where_its_video_is() -> None:
    job = build_job(JobState.ARCHIVED, archive_uri="file:///archive/a.mp4")
    sentence = explain_wait(job, [ATTEMPT], None, NOW).sentence
    assert sentence == (
        "It waits for nothing: its video is at file:///archive/a.mp4; nothing has to be done."
    )


def test_describe_time_of_another_day_has_its_date() -> None:
    assert describe_time(NOW, NOW + HOUR) == "12:00:00 UTC"
    assert describe_time(NOW, NOW + 24 * HOUR) == "2026-11-23 12:00:00 UTC"
