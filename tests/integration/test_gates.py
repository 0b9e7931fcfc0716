"""While fal refuses the account one job at a time is tried, over all workers; the others wait."""

from datetime import timedelta
from itertools import count

import pytest

from tests.harness.fal import LOCKED, accept
from tests.harness.stages import PROBE, RETRY, SECOND, UNKNOWN, Bench
from tests.harness.together import call_together
from tests.harness.web import ScriptedHandler, send_json
from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused
from worker.jobs.states import Doorbell, JobState, Step
from worker.jobs.values import Job, Outcome
from worker.stages.submit import Submission

S = JobState
ACCOUNT = Refused(RefusalClass.ACCOUNT, 403, "fal_http_403", "User is locked.")
BUSY = Refused(RefusalClass.BUSY, 429, "fal_http_429", "too many")
INPUT = Refused(RefusalClass.INPUT, 422, "fal_http_422", "no")
UNAVAILABLE = Refused(RefusalClass.UNAVAILABLE, 503, "fal_unavailable", "away")
UNREACHABLE = Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", "refused")
AMBIGUOUS = Ambiguous(None, "dropped")
numbers = count(1)


def accepted() -> Accepted:
    return Accepted(f"request-{next(numbers)}", None, None, None)


def accept_anew(handler: ScriptedHandler) -> None:
    answer = accept(f"request-{next(numbers)}")
    answer(handler)


def pause(bench: Bench, words: Refused = ACCOUNT) -> Job:
    """The first job meets a refusal of the account."""
    submission = bench.begin(bench.insert())
    bench.reply(submission, words)
    return submission.job


def begin_probe(bench: Bench) -> Submission:
    """The pause is over, and this is the job that is tried."""
    bench.clock.move(PROBE)
    return bench.begin(bench.insert())


def count_attempts(bench: Bench, jobs: list[Job]) -> int:
    return sum(len(bench.attempts(job)) for job in jobs)


# ------------------------------------------------------------------ the pause


@pytest.mark.both_databases
def test_refusal_of_the_account_pauses_all_submissions(bench, desk):
    desk.submit = send_json(LOCKED, 403)
    first, second = bench.insert(), bench.insert()
    bench.submit(first)
    assert bench.submit(second) is None
    assert desk.count("POST") == 1
    found = bench.pause()
    assert found is not None
    assert found.until == bench.clock() + PROBE
    assert "User is locked" in found.reason
    for job in (bench.read(first), bench.read(second)):
        assert (job.state, job.blocked_by) == (S.QUEUED, None)
    assert [one.outcome for one in bench.attempts(first)] == [Outcome.POSTPONED]
    assert bench.attempts(second) == []


@pytest.mark.both_databases
def test_blocked_jobs_wait_without_attempts_and_events(bench):
    pause(bench)
    jobs = [bench.insert() for _ in range(4)]
    for _ in range(3):
        for job in jobs:
            assert bench.try_begin(job) is None
        bench.clock.move(SECOND)
    assert count_attempts(bench, jobs) == 0
    assert {tuple(bench.reasons(job)) for job in jobs} == {("enqueued",)}


def test_pause_does_not_touch_a_job_that_has_been_submitted(bench):
    job = bench.make_submitted("request-before")
    pause(bench)
    assert bench.try_begin(job) is None
    assert bench.read(job) == job


# ------------------------------------------------------------------ the probe


@pytest.mark.both_databases
def test_one_job_is_tried_of_many_at_once(bench):
    pause(bench)
    for _ in range(3):
        for _ in range(8):
            bench.insert()
        bench.clock.move(PROBE)
        begun = call_together(*[lambda: bench.try_begin(None)] * 8)
        [probe] = [one for one in begun if one is not None]
        bench.reply(probe, ACCOUNT)


def test_one_job_is_tried_at_a_time_while_the_account_stays_refused(bench, desk):
    desk.submit = send_json(LOCKED, 403)
    jobs = [bench.insert() for _ in range(5)]
    for job in jobs:
        bench.submit(job)
    for rounds in range(1, 5):
        bench.live(PROBE, PROBE / 4)
        assert desk.count("POST") <= 1 + rounds
    assert desk.count("POST") >= 3
    assert {bench.read(job).state for job in jobs} == {S.QUEUED}


@pytest.mark.both_databases
@pytest.mark.parametrize("reply", [Accepted("r", None, None, None), INPUT])
def test_certain_reply_to_the_probe_ends_the_pause(bench, reply):
    pause(bench)
    bench.reply(begin_probe(bench), reply)
    assert bench.pause() is None
    assert bench.try_begin(bench.insert()) is not None


@pytest.mark.both_databases
def test_ambiguous_reply_to_the_probe_leaves_the_pause(bench):
    pause(bench)
    probe = begin_probe(bench)
    bench.reply(probe, AMBIGUOUS)
    assert bench.pause() is not None
    assert bench.try_begin(bench.insert()) is None
    assert bench.read(probe.job).state is S.SUBMISSION_UNKNOWN
    bench.reply(begin_probe(bench), accepted())
    assert bench.pause() is None


