"""What has happened to a job so far: read for people and programs, never written."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, assert_never
from uuid import UUID

from worker.fal.errors import (
    ERROR_TYPES,
    UNNAMED_CODE,
    Charge,
    ErrorClass,
    Retryable,
    find_error_type,
    name_field,
)
from worker.ground.clock import Clock, format_duration, read_clock
from worker.ground.db import Database
from worker.ground.errors import PaysAgainError
from worker.ground.settings import UnknownPolicy
from worker.jobs import attempts, deliveries, table
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.values import Attempt, Delivery, Ending, Event, Gate, Job, Outcome
from worker.stages.admit import list_pauses
from worker.stages.redrive import choose_restart
from worker.stages.resolve import ResolvePolicy

# ------------------------------------------------------------------ stays


@dataclass(frozen=True, slots=True)
class Stay:
    """A time that a job spent in a state, and what happened in it; the last has no `until`.

    `duration` grows while the job is there, and is None of an end.
    """

    state: JobState
    since: datetime
    until: datetime | None
    duration: timedelta | None
    events: tuple[Event, ...]


def list_stays(events: Sequence[Event], now: datetime) -> list[Stay]:
    """In their order. What happens without leaving a state begins no new stay."""
    visits: list[list[Event]] = []
    for event in events:
        if visits and event.from_state is event.to_state:
            visits[-1].append(event)
        else:
            visits.append([event])
    ends = [*(visit[0].at for visit in visits[1:]), None]
    return [
        Stay(visit[0].to_state, visit[0].at, end, _measure(visit[0], end, now), tuple(visit))
        for visit, end in zip(visits, ends, strict=False)
    ]


def _measure(first: Event, end: datetime | None, now: datetime) -> timedelta | None:
    if end is None and first.to_state in ENDED:
        return None
    return max((end or now) - first.at, timedelta())


# ------------------------------------------------------------------ explain


# Codes of ours for runs that fal finished.
OWN_CODES = frozenset({"invalid_result", "result_gone", UNNAMED_CODE})
AGAIN = {
    Retryable.YES: "may end otherwise: extend-video redrive {id} --pay-again",
    Retryable.MAYBE: "may end otherwise, of which fal has said nothing: "
    "extend-video redrive {id} --pay-again",
    Retryable.NO: "ends the same way: enqueue another input",
}
CHARGES = {Charge.NO: "not charged by fal", Charge.POSSIBLE: "possibly charged by fal"}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What fal says about one input field; the field is empty if it is about the whole."""

    field: str
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A failure in plain words."""

    error_class: ErrorClass
    sentence: str
    retryable: Retryable
    charge: Charge
    fields: tuple[FieldError, ...]

    @property
    def fails_again(self) -> bool:
        """Whether fal says that the same input fails again; a cancelled run says nothing of it."""
        return self.retryable is Retryable.NO and self.error_class is not ErrorClass.CALLER


def explain_failure(job: Job, attempts: list[Attempt]) -> Explanation | None:
    """What became of a job that fal itself has failed; None of any other."""
    code = job.error_code
    if job.state is not JobState.FAILED or code is None or not _is_fals(job, code, attempts):
        return None
    fields = list_field_errors(job)
    known = find_error_type(code, names_fields=bool(fields))
    retryable = known.retryable
    if (said := _read_header(attempts)) is not None:
        # Of this very run, where the type speaks for all that fail so.
        retryable = Retryable.YES if said else Retryable.NO
    return Explanation(known.error_class, known.sentence, retryable, known.charge, fields)


def will_fail_again(job: Job, attempts: list[Attempt]) -> bool:
    """Whether fal says that a failed job's input fails again, by its type or by its header."""
    explanation = explain_failure(job, attempts)
    if explanation is not None:
        return explanation.fails_again
    return job.state is JobState.FAILED and _read_header(attempts) is False


def _read_header(attempts: list[Attempt]) -> bool | None:
    """What fal says of trying the newest attempt again, if it has failed."""
    newest = attempts[-1] if attempts else None
    return newest.retryable if newest is not None and newest.ending == Ending.FAILED else None


def list_field_errors(job: Job) -> tuple[FieldError, ...]:
    details = [one for one in job.error_details or [] if isinstance(one, dict)]
    return tuple(
        FieldError(name_field(one), str(one.get("type", "")), str(one.get("msg", "")))
        for one in details
    )


def describe_explanation(explanation: Explanation, job: Job) -> dict[str, str]:
    """By name, one line each."""
    lines = {
        "class": explanation.error_class.value,
        "means": explanation.sentence,
        "again": _describe_retry(explanation).format(id=job.id),
        "charge": CHARGES[explanation.charge],
    }
    for number, one in enumerate(explanation.fields, start=1):
        lines[f"field {number}"] = f"{one.field or 'input'}: {one.message} ({one.error_type})"
    return lines


