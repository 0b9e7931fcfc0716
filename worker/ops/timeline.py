"""A job's history, why it failed and what it waits for, in words for people and programs."""

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
from worker.jobs.admission import ACCOUNT, Pause, list_pauses
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.values import Attempt, Delivery, Ending, Event, Job, Outcome
from worker.stages.redrive import choose_restart
from worker.stages.resolve import ResolvePolicy

# ------------------------------------------------------------------ times in states


@dataclass(frozen=True, slots=True)
class TimeInState:
    """The time a job spent in one state, and its events; the current state has no `until`.

    `duration` grows while the job is in the state, and is None for an end state.
    """

    state: JobState
    since: datetime
    until: datetime | None
    duration: timedelta | None
    events: tuple[Event, ...]


def list_times_in_state(events: Sequence[Event], now: datetime) -> list[TimeInState]:
    """In order of time. An event that does not change the state belongs to the current one."""
    visits: list[list[Event]] = []
    for event in events:
        if visits and event.from_state is event.to_state:
            visits[-1].append(event)
        else:
            visits.append([event])
    ends = [*(visit[0].at for visit in visits[1:]), None]
    measured = []
    for visit, end in zip(visits, ends, strict=False):
        state, since = visit[0].to_state, visit[0].at
        has_ended = end is None and state in ENDED
        duration = None if has_ended else max((end or now) - since, timedelta())
        measured.append(TimeInState(state, since, end, duration, tuple(visit)))
    return measured


# ------------------------------------------------------------------ explain


# Our own codes for runs that fal has finished.
OWN_CODES = frozenset({"invalid_result", "result_gone", UNNAMED_CODE})
AGAIN = {
    Retryable.YES: "a new run may succeed: extend-video redrive {id} --pay-again",
    Retryable.MAYBE: "a new run may succeed (fal does not say): "
    "extend-video redrive {id} --pay-again",
    Retryable.NO: "a new run fails in the same way: enqueue another input",
}
CHARGES = {Charge.NO: "not charged by fal", Charge.POSSIBLE: "possibly charged by fal"}


@dataclass(frozen=True, slots=True)
class FieldError:
    """fal's error for one input field; `field` is empty if it concerns the whole input."""

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
        """Whether fal says that the same input fails again; a cancelled run does not tell."""
        return self.retryable is Retryable.NO and self.error_class is not ErrorClass.CALLER


def explain_failure(job: Job, attempts: list[Attempt]) -> Explanation | None:
    """Why fal failed the job; None if it did not fail, or not at fal."""
    code = job.error_code
    if job.state is not JobState.FAILED or code is None or not _is_fals(job, code, attempts):
        return None
    fields = list_field_errors(job)
    known = find_error_type(code, names_fields=bool(fields))
    retryable = known.retryable
    if (said := _read_header(attempts)) is not None:
        # The header is about this run, the error type about all runs that fail so.
        retryable = Retryable.YES if said else Retryable.NO
    return Explanation(known.error_class, known.sentence, retryable, known.charge, fields)


def will_fail_again(job: Job, attempts: list[Attempt]) -> bool:
    """Whether fal says that a failed job's input fails again, by its type or by its header."""
    explanation = explain_failure(job, attempts)
    if explanation is not None:
        return explanation.fails_again
    return job.state is JobState.FAILED and _read_header(attempts) is False


def _read_header(attempts: list[Attempt]) -> bool | None:
    """Whether fal's header calls the newest attempt retryable, if that attempt has failed."""
    newest = attempts[-1] if attempts else None
    return newest.retryable if newest is not None and newest.ending == Ending.FAILED else None


def list_field_errors(job: Job) -> tuple[FieldError, ...]:
    details = [one for one in job.error_details or [] if isinstance(one, dict)]
    return tuple(
        FieldError(name_field(one), str(one.get("type", "")), str(one.get("msg", "")))
        for one in details
    )


def describe_explanation(explanation: Explanation, job: Job) -> dict[str, str]:
    """One line of text for each part, by its name."""
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
    """Fal's error types are stored unchanged, so a code that is not ours is fal's."""
    if code in ERROR_TYPES or job.error_details:
        return True
    return code not in OWN_CODES and bool(attempts) and attempts[-1].ending == Ending.FAILED


# ------------------------------------------------------------------ waiting


