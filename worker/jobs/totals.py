"""What ended when: counted and sampled up to a bound only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, literal, select

from worker.jobs.models import JobRow

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
