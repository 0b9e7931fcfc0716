"""What must hold between the rows, and what the doctor compares with fal and the archive.

Each check is one statement that only reads, for each slice of the table: it sees a consistent
moment, locks nothing, and returns only what violates it. Joined jobs are bounded by the slice, too:
PostgreSQL does not see it from the join alone, and would read the whole table for each slice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Row,
    Select,
    Text,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    type_coerce,
)

from worker.jobs.attempts import result_time
from worker.jobs.limits import MANY_POLLS, list_gates, name_poll_gate
from worker.jobs.models import AttemptRow, DeliveryRow, EventRow, JobRow, StrayDeliveryRow
from worker.jobs.states import EDGES, ENDED, BlockedBy, JobEvent, JobState
from worker.jobs.values import Ending, Outcome, Verdict
from worker.jobs.walks import Slice

# ------------------------------------------------------------------ findings


class Check(StrEnum):
    """What is looked for, by the name that is printed and documented."""

    DUE_TIME = "due_time"
    UNTRACKED_PAYMENT = "untracked_payment"
    TWO_CHARGES = "two_charges"
    ENDED_ROW_CHANGED = "ended_row_changed"
    BROKEN_HISTORY = "broken_history"
    INCOMPLETE_ARCHIVED_ROW = "incomplete_archived_row"
    DAMAGED_ARCHIVE = "damaged_archive"
    UNRECORDED_RESULT = "unrecorded_result"
    UNANSWERED_POLLS = "unanswered_polls"
    LATE_ARCHIVE = "late_archive"
    UNMATCHED_DELIVERY = "unmatched_delivery"
    STRAY_DELIVERY = "stray_delivery"
    ARCHIVED_FILE = "archived_file"
    ORPHAN_AT_FAL = "orphan_at_fal"
    MISSING_AT_FAL = "missing_at_fal"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation, with the ids to look it up by; a request that nobody owns has no job."""

    check: Check
    job_id: UUID | None
    detail: str
    attempt_id: UUID | None = None
    delivery_id: int | None = None
    fal_request_id: str | None = None


def find_incomplete_archived_rows(
    connection: Connection, part: Slice, _now: datetime
) -> Iterator[Finding]:
    """An archived row promises a result and a file with its checksum, until the file is pruned."""
    promised = ("result", "archive_uri", "archive_sha256", "archive_bytes", "archived_at")
    lacking = [getattr(JobRow, name).is_(None) for name in promised]
    lacking[1] = and_(lacking[1], JobRow.archive_pruned_at.is_(None))
    statement = select(JobRow.id, *lacking).where(
        part.covers(JobRow.id), JobRow.state == JobState.ARCHIVED, or_(*lacking)
    )
    for job_id, *lacks in connection.execute(statement):
        names = ", ".join(
            name for name, is_lacking in zip(promised, lacks, strict=True) if is_lacking
        )
        yield Finding(Check.INCOMPLETE_ARCHIVED_ROW, job_id, f"archived without {names}")