STUCK = (
    "if this lasts longer than a few SWEEP_SECONDS, scheduler and workers may be down: "
    "check with extend-video status"
)
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "extend-video redrive {id} archives the paid result again",
    JobEvent.SUBMIT_REDRIVEN: "extend-video redrive {id} submits it; nothing has been paid yet",
    JobEvent.POLL_REDRIVEN: "extend-video redrive {id} fetches the paid result from fal again",
}
PAY_AGAIN = "extend-video redrive {id} --pay-again buys a new run"
ANOTHER_INPUT = (
    "enqueue another input, because fal says that this one fails again; "
    "extend-video redrive {id} --pay-again buys a new run of it anyway"
)
CANCEL_FREE = "extend-video cancel {id} cancels it at no charge"
CANCEL_AT_FAL = "extend-video cancel {id} requests its cancellation at fal"
CANCEL_REQUESTED = "its cancellation has been requested"
PAID = "its result is paid and recorded, so it can no longer be cancelled"


@dataclass(frozen=True, slots=True)
class Wait:
    """The sentence and its parts; `until` is None where no time is set."""

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
    gate: Pause | None,
    now: datetime,
    *,
    policy: ResolvePolicy | None = None,
) -> Wait:
    """What the job waits for; `gate` is the pause of all submissions, if there is one.

    With `policy` it says when an unknown submission counts as not accepted, and what follows.
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
    """The time in UTC, with the date unless it is today's."""
    day = "" if at.date() == now.date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S} UTC"


def _explain_queued(job: Job, gate: Pause | None, now: datetime) -> _Case:
    if gate is not None:
        waits_for = f"fal to accept our account again, like all submissions ({gate.reason})"
        then = "one waiting job is submitted, and all follow once fal accepts it"
        may_do = f"correct the account or FAL_KEY, nothing else is needed; {CANCEL_FREE}"
        return _Case(waits_for, gate.until, then, may_do)
    if _is_overdue(job, now):
        return _explain_overdue(job, "be submitted", CANCEL_FREE)
    if job.blocked_reason is not None:
        waits_for = f"its next attempt, because fal throttled it ({job.blocked_reason})"
        return _Case(waits_for, job.due_at, "it is submitted again", CANCEL_FREE)
    then = "the sweep publishes it again"
    return _Case("a free worker to submit it", job.due_at, then, CANCEL_FREE)


def _explain_claimed(job: Job, now: datetime) -> _Case:
    is_download = job.state is JobState.ARCHIVING
    waits_for = f"fal's reply to the submission by {job.claimed_by}"
    then = (
        "the submission counts as unknown unless that worker has renewed its claim: fal's listing "
        "is searched for it, and nothing is sent twice"
    )
    may_do = CANCEL_AT_FAL if job.cancel_requested_at is None else CANCEL_REQUESTED
    if is_download:
        waits_for = f"{job.claimed_by} to download the video"
        then = "another worker downloads it unless the claim has been renewed"
        may_do = PAID
    if _is_overdue(job, now):
        waits_for = f"the next sweep, because the claim of {job.claimed_by} has expired"
        may_do = f"{may_do}; {STUCK}"
    return _Case(waits_for, job.due_at, then, may_do)


def _explain_unknown(
    job: Job, attempts: Sequence[Attempt], now: datetime, policy: ResolvePolicy | None
) -> _Case:
    if job.is_held:
        waits_for = f"an operator's decision ({job.blocked_reason})"
        then = "fal's listing is searched for it again, and it remains held if it is not found"
        may_do = f"{PAY_AGAIN}; extend-video cancel {{id}} cancels it"
        return _Case(waits_for, job.due_at, then, may_do)
    waits_for = (
        f"evidence of whether fal accepted it ({job.blocked_reason or 'its outcome is unknown'})"
    )
    then = f"fal's listing is searched for it; {_predict_expiry(job, attempts, now, policy)}"
    anew = "extend-video redrive {id} --pay-again submits it again at once and may pay twice"
    may_do = anew if job.cancel_requested_at else f"{CANCEL_AT_FAL} once it is found; {anew}"
    return _Case(waits_for, job.due_at, then, may_do)


def _predict_expiry(
    job: Job, attempts: Sequence[Attempt], now: datetime, policy: ResolvePolicy | None
) -> str:
    """When the newest attempt counts as not accepted without further evidence, and what follows."""
    since = attempts[-1].started_at if attempts else job.enqueued_at
    if policy is None:
        when = f"UNKNOWN_SECONDS after {describe_time(since, now)}"
        return f"{when} it counts as not accepted, and UNKNOWN_POLICY decides what follows"
    lost = {Outcome.UNKNOWN, Outcome.DEAD}
    spent = sum(one.outcome in lost and one.started_at >= job.tried_since for one in attempts)
    if job.cancel_requested_at is not None:
        follows = "is cancelled as requested"
    elif spent >= policy.max_attempts:
        follows = f"fails, because {spent} submissions were lost"
    elif policy.policy is UnknownPolicy.HOLD:
        follows = "is held for an operator"
    else:
        follows = "is submitted once more"
    wait = policy.judge_after(attempts[-1]) if attempts else policy.unknown_after
    at = describe_time(since + wait, now)
    return f"from {at} on it counts as not accepted if it is not found, and {follows}"


