"""SQL that counts, from indices alone, and keeps what was counted for others to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, or_, select, type_coerce

from worker.jobs.columns import UtcDateTime
from worker.jobs.models import AttemptRow, DeliveryRow, EventRow, JobRow, TallyRow
from worker.jobs.rows import columns_of, fetch_all, fetch_one, insert_for
from worker.jobs.states import ENDED, JobState
from worker.jobs.values import HELD


@dataclass(frozen=True, slots=True)
class Tally:
    """A row of `tallies`; `version` rises with each count, so that of two only one is kept."""

    name: str
    version: int
    counted_at: datetime
    seconds: float
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CountedEvent:
    """An event with what its job's row has of times and size."""

    id: int
    at: datetime
    from_state: JobState | None
    to_state: JobState
    reason: str
    enqueued_at: datetime
    submitted_at: datetime | None
    completed_at: datetime | None
    archived_at: datetime | None
    archive_bytes: int | None


def list_tallies(connection: Connection) -> list[Tally]:
    return fetch_all(connection, Tally, select(*columns_of(TallyRow)))


def find_tally(connection: Connection, name: str) -> Tally | None:
    statement = select(*columns_of(TallyRow)).where(TallyRow.name == name)
    return fetch_one(connection, Tally, statement)


def keep_tally(connection: Connection, tally: Tally) -> bool:
    """Keep it; False if somebody else has counted since it was read."""
    values = {
        "version": tally.version,
        "counted_at": tally.counted_at,
        "seconds": tally.seconds,
        "value": tally.value,
    }
    statement = (
        insert_for(connection, TallyRow)
        .values(name=tally.name, **values)
        .on_conflict_do_update(
            index_elements=["name"], set_=values, where=TallyRow.version == tally.version - 1
        )
        .returning(TallyRow.name)
    )
    return connection.execute(statement).one_or_none() is not None


def note_tally(connection: Connection, tally: Tally) -> None:
    """Keep it, whatever was kept before."""
    values = {
        "version": tally.version,
        "counted_at": tally.counted_at,
        "seconds": tally.seconds,
        "value": tally.value,
    }
    connection.execute(
        insert_for(connection, TallyRow)
        .values(name=tally.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


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
    """Dead submissions that wait for an operator."""
    statement = select(func.count()).where(
        JobRow.state == JobState.SUBMISSION_UNKNOWN,
        JobRow.due_at.is_not(None),
        JobRow.blocked_reason.startswith(HELD),
    )
    return int(connection.execute(statement).scalar_one())


def find_earliest_due(connection: Connection) -> datetime | None:
    """When the job that has been due for longest was due, or the next one will be."""
    statement = select(func.min(JobRow.due_at)).where(JobRow.due_at.is_not(None))
    return connection.execute(statement).scalar_one()


def find_last_event(connection: Connection) -> int:
    return int(connection.execute(select(func.max(EventRow.id))).scalar_one() or 0)


def list_events_after(
    connection: Connection, after: int, gaps: Sequence[int], limit: int
) -> list[CountedEvent]:
    """Events with a higher id, and those of the missing ids that are there by now; in order."""
    columns = [EventRow.id, EventRow.at, EventRow.from_state, EventRow.to_state, EventRow.reason]
    columns += [JobRow.enqueued_at, JobRow.submitted_at, JobRow.completed_at, JobRow.archived_at]
    statement = (
        select(*columns, JobRow.archive_bytes)
        .join(JobRow, JobRow.id == EventRow.job_id)
        .where(or_(EventRow.id > after, EventRow.id.in_(gaps)) if gaps else EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return fetch_all(connection, CountedEvent, statement)


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
