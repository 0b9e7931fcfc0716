"""A job's history, why it failed and what it waits for, in words for people and programs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from worker.jobs import admission, attempts, charges, deliveries, table
from worker.jobs.states import ENDED, BlockedBy, JobEvent, JobState, PauseCause
from worker.jobs.values import Attempt, Delivery, Ending, Event, Job
from worker.ops.waiting import Hold, find_hold, read_shared
from worker.stages.admit import Reason, choose_time
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
        """Whether fal says that the same input fails again; a cancelled run does not show it."""
        return self.retryable is Retryable.NO and self.error_class is not ErrorClass.CALLER


def explain_failure(job: Job, attempts: Sequence[Attempt]) -> Explanation | None:
    """Why fal failed the job; None if it did not fail, or not at fal."""
    code, failed = job.error_code, _find_failed(attempts)
    if job.state is not JobState.FAILED or code is None:
        return None
    # fal's error types are stored unchanged, so a code that is not ours is fal's.
    is_unnamed = code not in ERROR_TYPES and not job.error_details
    if is_unnamed and (failed is None or code in OWN_CODES):
        return None
    fields = tuple(
        FieldError(name_field(one), str(one.get("type", "")), str(one.get("msg", "")))
        for one in job.error_details or []
        if isinstance(one, dict)
    )
    known = find_error_type(code, names_fields=bool(fields))
    retryable = known.retryable
    if failed is not None and failed.retryable is not None:
        # The header is about this run, the error type about all runs that fail so.
        retryable = Retryable.YES if failed.retryable else Retryable.NO
    return Explanation(known.error_class, known.sentence, retryable, known.charge, fields)


def will_fail_again(job: Job, attempts: Sequence[Attempt]) -> bool:
    """Whether fal says that a failed job's input fails again, by its type or by its header."""
    explanation, failed = explain_failure(job, attempts), _find_failed(attempts)
    if explanation is not None:
        return explanation.fails_again
    return job.state is JobState.FAILED and failed is not None and failed.retryable is False


def _find_failed(attempts: Sequence[Attempt]) -> Attempt | None:
    """The newest attempt, if fal has failed it."""
    return attempts[-1] if attempts and attempts[-1].ending == Ending.FAILED else None


def describe_explanation(explanation: Explanation, job: Job) -> dict[str, str]:
    """One line of text for each part, by its name."""
    is_final = explanation.retryable is not Retryable.NO or explanation.fails_again
    return {
        "class": explanation.error_class.value,
        "means": explanation.sentence,
        "again": AGAIN[explanation.retryable if is_final else Retryable.YES].format(id=job.id),
        "charge": CHARGES[explanation.charge],
        **{
            f"field {number}": f"{one.field or 'input'}: {one.message} ({one.error_type})"
            for number, one in enumerate(explanation.fields, start=1)
        },
    }


# ------------------------------------------------------------------ waiting


CANCEL_FREE = "extend-video cancel {id} cancels it at no charge"
CANCEL_AT_FAL = "extend-video cancel {id} requests its cancellation at fal"
PAID = "its result is paid and recorded, so it can no longer be cancelled"
# By state: what a job waits for, what follows at its due time, and what an operator may do.
WAITS: Mapping[JobState, tuple[str, str, str]] = {
    JobState.QUEUED: (
        "a free worker to submit it",
        "the next submission takes it",
        CANCEL_FREE,
    ),
    JobState.SUBMITTING: (
        "fal's reply to its submission",
        "its outcome counts as unknown unless the claim was renewed, and nothing is sent twice",
        CANCEL_AT_FAL,
    ),
    JobState.SUBMISSION_UNKNOWN: (
        "evidence of whether fal accepted it",
        "fal's listing is searched for it",
        CANCEL_AT_FAL
        + "; extend-video redrive {id} --pay-again submits it again at once and may pay twice",
    ),
    JobState.SUBMITTED: ("fal's webhook", "fal is polled", CANCEL_AT_FAL),
    JobState.COMPLETED: (
        "a free worker to download the video",
        "the sweep publishes it again",
        PAID,
    ),
    JobState.ARCHIVING: (
        "a worker to download the video",
        "another worker downloads it unless the claim was renewed",
        PAID,
    ),
}
STUCK = (
    "if this lasts longer than a few SWEEP_SECONDS, scheduler and workers may be down: "
    "check with extend-video status"
)
PAY_AGAIN = "extend-video redrive {id} --pay-again buys a new run"
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "extend-video redrive {id} archives the paid result again",
    JobEvent.SUBMIT_REDRIVEN: "extend-video redrive {id} submits it; nothing has been paid yet",
    JobEvent.POLL_REDRIVEN: "extend-video redrive {id} fetches the paid result from fal again",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """The sentence and its parts; `until` is None where no time is set."""

    sentence: str
    waits_for: str
    until: datetime | None
    then: str
    may_do: str