def _explain_submitted(job: Job, newest: Attempt | None, now: datetime) -> _Case:
    status = _describe_status(newest)
    if job.cancel_requested_at is not None:
        answer = newest.cancel_status if newest is not None else None
        waits_for = f"fal to end it, as requested (fal replied {answer or 'nothing yet'})"
        then = "fal is polled for how it ended; a result that arrives anyway is archived"
        return _Case(waits_for, job.due_at, then, CANCEL_REQUESTED)
    if job.is_unrecordable:
        waits_for = f"the database to accept fal's result ({job.blocked_reason})"
        then = "it is fetched from fal again"
        may_do = "correct what the reason names: fal keeps the paid result for a limited time"
        return _Case(waits_for, job.due_at, then, may_do)
    if job.is_unanswered:
        status = f"{status} ({job.blocked_reason})"
    if _is_overdue(job, now):
        return _explain_overdue(job, f"be polled at fal{status}", CANCEL_AT_FAL)
    then = "fal is polled, with growing pauses"
    return _Case(f"fal's webhook{status}", job.due_at, then, CANCEL_AT_FAL)


def _describe_status(newest: Attempt | None) -> str:
    if newest is None or newest.fal_status is None:
        return ""
    ahead = "" if newest.queue_position is None else f", {newest.queue_position} ahead"
    return f" (fal's last status: {newest.fal_status}{ahead})"


def _explain_completed(job: Job, now: datetime) -> _Case:
    if _is_overdue(job, now):
        return _explain_overdue(job, "be downloaded", PAID)
    if job.blocked_reason is not None:
        waits_for = f"its next download, because the last one failed ({job.blocked_reason})"
        return _Case(waits_for, job.due_at, "it is downloaded again", PAID)
    then = "the sweep publishes it again"
    return _Case("a free worker to download the video", job.due_at, then, PAID)


def _explain_end(job: Job, attempts: Sequence[Attempt]) -> _Case:
    if job.state is JobState.ARCHIVED:
        then = f"its video is at {job.archive_uri}"
        return _Case("nothing", None, then, "nothing has to be done")
    became = f"it has failed ({job.error_code})"
    if job.state is JobState.CANCELLED:
        became = "it was cancelled"
    then = f"{became}; only a late result changes that"
    return _Case("nothing", None, then, _find_restart(job, attempts))


def _explain_overdue(job: Job, aim: str, may_do: str) -> _Case:
    """It is due, and no worker has taken it yet."""
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


READ_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Story:
    """A job with its attempts, deliveries and events, and what it waits for."""

    job: Job
    attempts: list[Attempt]
    deliveries: list[Delivery]
    events: list[Event]
    stays: list[TimeInState]
    wait: Wait


def read_story(
    job_id: UUID, *, db: Database, policy: ResolvePolicy | None = None, clock: Clock = read_clock
) -> Story:
    """Raises JobNotFoundError. `policy` is needed to predict what becomes of an unknown job."""
    with db.reading() as connection:
        job = table.get_job(connection, job_id)
        tried = attempts.list_attempts(connection, job_id)
        received = deliveries.list_deliveries(connection, job_id)
        events = table.list_events(connection, job_id)
        gate = next(iter(list_pauses(connection, ACCOUNT)), None)
    now = clock()
    wait = explain_wait(job, tried, gate, now, policy=policy)
    return Story(job, tried, received, events, list_times_in_state(events, now), wait)


def find_job_ended_since(job_id: UUID, since: datetime, *, db: Database) -> Job | None:
    """The job, if it has failed or was cancelled since then."""
    with db.reading() as connection:
        job = table.find_job(connection, job_id)
    ended_at = None if job is None else job.failed_at or job.cancelled_at
    return job if ended_at is not None and ended_at >= since else None


def find_newest_attempt(job_id: UUID, *, db: Database) -> Attempt | None:
    """How far the job's request is; much cheaper than `read_story`."""
    with db.reading() as connection:
        known = attempts.list_attempts(connection, job_id)
    return known[-1] if known else None


def foresee_restart(job: Job, *, db: Database) -> JobEvent | None:
    """Where a redrive without a new payment would restart the job; None if it needs one."""
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
    on_read_events: Callable[[], object] | None = None,
) -> Iterator[Event]:
    """Each event of the job as it comes, up to its end. Raises TimeoutError after `patience`.

    `on_read_events` is called between reads of the table; what it raises is raised here. Raises
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
        if on_read_events is not None:
            on_read_events()
        pause_between_reads()


def pause_between_reads() -> None:
    """The pause between two reads of the table."""
    time.sleep(READ_PAUSE_SECONDS)
