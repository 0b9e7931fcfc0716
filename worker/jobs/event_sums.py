"""SQL that sums `events` up by a range of ids: transitions by reason, phases by their length."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    and_,
    case,
    func,
    literal,
    select,
    union_all,
)

from worker.jobs.models import EventRow, JobRow
from worker.jobs.states import JobState

# From these a webhook completes the job before the reply is recorded: `submitted` is passed over.
PASSED_OVER = (JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN)
DAY_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class EventSums:
    """Of some events: how many by reason; (phase, bucket, number, seconds); bytes archived."""

    reasons: dict[str, int]
    phases: list[tuple[str, int, int, float]]
    archive_bytes: int


def find_last_of_batch(
    connection: Connection, after: int, limit: int, before: datetime | None = None
) -> int:
    """The id of the last of the next `limit` events, of those older than `before`; else `after`."""
    batch = select(EventRow.id).where(EventRow.id > after).order_by(EventRow.id).limit(limit)
    if before is not None:
        batch = batch.where(EventRow.at < before)
    last = connection.execute(select(func.max(batch.subquery().c.id))).scalar_one()
    return after if last is None else int(last)


def find_last_before(connection: Connection, before: datetime) -> int:
    """The highest id of an event older than `before`; 0 without any."""
    statement = select(EventRow.id).where(EventRow.at < before).order_by(EventRow.id.desc())
    return int(connection.execute(statement.limit(1)).scalar_one_or_none() or 0)


def sum_events(connection: Connection, after: int, last: int, bounds: Sequence[float]) -> EventSums:
    """The sums of all events with ids above `after`, up to `last`.

    Bucket *n* of a phase holds what took at most `bounds[n]` seconds; one more holds the rest.
    """
    in_range = and_(EventRow.id > after, EventRow.id <= last)
    reasons = select(EventRow.reason, func.count()).where(in_range).group_by(EventRow.reason)
    archived = (
        select(func.sum(JobRow.archive_bytes))
        .join(EventRow, EventRow.job_id == JobRow.id)
        .where(in_range, EventRow.to_state == JobState.ARCHIVED)
    )
    spans = union_all(*(one.where(in_range) for one in _list_spans(connection))).subquery()
    bucket = case(
        *((spans.c.seconds <= bound, number) for number, bound in enumerate(bounds)),
        else_=len(bounds),
    )
    phases = select(spans.c.phase, bucket, func.count(), func.sum(spans.c.seconds)).group_by(
        spans.c.phase, bucket
    )
    return EventSums(
        {str(reason): number for reason, number in connection.execute(reasons)},
        [(phase, place, n, seconds) for phase, place, n, seconds in connection.execute(phases)],
        int(connection.execute(archived).scalar_one() or 0),
    )


def _list_spans(connection: Connection) -> list[Select[str, float]]:
    """The phases that end with an event, and their seconds.

    Only at a job's first visit of a state, when its time is written: later ones are restarts.
    """
    row = JobRow
    submit, run = (row.enqueued_at, row.submitted_at), (row.submitted_at, row.completed_at)
    archive, whole = (row.completed_at, row.archived_at), (row.enqueued_at, row.archived_at)
    is_submitted = _is_first(JobState.SUBMITTED, row.submitted_at)
    is_completed = _is_first(JobState.COMPLETED, row.completed_at)
    is_archived = _is_first(JobState.ARCHIVED, row.archived_at)
    is_early = and_(is_completed, EventRow.from_state.in_(PASSED_OVER))
    return [
        select(literal(name).label("phase"), _measure(connection, *span).label("seconds"))
        .join_from(EventRow, JobRow, JobRow.id == EventRow.job_id)
        .where(condition, span[0].is_not(None), span[1].is_not(None))
        for name, condition, span in (
            ("submit", is_submitted, submit),
            ("submit", is_early, submit),
            ("run", is_completed, run),
            ("archive", is_archived, archive),
            ("whole", is_archived, whole),
        )
    ]


def _is_first(state: JobState, at: Any) -> ColumnElement[bool]:  # noqa: ANN401 - a mapped column
    return and_(EventRow.to_state == state, EventRow.at == at)


def _measure(connection: Connection, start: Any, end: Any) -> ColumnElement[float]:  # noqa: ANN401
    """Seconds, never negative: the clocks of two workers differ."""
    seconds: ColumnElement[float]
    if connection.dialect.name == "postgresql":
        seconds = func.extract("epoch", end - start).cast(Float)
    else:
        # Rounded, for days as a fraction are not exact.
        seconds = func.round((func.julianday(end) - func.julianday(start)) * DAY_SECONDS, 3)
    return case((seconds < 0, 0.0), else_=seconds)
