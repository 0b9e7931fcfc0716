"""Cached counts (`tallies`), what ended in a span of time, and the workers that have been seen.

Counts are made from indices alone, and kept for others to read.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    literal,
    select,
    type_coerce,
)

from worker.jobs.models import (
    AttemptRow,
    CachedCountRow,
    DeliveryRow,
    EventRow,
    JobRow,
    UtcDateTime,
)
from worker.jobs.rows import columns_of, fetch_all, fetch_one, insert_for, name_values
from worker.jobs.states import ENDED, BlockedBy, JobState

# ------------------------------------------------------------------ counts


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
    return _write_cached_count(
        connection, cached_count, CachedCountRow.version == cached_count.version - 1
    )


def note_cached_count(connection: Connection, cached_count: CachedCount) -> None:
    """Keep it, also in place of a newer one."""
    _write_cached_count(connection, cached_count, None)


def _write_cached_count(
    connection: Connection, cached_count: CachedCount, condition: ColumnElement[bool] | None
) -> bool:
    statement = insert_for(connection, CachedCountRow).values(name_values(cached_count))
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_=name_values(cached_count), where=condition
    )
    return connection.execute(statement.returning(CachedCountRow.name)).one_or_none() is not None


def count_live(connection: Connection) -> dict[str, Any]:
    """Jobs that have not ended, by state, and since when the oldest of each is in it."""
    entered_at = type_coerce(_entered_at(), UtcDateTime())
    statement = (
        select(JobRow.state, func.count(), func.min(entered_at, type_=UtcDateTime()))
        .where(JobRow.due_at.is_not(None))
        .group_by(JobRow.state)
    )
    return {
        str(state): {"jobs": jobs, "oldest": oldest.timestamp()}
        for state, jobs, oldest in connection.execute(statement)
    }


def count_ended(connection: Connection) -> dict[str, Any]:
    statement = (
        select(JobRow.state, func.count()).where(JobRow.state.in_(ENDED)).group_by(JobRow.state)
    )
    return {str(state): jobs for state, jobs in connection.execute(statement)}


def count_outcomes(connection: Connection) -> dict[str, Any]:
    """Attempts by outcome; `open` have none yet."""
    statement = select(AttemptRow.outcome, func.count()).group_by(AttemptRow.outcome)
    return {outcome or "open": number for outcome, number in connection.execute(statement)}


def count_verdicts(connection: Connection) -> dict[str, Any]:
    statement = select(DeliveryRow.verdict, func.count()).group_by(DeliveryRow.verdict)
    return {str(verdict): number for verdict, number in connection.execute(statement)}


def count_extra_charges(connection: Connection) -> int:
    statement = select(func.count()).where(AttemptRow.extra_charge_at.is_not(None))
    return int(connection.execute(statement).scalar_one())


def count_held(connection: Connection) -> int:
    """Submissions confirmed as not accepted that wait for an operator."""
    statement = select(func.count()).where(
        JobRow.state == JobState.SUBMISSION_UNKNOWN,
        JobRow.due_at.is_not(None),
        JobRow.blocked_by == BlockedBy.HOLD.value,
    )
    return int(connection.execute(statement).scalar_one())


def find_earliest_due(connection: Connection) -> datetime | None:
    """When the job that has been due for longest was due, or the next one will be."""
    statement = select(func.min(JobRow.due_at)).where(JobRow.due_at.is_not(None))
    return connection.execute(statement).scalar_one()


def find_last_event(connection: Connection) -> int:
    return int(connection.execute(select(func.max(EventRow.id))).scalar_one() or 0)


def _entered_at() -> ColumnElement[datetime]:
    """About when a live job entered its state: its first visit, or its restart since."""
    first = case(
        (
            JobRow.state == JobState.SUBMITTED,
            func.coalesce(JobRow.submitted_at, JobRow.enqueued_at),
        ),
        (
            JobRow.state.in_([JobState.COMPLETED, JobState.ARCHIVING]),
            func.coalesce(JobRow.completed_at, JobRow.enqueued_at),
        ),
        else_=JobRow.enqueued_at,
    )
    return case((JobRow.redriven_at > first, JobRow.redriven_at), else_=first)


# ------------------------------------------------------------------ spans of time


MOST_COUNTED = 100_000
LATENCY_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Measure:
    """What ended in a span of time; latencies are from enqueuing to the archive, a sample."""

    archived: int
    failed: int
    latencies: tuple[float, ...]


def measure_span(connection: Connection, start: datetime, end: datetime) -> Measure:
    archived = and_(JobRow.archived_at >= start, JobRow.archived_at < end)
    failed = and_(JobRow.failed_at >= start, JobRow.failed_at < end)
    counts = select(
        select(func.count()).select_from(_bounded(archived)).scalar_subquery(),
        select(func.count()).select_from(_bounded(failed)).scalar_subquery(),
    )
    (numbers,) = connection.execute(counts)
    times = select(JobRow.archived_at, JobRow.enqueued_at).where(archived).limit(LATENCY_SAMPLE)
    latencies = [
        (done - begun).total_seconds() for done, begun in connection.execute(times) if done
    ]
    return Measure(numbers[0], numbers[1], tuple(sorted(latencies)))


def _bounded(condition: ColumnElement[bool]) -> Any:  # noqa: ANN401 - SQLAlchemy's own name is long
    return select(literal(1)).where(condition).limit(MOST_COUNTED).subquery()
