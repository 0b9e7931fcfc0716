"""How many jobs are where, and what ended when: counted and sampled up to a bound only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal, select, union_all

from worker.jobs.models import JobRow, StateText, UtcDateTime
from worker.jobs.states import ENDED, JobState

MOST_COUNTED = 100_000
LATENCY_SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many jobs are in a state, counted up to MOST_COUNTED, and since when the oldest waits."""

    state: JobState
    count: int
    oldest_at: datetime | None
    oldest_id: UUID | None

    @property
    def is_more(self) -> bool:
        return self.count >= MOST_COUNTED


@dataclass(frozen=True, slots=True)
class Measure:
    """What ended in a span of time; latencies are from enqueuing to the archive, a sample."""

    archived: int
    failed: int
    latencies: tuple[float, ...]


def count_states(connection: Connection) -> list[StateCount]:
    """Every state, in the order of a job's life."""
    rows = {row[0]: row for row in connection.execute(union_all(*map(_count, JobState)))}
    return [StateCount(*rows[state]) for state in JobState]


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


def _count(state: JobState) -> Select[Any]:
    """A row for the state: counted no further than to the bound, its oldest job by the index."""
    count = select(func.count()).select_from(_bounded(JobRow.state == state)).scalar_subquery()
    if state in ENDED:
        none_at, none_id = literal(None, UtcDateTime()), literal(None, JobRow.id.type)
        return select(literal(state, StateText()), count, none_at, none_id)
    oldest = (
        select(JobRow.enqueued_at, JobRow.id)
        .where(JobRow.state == state)
        .order_by(JobRow.enqueued_at, JobRow.id)
        .limit(1)
    )
    at, job_id = (oldest.with_only_columns(one) for one in (JobRow.enqueued_at, JobRow.id))
    return select(
        literal(state, StateText()), count, at.scalar_subquery(), job_id.scalar_subquery()
    )


def _bounded(condition: ColumnElement[bool]) -> Any:  # noqa: ANN401 - SQLAlchemy's own name is long
    return select(literal(1)).where(condition).limit(MOST_COUNTED).subquery()