def find_damaged_archives(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """What `verify` has found, and that has not been repaired since."""
    statement = select(JobRow.id, JobRow.archive_uri, JobRow.archive_error).where(
        part.covers(JobRow.id),
        JobRow.archive_error.is_not(None),
        JobRow.archive_pruned_at.is_(None),
    )
    for job_id, uri, error in connection.execute(statement):
        yield Finding(Check.DAMAGED_ARCHIVE, job_id, f"{uri}: {error}")


def find_late_archives(connection: Connection, part: Slice, now: datetime) -> Iterator[Finding]:
    """A paid video that is still only at fal, and was reported as late."""
    columns = (JobRow.id, JobRow.state, result_time(), JobRow.blocked_reason)
    statement = select(*columns).where(
        part.covers(JobRow.id),
        JobRow.due_at.is_not(None),
        JobRow.state.in_((JobState.COMPLETED, JobState.ARCHIVING)),
        JobRow.archive_alarmed_at.is_not(None),
    )
    for job_id, state, completed_at, reason in connection.execute(statement):
        age = now - (completed_at or now)
        detail = f"{state.value} for {age.total_seconds():.0f} s: {reason or 'nothing holds it up'}"
        yield Finding(Check.LATE_ARCHIVE, job_id, detail)


HINT_PATIENCE = timedelta(days=1)

# Rows written by release 0.1.0 do not say when fal finished their attempt; these states do.
_FINISHED_AT_FAL = (JobState.COMPLETED, JobState.ARCHIVING, JobState.ARCHIVED, JobState.FAILED)
_UNSETTLED = or_(AttemptRow.outcome.is_(None), AttemptRow.outcome == Outcome.UNKNOWN)
_EDGES = sorted(f"{source} {event} {target}" for (source, event), target in EDGES.items())


def check_slice(connection: Connection, part: Slice, now: datetime) -> Iterator[Finding]:
    """Every violation that the rows themselves show."""
    for find in _FINDERS:
        yield from find(connection, part, now)


def find_strays(connection: Connection) -> Iterator[Finding]:
    """Webhooks with a token of ours whose job has no row: it may be paid for."""
    row = StrayDeliveryRow
    statement = select(
        row.id, row.job_id, row.number, row.fal_request_id, row.status, row.verdict
    ).order_by(row.id)
    for stray in connection.execute(statement):
        worth = "proves" if stray.verdict == Verdict.KEPT else "says without proof"
        what = f"a webhook of attempt {stray.number} {worth} that fal's end was {stray.status}"
        detail = f"{what}, and its job has no row; the body is in stray_deliveries"
        yield Finding(
            Check.STRAY_DELIVERY,
            stray.job_id,
            detail,
            delivery_id=stray.id,
            fal_request_id=stray.fal_request_id,
        )


# ------------------------------------------------------------------ the checks


def find_wrong_due_times(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """A live row without a due time is one that no sweep will ever see."""
    is_ended = JobRow.state.in_(ENDED)
    statement = select(JobRow.id, JobRow.state).where(
        part.covers(JobRow.id), is_ended != JobRow.due_at.is_(None)
    )
    for job_id, state in connection.execute(statement):
        lacks = "has ended and has a due time" if state in ENDED else "is live without a due time"
        yield Finding(Check.DUE_TIME, job_id, f"{state.value}: it {lacks}")


def find_untracked_payments(
    connection: Connection, part: Slice, _now: datetime
) -> Iterator[Finding]:
    """An attempt that may have been paid, and that nothing will poll for."""
    is_held = and_(JobRow.state == JobState.SUBMITTING, JobRow.fence == AttemptRow.fence)
    statement = (
        select(AttemptRow.id, AttemptRow.job_id, AttemptRow.outcome, JobRow.state, JobRow.due_at)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(
            part.covers(AttemptRow.job_id),
            part.covers(JobRow.id),
            _UNSETTLED,
            AttemptRow.completed_at.is_(None),
            or_(JobRow.due_at.is_(None), and_(AttemptRow.outcome.is_(None), ~is_held)),
        )
    )
    for attempt_id, job_id, outcome, state, due_at in connection.execute(statement):
        known = "no outcome" if outcome is None else "an unknown outcome"
        follower = "nothing polls fal" if due_at is None else "no worker holds its submission"
        detail = f"the attempt has {known}, the job is {state.value}: {follower}"
        yield Finding(Check.UNTRACKED_PAYMENT, job_id, detail, attempt_id)


def find_second_charges(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """More than one run was paid for one job."""
    yield from _find_noted_charges(connection, part)
    has_run = AttemptRow.ending.is_(None) | (AttemptRow.ending == Ending.OK)
    counted = (
        select(
            AttemptRow.job_id,
            func.count(case((AttemptRow.ending == Ending.OK, 1))).label("ok"),
            func.count(case((and_(AttemptRow.fal_request_id.is_not(None), has_run), 1))).label(
                "paid"
            ),
            func.count(AttemptRow.extra_charge_at).label("noted"),
        )
        .where(part.covers(AttemptRow.job_id))
        .group_by(AttemptRow.job_id)
        .having(func.count() > 1)
        .subquery()
    )
    statement = select(counted).where(
        counted.c.noted == 0, or_(counted.c.ok > 1, counted.c.paid > 1)
    )
    for job_id, ok, paid, _ in connection.execute(statement):
        detail = f"{max(ok, paid)} attempts have a request that ran or may run, and none is noted"
        yield Finding(Check.TWO_CHARGES, job_id, detail)


def _find_noted_charges(connection: Connection, part: Slice) -> Iterator[Finding]:
    statement = select(AttemptRow.id, AttemptRow.job_id, AttemptRow.fal_request_id).where(
        part.covers(AttemptRow.job_id), AttemptRow.extra_charge_at.is_not(None)
    )
    for attempt_id, job_id, fal_request_id in connection.execute(statement):
        detail = "noted as paid besides the attempt whose result the job has"
        yield Finding(Check.TWO_CHARGES, job_id, detail, attempt_id, fal_request_id=fal_request_id)


def find_broken_histories(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """Each event begins where the one before ended, along an edge, and the newest gives the state.

    What breaks this after the job's end is a finding of its own: an ended row may be relied on.
    """
    for row in connection.execute(_select_broken_events(part)):
        was_ended = row.before in ENDED or (row.is_newest and row.to_state in ENDED)
        check = Check.ENDED_ROW_CHANGED if was_ended else Check.BROKEN_HISTORY
        yield Finding(check, row.job_id, _describe_event(row))
    without = select(JobRow.id).where(
        part.covers(JobRow.id), ~exists().where(EventRow.job_id == JobRow.id)
    )
    for job_id in connection.execute(without).scalars():
        yield Finding(Check.BROKEN_HISTORY, job_id, "it has no events")


def _select_broken_events(part: Slice) -> Select[Any]:
    source, target = type_coerce(EventRow.from_state, Text), type_coerce(EventRow.to_state, Text)
    place: dict[str, Any] = {"partition_by": EventRow.job_id, "order_by": EventRow.id}
    events = (
        select(
            EventRow.job_id,
            EventRow.id,
            EventRow.reason,
            source.label("from_state"),
            target.label("to_state"),
            func.lag(target, type_=Text).over(**place).label("before"),
            func.lead(EventRow.id).over(**place).is_(None).label("is_newest"),
        )
        .where(part.covers(EventRow.job_id))
        .subquery()
    )
    one = events.c
    edge = one.from_state + literal(" ") + one.reason + literal(" ") + one.to_state
    is_broken = case(
        (one.before.is_(None), or_(one.from_state.is_not(None), one.reason != JobEvent.ENQUEUED)),
        else_=or_(one.from_state.is_(None), one.from_state != one.before, edge.not_in(_EDGES)),
    )
    state = type_coerce(JobRow.state, Text)
    return (
        select(events, state.label("state"))
        .join(JobRow, JobRow.id == one.job_id)
        .where(part.covers(JobRow.id), or_(is_broken, and_(one.is_newest, one.to_state != state)))
        .order_by(one.job_id, one.id)
    )


def _describe_event(row: Row[Any]) -> str:
    event = f"event {row.id} ({row.from_state} → {row.to_state}, {row.reason})"
    if row.is_newest and row.to_state != row.state:
        return f"{event} is the newest one, yet the job is {row.state}"
    if row.before is None:
        return f"{event} is the first one, yet not its enqueuing"
    if row.before != row.from_state:
        return f"{event} follows an event into {row.before}"
    return f"{event} is no edge of the state machine"


def find_unmatched_deliveries(
    connection: Connection, part: Slice, now: datetime
) -> Iterator[Finding]:
    """A webhook that was taken must have had its effect on the attempt that it names."""
    is_hint = DeliveryRow.verdict == Verdict.HINT
    never_completed = AttemptRow.completed_at.is_(None)
    names_other = and_(
        ~is_hint, func.coalesce(AttemptRow.fal_request_id, "") != DeliveryRow.fal_request_id
    )
    had_no_effect = and_(
        DeliveryRow.verdict == Verdict.RECORDED,
        never_completed,
        JobRow.state.not_in(_FINISHED_AT_FAL),
    )
    is_unheeded = and_(
        is_hint,
        DeliveryRow.received_at < now - HINT_PATIENCE,
        never_completed,
        JobRow.due_at.is_not(None),
    )
    reason = case(
        (AttemptRow.job_id != DeliveryRow.job_id, "it belongs to another job than its attempt"),
        (names_other, "it names another request than its attempt"),
        (had_no_effect, "it was recorded, and its attempt is not completed"),
        (is_unheeded, "it is a hint, older than a day, and its attempt is not completed"),
    )
    statement = (
        select(
            DeliveryRow.id,
            DeliveryRow.job_id,
            DeliveryRow.attempt_id,
            DeliveryRow.fal_request_id,
            reason.label("reason"),
        )
        .join(AttemptRow, AttemptRow.id == DeliveryRow.attempt_id)
        .join(JobRow, JobRow.id == DeliveryRow.job_id)
        .where(part.covers(DeliveryRow.job_id), part.covers(JobRow.id), reason.is_not(None))
    )
    for row in connection.execute(statement):
        yield Finding(
            Check.UNMATCHED_DELIVERY,
            row.job_id,
            row.reason,
            row.attempt_id,
            row.id,
            row.fal_request_id,
        )


def find_unrecorded_results(
    connection: Connection, part: Slice, _now: datetime
) -> Iterator[Finding]:
    """What fal has finished, and the database refuses each time it is recorded."""
    statement = select(JobRow.id, JobRow.fal_request_id, JobRow.blocked_reason).where(
        part.covers(JobRow.id),
        JobRow.state == JobState.SUBMITTED,
        JobRow.blocked_by == BlockedBy.UNRECORDABLE.value,
    )
    for job_id, fal_request_id, reason in connection.execute(statement):
        yield Finding(Check.UNRECORDED_RESULT, job_id, str(reason), fal_request_id=fal_request_id)


def find_unanswered_polls(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """Requests about which fal has said nothing of use, several polls in a row."""
    statement = select(JobRow.id, JobRow.fal_request_id, JobRow.blocked_reason).where(
        part.covers(JobRow.id),
        JobRow.state == JobState.SUBMITTED,
        JobRow.blocked_by == BlockedBy.UNANSWERED.value,
    )
    found = connection.execute(statement).all()
    failed = {
        gate.name: gate.strikes
        for gate in list_gates(connection, [name_poll_gate(row.id) for row in found])
    }
    for job_id, fal_request_id, reason in found:
        if failed.get(name_poll_gate(job_id), 0) >= MANY_POLLS:
            yield Finding(
                Check.UNANSWERED_POLLS, job_id, str(reason), fal_request_id=fal_request_id
            )


_FINDERS: Sequence[Callable[[Connection, Slice, datetime], Iterator[Finding]]] = (
    find_wrong_due_times,
    find_untracked_payments,
    find_second_charges,
    find_broken_histories,
    find_incomplete_archived_rows,
    find_damaged_archives,
    find_late_archives,
    find_unmatched_deliveries,
    find_unrecorded_results,
    find_unanswered_polls,
)


# ------------------------------------------------------------------ what the doctor compares


MOST_REASONS = 10


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """What an archived row says of its file."""

    job_id: UUID
    uri: str
    bytes: int


def count_jobs(connection: Connection, part: Slice) -> int:
    return int(connection.execute(select(func.count()).where(part.covers(JobRow.id))).scalar_one())


def list_archived_files(connection: Connection, part: Slice) -> list[ArchivedFile]:
    """What the slice's archived rows say of their files; a row that says nothing is left out.

    So is one whose files are pruned.
    """
    statement = select(JobRow.id, JobRow.archive_uri, JobRow.archive_bytes).where(
        part.covers(JobRow.id),
        JobRow.state == JobState.ARCHIVED,
        JobRow.archive_uri.is_not(None),
        JobRow.archive_bytes.is_not(None),
        JobRow.archive_pruned_at.is_(None),
    )
    return [
        ArchivedFile(row[0], str(row[1]), int(row[2] or 0)) for row in connection.execute(statement)
    ]


def count_held(connection: Connection) -> list[tuple[str, int]]:
    """How many unknown submissions are held, by the reason; the most frequent ones."""
    statement = (
        select(JobRow.blocked_reason, func.count())
        .where(
            JobRow.due_at.is_not(None),
            JobRow.state == JobState.SUBMISSION_UNKNOWN,
            JobRow.blocked_by == BlockedBy.HOLD.value,
        )
        .group_by(JobRow.blocked_reason)
        .order_by(func.count().desc(), JobRow.blocked_reason)
        .limit(MOST_REASONS)
    )
    return [(str(reason), int(jobs)) for reason, jobs in connection.execute(statement)]


def count_blocked(connection: Connection) -> int:
    """Queued jobs that wait for a reason."""
    statement = select(func.count()).where(
        JobRow.due_at.is_not(None),
        JobRow.state == JobState.QUEUED,
        JobRow.blocked_by.is_not(None),
    )
    return int(connection.execute(statement).scalar_one())
