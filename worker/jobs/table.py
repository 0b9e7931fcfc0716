"""SQL on `jobs` and `events`: given a connection, never commits, hands out frozen values.

A transition is one UPDATE guarded by id, state and fence, with its history row beside it
(`transitions.py`). Where it matches no row somebody else was first: the function returns None, and
its caller leaves things be.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, and_, bindparam, func, null, or_, select, update

from worker.ground.errors import JobNotFoundError
from worker.jobs import transitions
from worker.jobs.models import EventRow, JobRow
from worker.jobs.rows import columns_of, fetch_all, fetch_one, table_of
from worker.jobs.states import JobEvent, JobState, next_state
from worker.jobs.values import UNANSWERED, UNRECORDABLE, Claim, Event, Job, Move, NewJob

# Set when a job first enters the state, and never moved by a later visit.
_ENTERED_AT = {
    JobState.SUBMITTED: "submitted_at",
    JobState.COMPLETED: "completed_at",
    JobState.ARCHIVED: "archived_at",
    JobState.FAILED: "failed_at",
    JobState.CANCELLED: "cancelled_at",
}

_JOBS = table_of(JobRow)
_FIND = select(*_JOBS.c).where(_JOBS.c.id == bindparam("of_id"))
_LOCK = _FIND.with_for_update()
_IS_LATE = and_(
    JobRow.archive_alarmed_at.is_not(None),
    JobRow.state.in_([JobState.COMPLETED, JobState.ARCHIVING]),
)
_SET_DUE = update(_JOBS).where(transitions.AS_READ).values(due_at=bindparam("new_due_at"))


def insert_job(connection: Connection, new: NewJob) -> Job | None:
    """Insert a queued job; None if its id, or its (tenant, idempotency key), is taken already."""
    return transitions.insert_row(connection, new)


def find_job(connection: Connection, job_id: UUID, *, lock: bool = False) -> Job | None:
    """The job; with `lock`, nobody else changes it before this transaction ends."""
    return fetch_one(connection, Job, _LOCK if lock else _FIND, {"of_id": job_id})


def get_job(connection: Connection, job_id: UUID, *, lock: bool = False) -> Job:
    """As `find_job`, but raises JobNotFoundError."""
    job = find_job(connection, job_id, lock=lock)
    if job is None:
        raise JobNotFoundError(f"no job has the id {job_id}")
    return job


def find_job_by_key(connection: Connection, tenant: str, idempotency_key: str) -> Job | None:
    statement = select(*columns_of(JobRow)).where(
        JobRow.tenant == tenant, JobRow.idempotency_key == idempotency_key
    )
    return fetch_one(connection, Job, statement)


def claim_job(connection: Connection, job_id: UUID, event: JobEvent, claim: Claim) -> Job | None:
    """Take the job for a lease; the bumped fence keeps an earlier holder from writing more.

    A job that waits for a time (`blocked_reason` is set) is not claimable before it.
    """
    return transitions.claim_row(connection, job_id, event, claim)


def extend_claim(connection: Connection, job: Job, until: datetime) -> bool:
    """Renew the lease of a claimed job; False once somebody else has taken it over."""
    values = {**transitions.name_read(job), "new_due_at": until}
    return connection.execute(_SET_DUE, values).rowcount == 1


def apply_event(connection: Connection, job: Job, event: JobEvent, move: Move) -> Job | None:
    """Move the job along one edge, exactly as it was read: same state, same fence.

    None where the edge is not permitted or the row has changed since.
    """
    target = next_state(job.state, event)
    if target is None:
        return None
    values = {**transitions.AT_REST, "state": target, "due_at": move.due_at, **move.columns}
    entered_at = _ENTERED_AT.get(target)
    if entered_at is not None:
        values[entered_at] = getattr(job, entered_at) or move.now
    return transitions.move_row(connection, job, values, event, move)


def apply_permitted(connection: Connection, job: Job, event: JobEvent, move: Move) -> Job:
    """As `apply_event`, for a row that this transaction has locked, and an edge that there is."""
    moved = apply_event(connection, job, event, move)
    if moved is None:
        raise LookupError(f"{event.value} leads nowhere from {job.state.value}")
    return moved


def find_overdue(connection: Connection, now: datetime, limit: int) -> list[Job]:
    """Live rows whose time has come, locked; rows that another sweep holds are passed over.

    Paid videos that are late come first, then those of the highest priority. Without their results,
    which can be as large as videos.
    """
    columns = [null().label("result") if one.key == "result" else one for one in columns_of(JobRow)]
    statement = (
        select(*columns)
        .where(JobRow.due_at <= now)
        .order_by(_IS_LATE.desc(), JobRow.priority.desc(), JobRow.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return fetch_all(connection, Job, statement)


def release_waiting(connection: Connection, job_ids: Sequence[UUID], due_at: datetime) -> None:
    """Make waiting rows claimable again, and look at them again at `due_at`."""
    connection.execute(
        update(JobRow).where(JobRow.id.in_(job_ids)).values(due_at=due_at, blocked_reason=None)
    )


def push_due(connection: Connection, job_ids: Sequence[UUID], due_at: datetime) -> None:
    """Look at these rows again at `due_at`; nothing else about them changes."""
    connection.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(due_at=due_at))


def block_queued(
    connection: Connection, job_ids: Sequence[UUID], due_at: datetime, reason: str
) -> None:
    """Keep queued rows from being claimed before `due_at`; waiting is no transition."""
    connection.execute(
        update(JobRow)
        .where(JobRow.id.in_(job_ids), JobRow.state == JobState.QUEUED)
        .values(due_at=due_at, blocked_reason=reason)
    )


def note_unrecordable(connection: Connection, job_id: UUID, reason: str) -> None:
    """Write why the submitted job's result is not; recording it clears the reason."""
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == JobState.SUBMITTED)
        .values(blocked_reason=f"{UNRECORDABLE}: {reason}")
    )


