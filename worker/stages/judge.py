"""Beneath the path. What fal's reply to a submission means for the job and its attempt; pure.

Refusals are sorted by class. Those that pass by send the job back until a time, with full jitter,
and are bounded by how long they go on; trouble with the account is the pause's (`pause.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import assert_never

import httpx
from pydantic import SecretStr

from worker.fal.http import ACCOUNT_CODES
from worker.fal.options import RequestOptions
from worker.fal.requests import find_retention
from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Backoff, choose_poll_delay
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Job, Move, Outcome, Settlement
from worker.stages.pause import ACCOUNT_GATE, describe_pause

BACKOFFS = {
    RefusalClass.BUSY: Backoff(timedelta(seconds=20), timedelta(minutes=10)),
    RefusalClass.UNREACHABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
    RefusalClass.UNAVAILABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
}

# A refusal tells something of these only: in any other state the request has shown itself.
NOT_YET_AT_FAL = frozenset({JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN})


@dataclass(frozen=True, slots=True)
class SubmitPolicy:
    """What every submission of this worker shares."""

    worker: str
    webhook_base_url: str
    options: RequestOptions
    lease: timedelta
    poll_after: timedelta
    retry_for: timedelta
    probe_after: timedelta
    account: str | None = field(default=None, kw_only=True)
    """A fingerprint of the key, stored with each attempt."""
    token_secrets: Sequence[SecretStr] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Ruling:
    """One edge for the job, one settlement for its attempt."""

    event: JobEvent
    move: Move
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Streak:
    """So many refusals in a row, since then. Trouble with the account breaks it: that may last."""

    tries: int
    since: datetime


def judge_reply(
    reply: SubmitReply, job: Job, now: datetime, policy: SubmitPolicy, streak: Streak
) -> Ruling:
    """What a reply means for the job and its attempt; pure but for the jitter."""
    match reply:
        case Accepted():
            known = {"fal_request_id": reply.fal_request_id}
            delay = choose_poll_delay(policy.poll_after, retention=find_retention(job.input))
            return Ruling(
                JobEvent.SUBMISSION_ACCEPTED,
                Move(now, now + delay, columns=known),
                Settlement(Outcome.ACCEPTED, now, httpx.codes.OK, **asdict(reply)),
            )
        case Refused():
            return _judge_refusal(reply, job, now, policy, streak)
        case Ambiguous(http_status, message):
            blocked = {"blocked_reason": f"fal may or may not have it: {message}"}
            return Ruling(
                JobEvent.SUBMISSION_LOST,
                # The listing is searched at once: it may know.
                Move(now, now, message, blocked),
                Settlement(Outcome.UNKNOWN, now, http_status, error_message=message),
            )
        case _:
            assert_never(reply)


def _judge_refusal(
    reply: Refused, job: Job, now: datetime, policy: SubmitPolicy, streak: Streak
) -> Ruling:
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None and job.state in NOT_YET_AT_FAL:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        return Ruling(JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), settlement)
    if reply.why is RefusalClass.INPUT:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        details = {"error_details": list(reply.details) or None}
        move = Move(now, detail=reply.message, columns={**why, **details})
        return Ruling(JobEvent.SUBMISSION_REJECTED, move, settlement)
    settlement = Settlement(Outcome.POSTPONED, now, reply.http_status, **why)
    # Trouble with the account is not the job's: it waits as long as it takes.
    if reply.why is not RefusalClass.ACCOUNT and now - streak.since >= policy.retry_for:
        message = f"turned away for {policy.retry_for}, at last {describe_refusal(reply)}"
        exhausted = {"error_code": "submission_exhausted", "error_message": message}
        move = Move(now, detail=message, columns=exhausted)
        return Ruling(JobEvent.SUBMISSION_EXHAUSTED, move, settlement)
    blocked = {"blocked_reason": describe_refusal(reply)}
    move = Move(now, now + choose_delay(reply, streak.tries, policy), reply.message, blocked)
    return Ruling(JobEvent.SUBMISSION_POSTPONED, move, settlement)


def choose_delay(reply: Refused, tries: int, policy: SubmitPolicy) -> timedelta:
    """As fal asks, and full jitter on top; the account's own pause is the gate's."""
    if reply.why is RefusalClass.ACCOUNT:
        return policy.probe_after
    return reply.retry_after + BACKOFFS[reply.why].draw(tries)


def describe_refusal(reply: Refused) -> str:
    words = f"{reply.code}: {reply.message}"
    return describe_pause(ACCOUNT_GATE, words) if reply.why is RefusalClass.ACCOUNT else words


def measure_streak(tried: Sequence[Attempt], attempt: Attempt, since: datetime) -> Streak:
    """How long the job has been turned away without a break, up to this attempt; pure."""
    streak = Streak(1, attempt.started_at)
    for earlier in sorted(tried, key=lambda one: one.number, reverse=True):
        if earlier.number >= attempt.number:
            continue
        if earlier.outcome != Outcome.POSTPONED or earlier.http_status in ACCOUNT_CODES:
            break
        if earlier.started_at < since:
            break
        streak = Streak(streak.tries + 1, earlier.started_at)
    return streak