@pytest.mark.both_databases
def test_refused_probe_keeps_the_pause_with_its_own_words(bench):
    pause(bench)
    probe = begin_probe(bench)
    words = Refused(RefusalClass.ACCOUNT, 401, "fal_http_401", "No such key.")
    bench.reply(probe, words)
    found = bench.pause()
    assert found is not None
    assert found.until == bench.clock() + PROBE
    assert "No such key" in str(found.reason)
    assert bench.read(probe.job).state is S.QUEUED


def test_probe_whose_worker_dies_is_followed_by_another(bench):
    pause(bench)
    probe = begin_probe(bench)
    bench.lose(probe)
    assert bench.pause() is not None
    second = begin_probe(bench)
    bench.reply(second, accepted())
    assert bench.pause() is None
    assert bench.read(probe.job).state is S.SUBMISSION_UNKNOWN


def test_reply_to_a_job_that_is_no_probe_does_not_end_the_pause(bench):
    """It was sent before the account was locked."""
    earlier = bench.begin(bench.insert())
    pause(bench)
    bench.reply(earlier, accepted())
    assert bench.pause() is not None


def test_late_reply_to_a_probe_that_was_given_up_ends_the_pause(bench):
    pause(bench)
    probe = begin_probe(bench)
    bench.lose(probe)
    bench.reply(probe, accepted())
    assert bench.pause() is None
    assert bench.read(probe.job).state is S.SUBMITTED


# ------------------------------------------------------------------ the sweep


@pytest.mark.both_databases
def test_sweep_publishes_for_nobody_before_the_time_and_for_one_after_it(bench):
    pause(bench)
    for _ in range(6):
        bench.insert()
    bench.clock.move(PROBE - SECOND)
    assert bench.sweep().doorbells == []
    bench.clock.move(SECOND)
    assert bench.sweep().doorbells == [Doorbell(Step.SUBMIT)]


def test_sweep_goes_on_ringing_for_jobs_that_need_no_submission(bench):
    job = bench.make_submitted("request-waiting")
    pause(bench)
    bench.clock.move(timedelta(minutes=3))
    assert Doorbell(Step.RECONCILE, job.id) in bench.sweep().doorbells


@pytest.mark.both_databases
def test_all_who_waited_are_submitted_when_the_pause_ends(bench, desk):
    desk.submit = send_json(LOCKED, 403)
    jobs = [bench.insert() for _ in range(6)]
    for _ in jobs:
        bench.submit()
    bench.clock.move(PROBE)
    desk.submit = accept_anew
    assert bench.submit() is not None
    bench.turn()
    assert {bench.read(job).state for job in jobs} == {S.SUBMITTED}
    assert desk.count("POST") == 1 + 6


# ------------------------------------------------------------------ waiting costs nothing


@pytest.mark.parametrize("reply", [ACCOUNT, BUSY])
def test_account_trouble_never_exhausts_and_neither_does_what_follows_it(bench, reply):
    job = pause(bench)
    for _ in range(5):
        bench.clock.move(RETRY)
        bench.reply(bench.begin(job), reply)
        assert bench.read(job).state is S.QUEUED
    for wait in (RETRY, RETRY - SECOND):
        bench.clock.move(wait)
        bench.sweep()
        bench.reply(bench.begin(job), UNREACHABLE)
        assert bench.read(job).state is S.QUEUED
    bench.clock.move(timedelta(minutes=5))
    bench.sweep()
    bench.reply(bench.begin(job), UNREACHABLE)
    assert (bench.read(job).state, bench.read(job).error_code) == (S.FAILED, "submission_exhausted")


def test_job_that_waited_long_for_a_worker_is_not_exhausted_by_its_first_refusal(bench):
    job = bench.insert()
    bench.clock.move(RETRY * 3)
    bench.reply(bench.begin(job), UNAVAILABLE)
    assert bench.read(job).state is S.QUEUED


def test_refusals_spend_none_of_the_bound_on_lost_submissions(bench):
    job = bench.insert()
    for reply in (BUSY, UNAVAILABLE, UNREACHABLE) * 2:
        bench.reply(bench.begin(job), reply)
        bench.clock.move(timedelta(minutes=10))
        bench.sweep()
    submission = bench.begin(job)
    bench.lose(submission)
    bench.clock.now = submission.attempt.started_at + UNKNOWN
    bench.reconcile(job)
    assert bench.read(job).state is S.QUEUED


def test_retry_after_is_obeyed_with_jitter_on_top(bench):
    later = Refused(RefusalClass.UNAVAILABLE, 503, "away", "later", timedelta(minutes=7))
    waits = set()
    for _ in range(2):
        moved = bench.reply(bench.begin(bench.insert()), later)
        assert moved is not None
        assert moved.due_at is not None
        waits.add(moved.due_at - bench.clock())
    assert min(waits) >= timedelta(minutes=7)
    assert max(waits) <= timedelta(minutes=7, seconds=20)
    assert len(waits) > 1