def note_unanswered(connection: Connection, job_id: UUID, reason: str | None) -> None:
    """Write why the submitted job's polls fail; None once one has not. Another reason stays."""
    is_ours = or_(JobRow.blocked_reason.is_(None), JobRow.blocked_reason.startswith(UNANSWERED))
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == JobState.SUBMITTED, is_ours)
        .values(blocked_reason=reason and f"{UNANSWERED}: {reason}")
    )


def hasten_blocked(connection: Connection, reason_start: str, now: datetime) -> int:
    """Let the sweep look at once at all queued rows that wait for such a reason; how many."""
    statement = (
        update(JobRow)
        .where(
            JobRow.due_at > now,
            JobRow.state == JobState.QUEUED,
            JobRow.blocked_reason.startswith(reason_start, autoescape=True),
        )
        .values(due_at=now)
    )
    return connection.execute(statement).rowcount


def advance_due(connection: Connection, job: Job, due_at: datetime) -> None:
    """Let the sweep look at the row at `due_at`, without moving it; nothing if it has moved."""
    connection.execute(_SET_DUE, {**transitions.name_read(job), "new_due_at": due_at})


def clamp_due(connection: Connection, now: datetime, longest: timedelta, limit: int) -> None:
    """Make rows due now whose time is further ahead than any wait: a clock had been wrong."""
    beyond = select(JobRow.id).where(JobRow.due_at > now + longest).limit(limit)
    connection.execute(update(JobRow).where(JobRow.id.in_(beyond)).values(due_at=now))


def list_events(connection: Connection, job_id: UUID) -> list[Event]:
    statement = select(*columns_of(EventRow)).where(EventRow.job_id == job_id).order_by(EventRow.id)
    return fetch_all(connection, Event, statement)


def count_events(connection: Connection, job_id: UUID, event: JobEvent) -> int:
    """How often this has happened to the job."""
    is_one = (EventRow.job_id == job_id) & (EventRow.reason == event.value)
    statement = select(func.count()).select_from(EventRow).where(is_one)
    return int(connection.execute(statement).scalar_one())
