"""Cached counts (`tallies`), what ended in a span of time, and the workers that have been seen.

Counts are made from indices alone, and kept for others to read.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    case,
    func,
    select,
    true,
    type_coerce,
    union_all,
)

from worker.jobs.base import UtcDateTime
from worker.jobs.models import (
    AttemptRow,
    CachedCountRow,
    DeliveryRow,
    EventRow,
    JobRow,
)
from worker.jobs.rows import columns_of, count, fetch_all, fetch_one, insert_for, name_values
from worker.jobs.states import ENDED, BlockedBy, JobState
from worker.jobs.table import IS_BLOCKED, TIMED

MOST_COUNTED = 100_000
LATENCY_SAMPLE = 1000
# As the indices have them, in literals: a parameter would hide from SQLite that an index serves.
_LIVE = ", ".join(f"'{state}'" for state in JobState if state not in {*ENDED, JobState.QUEUED})
IS_DUE = f"due_at IS NOT NULL AND state IN ({_LIVE})"
IS_TIMED = "state = 'queued' AND blocked_by IN ('retry', 'not_before', 'budget')"

# ------------------------------------------------------------------ cached counts


@dataclass(frozen=True, slots=True)
class CachedCount:
    """A row of `tallies`; `version` rises with each count, so that of two only one is kept."""

    name: str
    version: int
    counted_at: datetime
    seconds: float
    value: dict[str, Any]


def list_cached_counts(connection: Connection) -> list[CachedCount]:
    return fetch_all(connection, CachedCount, select(*columns_of(CachedCountRow)))


def find_cached_count(connection: Connection, name: str) -> CachedCount | None:
    statement = select(*columns_of(CachedCountRow)).where(CachedCountRow.name == name)
    return fetch_one(connection, CachedCount, statement)


def keep_cached_count(connection: Connection, cached_count: CachedCount) -> bool:
    """Keep it; False if another process has counted since it was read."""
    is_next = CachedCountRow.version == cached_count.version - 1
    return _write_cached_count(connection, cached_count, is_next)


def note_cached_count(connection: Connection, cached_count: CachedCount) -> None:
    """Keep it, also in place of a newer one."""
    _write_cached_count(connection, cached_count, true())


def _write_cached_count(
    connection: Connection, cached_count: CachedCount, condition: ColumnElement[bool]
) -> bool:
    values = name_values(cached_count)
    statement = (
        insert_for(connection, CachedCountRow)
        .values(values)
        .on_conflict_do_update(index_elements=["name"], set_=values, where=condition)
    )
    return connection.execute(statement.returning(CachedCountRow.name)).one_or_none() is not None


# ------------------------------------------------------------------ counts


def count_live(connection: Connection) -> dict[str, Any]:
    """Jobs that have not ended, by state, and since when the oldest of each is in it.

    About since when: its first visit of the state, or its restart since.
    """
    visit = case(
        (JobRow.state == JobState.SUBMITTED, JobRow.submitted_at),
        (JobRow.state.in_([JobState.COMPLETED, JobState.ARCHIVING]), JobRow.completed_at),
    )
    first = func.coalesce(visit, JobRow.enqueued_at)
    entered_at = case((JobRow.redriven_at > first, JobRow.redriven_at), else_=first)
    statement = (
        select(JobRow.state, func.count(), type_coerce(func.min(entered_at), UtcDateTime()))
        .where(JobRow.due_at.is_not(None))
        .group_by(JobRow.state)
    )
    return {
        str(state): {"jobs": jobs, "oldest": oldest.timestamp()}
        for state, jobs, oldest in connection.execute(statement)
    }


def count_ended(connection: Connection) -> dict[str, Any]:
    return _count_by(connection, JobRow.state, JobRow.state.in_(ENDED))


def count_outcomes(connection: Connection) -> dict[str, Any]:
    """Attempts by outcome; `open` have none yet."""
    return _count_by(connection, AttemptRow.outcome, true())


def count_verdicts(connection: Connection) -> dict[str, Any]:
    return _count_by(connection, DeliveryRow.verdict, true())


def _count_by(
    connection: Connection,
    column: Any,  # noqa: ANN401 - a mapped column
    condition: ColumnElement[bool],
) -> dict[str, Any]:
    statement = select(column, func.count()).where(condition).group_by(column)
    return {str(value or "open"): number for value, number in connection.execute(statement)}


def count_extra_charges(connection: Connection) -> int:
    return count(connection, AttemptRow.extra_charge_at.is_not(None))


def count_held(connection: Connection) -> int:
    """Submissions confirmed as not accepted that wait for an operator."""
    is_unknown = (JobRow.state == JobState.SUBMISSION_UNKNOWN, JobRow.due_at.is_not(None))
    return count(connection, *is_unknown, JobRow.blocked_by == BlockedBy.HOLD.value)


def find_earliest_due(connection: Connection) -> datetime | None:
    """When the job that has been due for longest was due, or the next one will be.

    Of queued jobs only those count that have a reason of their own to wait until a time; the others
    are admitted together, as there is room. One entry of an index is read for each state, and for
    each such reason.
    """
    due_at = select(func.min(JobRow.due_at))
    by_state = [
        due_at.where(JobRow.due_at.is_not(None), JobRow.state == state)
        for state in JobState
        if state not in ENDED and state is not JobState.QUEUED
    ]
    by_reason = [due_at.where(IS_BLOCKED, JobRow.blocked_by == by.value) for by in TIMED]
    times = connection.scalars(union_all(*by_state, *by_reason))
    return min((time for time in times if time is not None), default=None)


def find_last_event(connection: Connection) -> int:
    return connection.execute(select(func.max(EventRow.id))).scalar_one() or 0


# ------------------------------------------------------------------ spans of time


@dataclass(frozen=True, slots=True)
class Measure:
    """What ended in a span of time; latencies are from enqueuing to the archive, a sample."""

    archived: int
    failed: int
    latencies: tuple[float, ...]


def measure_span(connection: Connection, start: datetime, end: datetime) -> Measure:
    """Nothing is counted beyond MOST_COUNTED."""
    counts = [
        select(func.count())
        .select_from(select(true()).where(at >= start, at < end).limit(MOST_COUNTED).subquery())
        .scalar_subquery()
        for at in (JobRow.archived_at, JobRow.failed_at)
    ]
    archived, failed = connection.execute(select(*counts)).one()
    times = select(JobRow.archived_at, JobRow.enqueued_at).where(
        JobRow.archived_at >= start, JobRow.archived_at < end
    )
    latencies = [
        (done - begun).total_seconds()
        for done, begun in connection.execute(times.limit(LATENCY_SAMPLE))
        if done is not None
    ]
    return Measure(archived, failed, tuple(sorted(latencies)))
