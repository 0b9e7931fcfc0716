"""Sums of `events` by a range of ids: transitions by reason, phases by their length."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, select

from worker.jobs.models import EventRow, JobRow
from worker.jobs.states import JobState

# From these a webhook completes the job before the reply is recorded: `submitted` is passed over.
PASSED_OVER = (JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN)
_SUBMIT = ("submit", "enqueued_at", "submitted_at")
# The phases that end when a state is entered, and the times between which they lie.
_PHASES = {
    JobState.SUBMITTED: [_SUBMIT],
    JobState.COMPLETED: [("run", "submitted_at", "completed_at")],
    JobState.ARCHIVED: [
        ("archive", "completed_at", "archived_at"),
        ("whole", "enqueued_at", "archived_at"),
    ],
}
_TIMES = (JobRow.enqueued_at, JobRow.submitted_at, JobRow.completed_at, JobRow.archived_at)


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
    return connection.execute(select(func.max(batch.subquery().c.id))).scalar_one() or after


def find_last_before(connection: Connection, before: datetime) -> int:
    """The highest id of an event older than `before`; 0 without any."""
    statement = select(EventRow.id).where(EventRow.at < before).order_by(EventRow.id.desc())
    return connection.execute(statement.limit(1)).scalar_one_or_none() or 0


def sum_events(connection: Connection, after: int, last: int, bounds: Sequence[float]) -> EventSums:
    """The sums of all events with ids above `after`, up to `last`.

    Bucket *n* of a phase holds what took at most `bounds[n]` seconds; one more holds the rest.
    """
    in_range = and_(EventRow.id > after, EventRow.id <= last)
    reasons = select(EventRow.reason, func.count()).where(in_range).group_by(EventRow.reason)
    visits = (
        select(EventRow.from_state, EventRow.to_state, EventRow.at, JobRow.archive_bytes, *_TIMES)
        .join(JobRow, JobRow.id == EventRow.job_id)
        .where(in_range, EventRow.to_state.in_(_PHASES))
    )
    numbers, archive_bytes = Counter[tuple[str, int]](), 0
    seconds: dict[tuple[str, int], float] = defaultdict(float)
    for visit in connection.execute(visits).mappings():
        state = visit["to_state"]
        if state is JobState.ARCHIVED:
            archive_bytes += visit["archive_bytes"] or 0
        if visit["at"] != visit[f"{state}_at"]:
            continue  # a restart: only a state's first visit has its time written
        is_early = state is JobState.COMPLETED and visit["from_state"] in PASSED_OVER
        for phase, start, end in [*_PHASES[state], *([_SUBMIT] if is_early else [])]:
            if visit[start] is not None and visit[end] is not None:
                # Never negative: the clocks of two workers differ.
                length = max(0.0, (visit[end] - visit[start]).total_seconds())
                key = (phase, bisect_left(bounds, length))
                numbers[key] += 1
                seconds[key] += length
    return EventSums(
        {str(reason): number for reason, number in connection.execute(reasons)},
        [(*key, number, seconds[key]) for key, number in numbers.items()],
        archive_bytes,
    )