def explain_wait(
    job: Job,
    attempts: Sequence[Attempt],
    hold: Hold | None,
    now: datetime,
    *,
    policy: ResolvePolicy | None = None,
) -> Wait:
    """What the job waits for; `hold` says what holds a queued one.

    With `policy` it says when an unknown submission counts as not accepted, and what follows.
    """
    if job.state in ENDED:
        return _explain_end(job, attempts)
    if job.state is JobState.QUEUED:
        return _explain_queued(job, hold, now)
    until, notes = job.due_at, _list_notes(job, attempts)
    waits_for, then, may_do = WAITS[job.state]
    if job.cancel_requested_at is not None:
        may_do = may_do.replace(CANCEL_AT_FAL, "its cancellation has been requested")
        if job.state is JobState.SUBMITTED:
            waits_for = "fal to end it, as requested"
            then = "fal is polled for how it ended; a result that arrives anyway is archived"
    if job.state is JobState.SUBMISSION_UNKNOWN and policy is not None and not job.is_held:
        since = attempts[-1].started_at if attempts else job.enqueued_at
        wait = policy.judge_after(attempts[-1]) if attempts else policy.unknown_after
        at = describe_time(since + wait, now)
        follows = "it is cancelled" if job.cancel_requested_at else "UNKNOWN_POLICY decides"
        then = f"{then}; not found from {at} on, it counts as not accepted, and {follows}"
    if job.is_held:
        waits_for = "an operator's decision"
        may_do = f"{PAY_AGAIN}; extend-video cancel {{id}} cancels it"
    elif job.is_unrecordable:
        waits_for, may_do = "the database to accept fal's result", "correct what the reason names"
    elif until is not None and until <= now:
        waits_for, may_do = "the next sweep", f"{may_do}; {STUCK}"
    elif job.blocked_reason and job.state is JobState.COMPLETED:
        waits_for, then = "its next attempt", "a worker takes it"
    return _compose(waits_for, notes, until, then, may_do.format(id=job.id), now)


def _compose(
    waits_for: str,
    notes: Sequence[str | None],
    until: datetime | None,
    then: str,
    may_do: str,
    now: datetime,
) -> Wait:
    reasons = "; ".join(note for note in notes if note)
    waits_for = f"{waits_for} ({reasons})" if reasons else waits_for
    sentence = f"It waits for {waits_for}{_describe_until(until, now)} then {then}; {may_do}."
    return Wait(sentence, waits_for, until, then, may_do)


def _explain_queued(job: Job, hold: Hold | None, now: datetime) -> Wait:
    """By what holds it; its due time counts only while it has a reason of its own."""
    waits_for, then, may_do = WAITS[job.state]
    may_do, notes = may_do.format(id=job.id), [job.blocked_reason]
    if hold is None:
        until = job.due_at if job.blocked_by is not None else None
        return _compose(waits_for, notes, until, then, may_do, now)
    at = hold.estimated_submit_at
    about = f"by an estimate it is submitted at about {describe_time(at, now)}" if at else None
    notes = [hold.detail, f"place {hold.place} in its tenant's queue", about]
    match hold.blocked_by:
        case Reason.ACCOUNT if hold.pause is PauseCause.OPERATOR:
            then = "the waiting jobs are submitted in turn"
            may_do = f"extend-video limits resume account ends the pause; {may_do}"
        case Reason.ACCOUNT:
            then = "one waiting job is submitted, and all follow once fal accepts it"
            correct = "correct the account or FAL_KEY, nothing else is needed"
            is_refused = hold.pause is PauseCause.ACCOUNT
            may_do = f"{correct if is_refused else 'nothing has to be done'}; {may_do}"
        case Reason.BUDGET | Reason.TENANT | Reason.RATE | Reason.IN_FLIGHT:
            may_do = f"extend-video limits shows and sets what is allowed; {may_do}"
        case BlockedBy.RETRY | BlockedBy.NOT_BEFORE:
            then = "it has its turn"
    return _compose(hold.waits_for, notes, hold.until, then, may_do, now)