def _describe_retry(explanation: Explanation) -> str:
    if explanation.retryable is Retryable.NO and not explanation.fails_again:
        return AGAIN[Retryable.YES]
    return AGAIN[explanation.retryable]


def _is_fals(job: Job, code: str, attempts: list[Attempt]) -> bool:
    """Fal's own types are kept verbatim, so a code that is none of ours is fal's."""
    if code in ERROR_TYPES or job.error_details:
        return True
    return code not in OWN_CODES and bool(attempts) and attempts[-1].ending == Ending.FAILED


# ------------------------------------------------------------------ waiting


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
    match job.state:
        case JobState.QUEUED:
            case = _explain_queued(job, gate, now)
        case JobState.SUBMITTING | JobState.ARCHIVING:
            case = _explain_claimed(job, now)
        case JobState.SUBMISSION_UNKNOWN:
            case = _explain_unknown(job, attempts, now, policy)
        case JobState.SUBMITTED:
            case = _explain_submitted(job, attempts[-1] if attempts else None, now)
        case JobState.COMPLETED:
            case = _explain_completed(job, now)
        case JobState.ARCHIVED | JobState.FAILED | JobState.CANCELLED:
            case = _explain_end(job, attempts)
        case _:
            assert_never(job.state)
    case = case._replace(may_do=case.may_do.format(id=job.id))
    return Wait(_compose(case, now), *case)


def describe_time(at: datetime, now: datetime) -> str:
    """The clock's time, with its date if that is not today's."""
    day = "" if at.date() == now.date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S} UTC"


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


# ------------------------------------------------------------------ story


LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Story:
    """A job with everything that was written about it, and what it waits for."""

    job: Job
    attempts: list[Attempt]
    deliveries: list[Delivery]
    events: list[Event]
    stays: list[Stay]
    wait: Wait


def read_story(
    job_id: UUID, *, db: Database, policy: ResolvePolicy | None = None, clock: Clock = read_clock
) -> Story:
    """Raises JobNotFoundError. `policy` let it foresee what becomes of an unknown one."""
    with db.reading() as connection:
        job = table.get_job(connection, job_id)
        tried = attempts.list_attempts(connection, job_id)
        received = deliveries.list_deliveries(connection, job_id)
        events = table.list_events(connection, job_id)
        gate = next(iter(list_pauses(connection)), None)
    now = clock()
    stays = list_stays(events, now)
    wait = explain_wait(job, tried, gate, now, policy=policy)
    return Story(job, tried, received, events, stays, wait)


def find_job_ended_since(job_id: UUID, since: datetime, *, db: Database) -> Job | None:
    """The job, if it has failed or was cancelled since then."""
    with db.reading() as connection:
        job = table.find_job(connection, job_id)
    ended_at = None if job is None else job.failed_at or job.cancelled_at
    return job if ended_at is not None and ended_at >= since else None


def find_newest_attempt(job_id: UUID, *, db: Database) -> Attempt | None:
    """How far the job's request is; much less to read than the whole story."""
    with db.reading() as connection:
        known = attempts.list_attempts(connection, job_id)
    return known[-1] if known else None


def foresee_restart(job: Job, *, db: Database) -> JobEvent | None:
    """From where an order without new money would restart the job; None if it takes some."""
    with db.reading() as connection:
        tried = attempts.list_attempts(connection, job.id)
    try:
        return choose_restart(job, tried, pay_again=False)[0]
    except PaysAgainError:
        return None


def fails_again(job: Job, *, db: Database) -> bool:
    """Whether fal says that the same input would fail again."""
    with db.reading() as connection:
        return will_fail_again(job, attempts.list_attempts(connection, job.id))


def follow_events(
    job_id: UUID,
    *,
    db: Database,
    patience: timedelta | None = None,
    on_look: Callable[[], object] | None = None,
) -> Iterator[Event]:
    """Each event of the job as it comes, up to its end. Raises TimeoutError after `patience`.

    `on_look` is called between looks at the table; what it raises ends the following. Raises
    JobNotFoundError at once.
    """
    read_story(job_id, db=db)
    deadline = None if patience is None else time.monotonic() + patience.total_seconds()
    seen = 0
    while True:
        with db.reading() as connection:
            events = table.list_events(connection, job_id)
        yield from events[seen:]
        seen = len(events)
        if events and events[-1].to_state in ENDED:
            return
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"job {job_id} is still {events[-1].to_state.value}")
        if on_look is not None:
            on_look()
        wait_a_look()


def wait_a_look() -> None:
    """How long a follower leaves the table alone."""
    time.sleep(LOOK_SECONDS)
