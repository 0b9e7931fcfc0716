"""Why is it not done? What a job waits for now, until when, what follows, what one may do; pure.

The same words on a terminal, in JSON and on the page. They follow the rules of the stages: whoever
changes when a stage acts changes the words here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, assert_never

from worker.ground.clock import format_duration
from worker.ground.errors import PaysAgainError
from worker.ground.settings import UnknownPolicy
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Gate, Job, Outcome
from worker.ops.explain import will_fail_again
from worker.stages.redrive import choose_restart
from worker.stages.resolve import ResolvePolicy

STUCK = (
    "if this lasts longer than a few SWEEP_SECONDS, neither scheduler nor worker may be up: "
    "extend-video status tells"
)
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "extend-video redrive {id} archives the paid result again",
    JobEvent.SUBMIT_REDRIVEN: "extend-video redrive {id} submits it; nothing was paid so far",
    JobEvent.POLL_REDRIVEN: "extend-video redrive {id} asks fal once more for the paid result",
}
PAY_AGAIN = "extend-video redrive {id} --pay-again buys a new run"
ANOTHER_INPUT = (
    "enqueue another input, for fal says that this one fails again; "
    "extend-video redrive {id} --pay-again buys a new run of it all the same"
)
CANCEL_FREE = "extend-video cancel {id} gives it up for free"
CANCEL_ASKED = "extend-video cancel {id} has fal asked to give it up"
CANCEL_WISHED = "cancelling it was asked for already"
PAID = "its result is paid and recorded, so it can no longer be cancelled"


@dataclass(frozen=True, slots=True)
class Wait:
    """The sentence, and the parts that it is made of; `until` is empty where no time is set."""

    sentence: str
    waits_for: str
    until: datetime | None
    then: str
    may_do: str


class _Case(NamedTuple):
    waits_for: str
    until: datetime | None
    then: str
    may_do: str


def explain_wait(
    job: Job,
    attempts: Sequence[Attempt],
    gate: Gate | None,
    now: datetime,
    *,
    policy: ResolvePolicy | None = None,
) -> Wait:
    """What the job waits for; `gate` is the pause of all submissions, if there is one.

    With `policy` it says when an unknown submission is proven dead, and what follows then.
    """
    case = _choose_case(job, attempts, gate, now, policy)
    case = case._replace(may_do=case.may_do.format(id=job.id))
    return Wait(_compose(case, now), *case)


def describe_time(at: datetime, now: datetime) -> str:
    """The clock's time, with its date if that is not today's."""
    day = "" if at.date() == now.date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S} UTC"


def _choose_case(
    job: Job,
    attempts: Sequence[Attempt],
    gate: Gate | None,
    now: datetime,
    policy: ResolvePolicy | None,
) -> _Case:
    match job.state:
        case JobState.QUEUED:
            return _explain_queued(job, gate, now)
        case JobState.SUBMITTING | JobState.ARCHIVING:
            return _explain_claimed(job, now)
        case JobState.SUBMISSION_UNKNOWN:
            return _explain_unknown(job, attempts, now, policy)
        case JobState.SUBMITTED:
            return _explain_submitted(job, attempts[-1] if attempts else None, now)
        case JobState.COMPLETED:
            return _explain_completed(job, now)
        case JobState.ARCHIVED | JobState.FAILED | JobState.CANCELLED:
            return _explain_end(job, attempts)
        case _:
            assert_never(job.state)


def _explain_queued(job: Job, gate: Gate | None, now: datetime) -> _Case:
    if gate is not None:
        waits_for = f"fal to take our account again, like all submissions ({gate.reason})"
        then = "one waiting job is tried, and all follow once fal takes it"
        may_do = f"put the account or FAL_KEY right, nothing else is needed; {CANCEL_FREE}"
        return _Case(waits_for, gate.opens_at, then, may_do)
    if _is_overdue(job, now):
        return _explain_overdue(job, "be submitted", CANCEL_FREE)
    if job.blocked_reason is not None:
        waits_for = f"its next try, for fal turned it away ({job.blocked_reason})"
        return _Case(waits_for, job.due_at, "it is submitted again", CANCEL_FREE)
    then = "the sweep rings for it again"
    return _Case("a free worker to submit it", job.due_at, then, CANCEL_FREE)


def _explain_claimed(job: Job, now: datetime) -> _Case:
    is_download = job.state is JobState.ARCHIVING
    waits_for = f"fal's reply to the submission by {job.claimed_by}"
    then = (
        "the job counts as unknown unless that worker has renewed its claim: fal's listing is "
        "searched for it, and nothing is sent twice"
    )
    may_do = CANCEL_ASKED if job.cancel_requested_at is None else CANCEL_WISHED
    if is_download:
        waits_for = f"{job.claimed_by} to download the video"
        then = "another worker downloads it unless that one has renewed its claim"
        may_do = PAID
    if _is_overdue(job, now):
        waits_for = f"the next sweep, for {job.claimed_by} has let its claim run out"
        may_do = f"{may_do}; {STUCK}"
    return _Case(waits_for, job.due_at, then, may_do)


def _explain_unknown(
    job: Job, attempts: Sequence[Attempt], now: datetime, policy: ResolvePolicy | None
) -> _Case:
    if job.is_held:
        waits_for = f"an operator's decision ({job.blocked_reason})"
        then = "fal's listing is searched for it once more, and it stays held if it is not there"
        may_do = f"{PAY_AGAIN}; extend-video cancel {{id}} gives it up"
        return _Case(waits_for, job.due_at, then, may_do)
    waits_for = f"a sign of whether fal has it ({job.blocked_reason or 'its outcome is unknown'})"
    then = f"fal's listing is searched for it; {_foresee_death(job, attempts, now, policy)}"
    anew = "extend-video redrive {id} --pay-again submits it anew at once and may pay twice"
    may_do = anew if job.cancel_requested_at else f"{CANCEL_ASKED} once it is found; {anew}"
    return _Case(waits_for, job.due_at, then, may_do)


def _foresee_death(
    job: Job, attempts: Sequence[Attempt], now: datetime, policy: ResolvePolicy | None
) -> str:
    """What follows, and when, if nothing is heard of the newest attempt."""
    since = attempts[-1].started_at if attempts else job.enqueued_at
    if policy is None:
        when = f"UNKNOWN_SECONDS after {describe_time(since, now)}"
        return f"{when} it counts as dead, and UNKNOWN_POLICY says what follows"
    lost = {Outcome.UNKNOWN, Outcome.DEAD}
    spent = sum(one.outcome in lost and one.started_at >= job.tried_since for one in attempts)
    if job.cancel_requested_at is not None:
        follows = "is cancelled, as was asked for"
    elif spent >= policy.max_attempts:
        follows = f"fails, for {spent} submissions were lost"
    elif policy.policy is UnknownPolicy.HOLD:
        follows = "is held for an operator"
    else:
        follows = "is submitted once more"
    wait = policy.judge_after(attempts[-1]) if attempts else policy.unknown_after
    at = describe_time(since + wait, now)
    return f"from {at} on it counts as dead if it is not there, and {follows}"


def _explain_submitted(job: Job, newest: Attempt | None, now: datetime) -> _Case:
    told = _describe_status(newest)
    if job.cancel_requested_at is not None:
        answer = newest.cancel_status if newest is not None else None
        waits_for = f"fal to end it, as was asked for (fal answered {answer or 'nothing yet'})"
        then = "fal is asked how it ended; a result that comes all the same is archived"
        return _Case(waits_for, job.due_at, then, CANCEL_WISHED)
    if job.is_unrecordable:
        waits_for = f"the database to take what fal has made ({job.blocked_reason})"
        then = "fal is asked for it again"
        may_do = "put right what the reason names: fal keeps the paid result for a limited time"
        return _Case(waits_for, job.due_at, then, may_do)
    if job.is_unanswered:
        told = f"{told} ({job.blocked_reason})"
    if _is_overdue(job, now):
        return _explain_overdue(job, f"be asked about at fal{told}", CANCEL_ASKED)
    then = "fal is asked about it, and again after growing pauses"
    return _Case(f"fal's webhook{told}", job.due_at, then, CANCEL_ASKED)


def _describe_status(newest: Attempt | None) -> str:
    if newest is None or newest.fal_status is None:
        return ""
    ahead = "" if newest.queue_position is None else f", {newest.queue_position} ahead"
    return f" (fal's last word: {newest.fal_status}{ahead})"


def _explain_completed(job: Job, now: datetime) -> _Case:
    if _is_overdue(job, now):
        return _explain_overdue(job, "be downloaded", PAID)
    if job.blocked_reason is not None:
        waits_for = f"its next download, for the last one failed ({job.blocked_reason})"
        return _Case(waits_for, job.due_at, "it is downloaded again", PAID)
    then = "the sweep rings for it again"
    return _Case("a free worker to download the video", job.due_at, then, PAID)


def _explain_end(job: Job, attempts: Sequence[Attempt]) -> _Case:
    if job.state is JobState.ARCHIVED:
        then = f"its video is at {job.archive_uri}"
        return _Case("nothing", None, then, "nothing has to be done")
    became = f"it has failed ({job.error_code})"
    if job.state is JobState.CANCELLED:
        became = "it was given up"
    then = f"{became}, and stays so unless a result comes late"
    return _Case("nothing", None, then, _find_restart(job, attempts))


def _explain_overdue(job: Job, aim: str, may_do: str) -> _Case:
    """Its time has come, and nobody has taken it yet."""
    waits_for = f"the next sweep, to {aim}"
    return _Case(waits_for, job.due_at, "a worker takes it", f"{may_do}; {STUCK}")


def _find_restart(job: Job, attempts: Sequence[Attempt]) -> str:
    try:
        event, _ = choose_restart(job, list(attempts), pay_again=False)
    except PaysAgainError:
        return ANOTHER_INPUT if will_fail_again(job, list(attempts)) else PAY_AGAIN
    return RESTARTS[event]


def _is_overdue(job: Job, now: datetime) -> bool:
    return job.due_at is not None and job.due_at <= now


def _compose(case: _Case, now: datetime) -> str:
    waits = f"It waits for {case.waits_for}"
    if case.until is None:
        return f"{waits}: {case.then}; {case.may_do}."
    at = describe_time(case.until, now)
    if case.until <= now:
        return (
            f"{waits}, due since {at} ({format_duration(now - case.until)} ago); "
            f"then {case.then}; {case.may_do}."
        )
    left = format_duration(case.until - now)
    return f"{waits}, until {at} (in {left}); then {case.then}; {case.may_do}."