def _list_notes(job: Job, attempts: Sequence[Attempt]) -> list[str | None]:
    """What the rows say of the wait: the reason, who has claimed the job, fal's last answers."""
    newest = attempts[-1] if attempts and job.state is JobState.SUBMITTED else None
    notes = [job.blocked_reason, job.claimed_by and f"claimed by {job.claimed_by}"]
    if newest is not None and newest.fal_status is not None:
        ahead = "" if newest.queue_position is None else f", {newest.queue_position} ahead"
        notes.append(f"fal's last status: {newest.fal_status}{ahead}")
    if newest is not None and newest.cancel_status is not None:
        notes.append(f"fal replied {newest.cancel_status}")
    return notes


def _explain_end(job: Job, attempts: Sequence[Attempt]) -> Wait:
    then, may_do = f"its video is at {job.archive_uri}", "nothing has to be done"
    if job.state is not JobState.ARCHIVED:
        then = f"it has {job.state.value} ({job.error_code}); only a late result changes that"
        if job.state is JobState.CANCELLED:
            then = "it was cancelled; only a late result changes that"
        event = _choose_free_restart(job, attempts)
        may_do = PAY_AGAIN if event is None else RESTARTS[event]
        if event is None and will_fail_again(job, attempts):
            other = "enqueue another input, because fal says that this one fails again"
            may_do = f"{other}; {PAY_AGAIN} of it anyway"
    may_do = may_do.format(id=job.id)
    return Wait(f"It waits for nothing: {then}; {may_do}.", "nothing", None, then, may_do)


def _choose_free_restart(job: Job, attempts: Sequence[Attempt]) -> JobEvent | None:
    try:
        return choose_restart(job, list(attempts), pay_again=False)[0]
    except PaysAgainError:
        return None


def _describe_until(until: datetime | None, now: datetime) -> str:
    if until is None:
        return ";"
    at = describe_time(until, now)
    if until <= now:
        return f", due since {at} ({format_duration(now - until)} ago);"
    return f", until {at} (in {format_duration(until - now)});"


def describe_time(at: datetime, now: datetime) -> str:
    """The time in UTC, with the date unless it is today's."""
    day = "" if at.date() == now.date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S} UTC"


# ------------------------------------------------------------------ story


READ_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Story:
    """A job with its attempts, their charges, deliveries and events, and what it waits for."""

    job: Job
    attempts: list[Attempt]
    deliveries: list[Delivery]
    events: list[Event]
    stays: list[TimeInState]
    wait: Wait
    charges: list[charges.Charge]
    hold: Hold | None = None
    """Of a queued job."""


def read_story(
    job_id: UUID, *, db: Database, policy: ResolvePolicy | None = None, clock: Clock = read_clock
) -> Story:
    """Raises JobNotFoundError. `policy` is needed to predict what becomes of an unknown job."""
    with db.reading() as connection:
        job = table.get_job(connection, job_id)
        tried = attempts.list_attempts(connection, job_id)
        received = deliveries.list_deliveries(connection, job_id)
        events = table.list_events(connection, job_id)
        known = charges.list_charges(connection, job_id)
        hold = None
        if job.state is JobState.QUEUED:
            shared = read_shared(connection, choose_time(connection, clock))
            hold = find_hold(connection, job, shared, admission.find_place(connection, job))
    now = clock()
    wait = explain_wait(job, tried, hold, now, policy=policy)
    stays = list_times_in_state(events, now)
    return Story(job, tried, received, events, stays, wait, known, hold)


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
        return _choose_free_restart(job, attempts.list_attempts(connection, job.id))


def fails_again(job: Job, *, db: Database) -> bool:
    """Whether fal says that the same input would fail again."""
    with db.reading() as connection:
        return will_fail_again(job, attempts.list_attempts(connection, job.id))


def follow_events(
    job_id: UUID,
    *,
    db: Database,
    timeout: timedelta | None = None,
    on_read_events: Callable[[], object] | None = None,
) -> Iterator[Event]:
    """Each event of the job as it comes, up to its end. Raises TimeoutError after `timeout`.

    `on_read_events` is called between reads of the table; what it raises is raised here. Raises
    JobNotFoundError at once.
    """
    read_story(job_id, db=db)
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
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
