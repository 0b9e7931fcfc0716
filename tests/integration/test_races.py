"""Everybody at once on the same jobs: nobody fails, no two charges are confused, no deadlock."""

from collections.abc import Callable
from functools import partial

import pytest
from uuid_utils.compat import uuid7

from tests.harness.stages import SECOND, UNKNOWN, Bench, build_completion, build_failure
from tests.harness.together import call_together
from worker.fal.submit import Accepted, RefusalClass, Refused
from worker.ground.errors import InvalidSignatureError, PaysAgainError, TooLateError
from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Attempt
from worker.stages.submit import Submission

pytestmark = [
    pytest.mark.both_databases,
    pytest.mark.slow,  # rounds of many threads, and PostgreSQL looks for a deadlock after a second
]

S = JobState
ROUNDS = 5
LOCKED = Refused(RefusalClass.ACCOUNT, 403, "locked", "User is locked.")


def tolerate(call: Callable[[], object]) -> Callable[[], None]:
    """Too late, or told otherwise, is an answer; a deadlock is not."""

    def attempt() -> None:
        try:
            call()
        except (TooLateError, InvalidSignatureError, PaysAgainError):
            return

    return attempt


def adopt(bench: Bench, attempt: Attempt, request_id: str) -> object:
    return bench.reconciler.resolver._adopt(attempt, request_id, "found")


def test_reply_webhook_poll_sweep_adoption_and_cancellation_at_once(bench):
    for number in range(ROUNDS):
        jobs = [bench.insert() for _ in range(3)]
        submissions = [bench.begin(job) for job in jobs]
        ids = [str(uuid7()) for _ in jobs]
        if number % 2:
            bench.lose(submissions[0])
        bench.clock.move(UNKNOWN)
        calls: list[Callable[[], object]] = [bench.sweep, bench.sweep]
        for submission, request_id in zip(submissions, ids, strict=True):
            calls += make_calls(bench, submission, request_id)
        call_together(*map(tolerate, calls))
        for job, request_id in zip(jobs, ids, strict=True):
            (attempt,) = bench.attempts(job)
            after = bench.read(job)
            assert attempt.fal_request_id == request_id
            assert after.state is S.COMPLETED
            assert bench.reasons(job).count("result_arrived") == 1
            assert attempt.extra_charge_at is None
        bench.clock.move(SECOND)


def make_calls(bench: Bench, submission: Submission, request_id: str) -> list[Callable[[], object]]:
    accepted = Accepted(request_id, None, None, None)
    return [
        lambda: bench.reply(submission, accepted),
        lambda: bench.deliver(submission, build_completion(request_id)),
        lambda: adopt(bench, submission.attempt, request_id),
        lambda: bench.cancel(submission.job),
    ]


def test_refusals_of_the_account_beside_sweeps_and_probes(bench):
    for _ in range(ROUNDS):
        jobs = [bench.insert() for _ in range(6)]
        first, second = bench.begin(jobs[0]), bench.begin(jobs[1])
        bench.reply(first, LOCKED)
        bench.clock.move(UNKNOWN)
        calls: list[Callable[[], object]] = [bench.sweep, bench.sweep]
        calls += [partial(bench.reply, second, LOCKED)]
        calls += [partial(bench.try_begin, None)] * 4
        call_together(*map(tolerate, calls))
        tried = sum(len(bench.attempts(job)) for job in jobs[2:])
        assert tried <= 1
        bench.clock.move(UNKNOWN)
        bench.sweep()
        probe = bench.try_begin(None)
        assert probe is not None
        bench.reply(probe, Accepted(str(uuid7()), None, None, None))
        assert bench.pause() is None


def test_two_jobs_of_one_input_that_adopt_one_request_at_once(bench):
    """The reply of one, the search of the other: one of them has it, and nobody fails for it."""
    for _ in range(ROUNDS):
        mine, twin = bench.begin(bench.insert()), bench.begin(bench.insert())
        bench.lose(mine)
        request_id = str(uuid7())
        accepted = Accepted(request_id, None, None, None)
        call_together(
            partial(bench.keep, mine, accepted),
            partial(bench.keep, twin, accepted),
        )
        holders = [one.fal_request_id for job in (mine, twin) for one in bench.attempts(job.job)]
        assert sorted(holders, key=str) == sorted([None, request_id], key=str)


def test_redrive_beside_late_news(bench):
    for _ in range(ROUNDS):
        submission = bench.begin(bench.insert())
        request_id = str(uuid7())
        bench.accept(submission, request_id)
        bench.deliver(submission, build_failure(request_id))
        call_together(
            *map(
                tolerate,
                [
                    partial(bench.redrive, submission.job, pay_again=True),
                    partial(bench.redrive, submission.job, pay_again=True),
                    partial(bench.deliver, submission, build_completion(request_id)),
                    partial(bench.accept, submission, request_id),
                    bench.sweep,
                ],
            )
        )
        job = bench.read(submission.job)
        assert job.state is S.COMPLETED
        assert (job.due_at is None) == (job.state in ENDED)
        assert bench.reasons(job).count("submit_redriven") <= 1
