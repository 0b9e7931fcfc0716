"""SQL on `jobs` and `events`: given a connection, never commits, returns frozen values.

A transition is one UPDATE, guarded by id, state and fence, with its history row in the same
transaction (`_write_transition`). Where it matches no row, somebody else was first: the function
returns None, and its caller does nothing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from worker.ground.errors import JobNotFoundError
from worker.jobs.models import EventRow, JobRow
from worker.jobs.rows import (
    columns_of,
    fetch_all,
    fetch_one,
    is_postgres,
    meets_index,
    name_values,
    table_of,
)
from worker.jobs.states import EDGES, BlockedBy, JobEvent, JobState, next_state
from worker.jobs.values import Claim, Event, Job, Move, NewJob

_JOBS, _EVENTS = table_of(JobRow), table_of(EventRow)
_EVENT_COLUMNS = ["job_id", "at", "from_state", "to_state", "reason", "detail", "fence"]
# A row that no worker holds, nothing holds up, that has not failed, and whose files nobody deletes.
_AT_REST: dict[str, None] = {
    "claimed_by": None,
    "blocked_by": None,
    "blocked_reason": None,
    "error_code": None,
    "error_message": None,
    "error_details": None,
    "archive_pruned_at": None,
}
# Set when a job first enters the state, and never changed by a later visit.
_ENTERED_AT = {
    JobState.SUBMITTED: "submitted_at",
    JobState.COMPLETED: "completed_at",
    JobState.ARCHIVED: "archived_at",
    JobState.FAILED: "failed_at",
    JobState.CANCELLED: "cancelled_at",
}
# As the indices have them, in literals: a parameter would hide from SQLite that an index serves.
_IS_DUE = text("due_at IS NOT NULL AND state <> 'queued'")
_IS_LATE = meets_index("state IN ('completed', 'archiving')", "archive_alarmed_at IS NOT NULL")
IS_BLOCKED = meets_index("state = 'queued'", "blocked_by IS NOT NULL")
_MAY_EXPIRE = meets_index("state = 'queued'", "expires_at IS NOT NULL")
# These end with their time; any other reason by what an operator or fal does.
TIMED = (BlockedBy.RETRY, BlockedBy.NOT_BEFORE, BlockedBy.BUDGET)

# ------------------------------------------------------------------ enqueuing


def insert_job(connection: Connection, new: NewJob) -> Job | None:
    """Insert a queued job; None if its id, or its (tenant, idempotency key), is taken already."""
    return insert_jobs(connection, [new]).get(new.id)


def insert_jobs(connection: Connection, new: Sequence[NewJob]) -> dict[UUID, Job]:
    """Insert queued jobs; those whose id, or (tenant, idempotency key), is taken are left out.

    No two of them may have an id or a key in common. The jobs by id.
    """
    if not new:
        return {}
    rows = [{**name_values(one), "state": JobState.QUEUED, "fence": 0} for one in new]
    write = _insert_on_postgres if is_postgres(connection) else _insert_on_sqlite
    inserted = set(write(connection, rows))
    nothing = dict.fromkeys(field.name for field in fields(Job))
    return {row["id"]: Job(**{**nothing, **row}) for row in rows if row["id"] in inserted}


def _insert_on_postgres(connection: Connection, rows: Sequence[dict[str, Any]]) -> Iterable[UUID]:
    """One parameter and one statement: a parameter for each value takes far longer."""
    typed = [column(name, _JOBS.c[name].type) for name in rows[0]]
    packed = func.jsonb_to_recordset(cast(bindparam("rows", type_=Text()), JSONB))
    unpacked = packed.table_valued(*typed).render_derived(with_types=True)
    made = (
        postgresql.insert(_JOBS)
        .from_select(list(rows[0]), select(*unpacked.columns))
        .on_conflict_do_nothing()
        .returning(_JOBS.c.id, _JOBS.c.enqueued_at)
        .cte("made")
    )
    reason, fence = literal(JobEvent.ENQUEUED.value), literal(0)
    state = literal(JobState.QUEUED, _EVENTS.c.to_state.type)
    lines = select(made.c.id, made.c.enqueued_at, null(), state, reason, null(), fence)
    history = insert(_EVENTS).from_select(_EVENT_COLUMNS, lines).cte("history")
    statement = select(made.c.id).add_cte(history)
    return connection.execute(statement, {"rows": json.dumps(rows, default=str)}).scalars()


def _insert_on_sqlite(connection: Connection, rows: Sequence[dict[str, Any]]) -> Iterable[UUID]:
    statement = sqlite.insert(_JOBS).on_conflict_do_nothing().returning(_JOBS.c.id)
    inserted = connection.execute(statement, rows).scalars().all()
    at = {row["id"]: row["enqueued_at"] for row in rows}
    line = {"to_state": JobState.QUEUED, "reason": JobEvent.ENQUEUED.value, "fence": 0}
    if inserted:
        connection.execute(
            insert(_EVENTS), [{**line, "job_id": job_id, "at": at[job_id]} for job_id in inserted]
        )
    return inserted


def list_competitors(connection: Connection, new: Sequence[NewJob]) -> list[Job]:
    """The jobs that have an id, or a (tenant, idempotency key), of one of these."""
    keys: dict[str, list[str]] = {}
    for one in new:
        if one.idempotency_key is not None:
            keys.setdefault(one.tenant, []).append(one.idempotency_key)
    # By tenant: SQLite searches no index for pairs.
    has_key = (
        and_(JobRow.tenant == tenant, JobRow.idempotency_key.in_(named))
        for tenant, named in keys.items()
    )
    is_competitor = or_(JobRow.id.in_([one.id for one in new]), *has_key)
    return fetch_all(connection, Job, select(_JOBS).where(is_competitor))


# ------------------------------------------------------------------ reading


def find_job(connection: Connection, job_id: UUID, *, lock: bool = False) -> Job | None:
    """The job; with `lock`, nobody else changes it before this transaction ends."""
    statement = select(_JOBS).where(_JOBS.c.id == job_id)
    return fetch_one(connection, Job, statement.with_for_update() if lock else statement)


def get_job(connection: Connection, job_id: UUID, *, lock: bool = False) -> Job:
    """As `find_job`, but raises JobNotFoundError."""
    job = find_job(connection, job_id, lock=lock)
    if job is None:
        raise JobNotFoundError(f"no job has the id {job_id}")
    return job


def find_job_by_key(connection: Connection, tenant: str, idempotency_key: str) -> Job | None:
    has_key = and_(JobRow.tenant == tenant, JobRow.idempotency_key == idempotency_key)
    return fetch_one(connection, Job, select(_JOBS).where(has_key))


def list_claims(connection: Connection, worker: str) -> list[Job]:
    """The jobs that this worker holds, locked, for a worker that has to end.

    Those that another transaction has locked are left out.
    """
    # The first two conditions let the index of live rows find them.
    claimed = JobRow.state.in_([JobState.SUBMITTING, JobState.ARCHIVING])
    held = (JobRow.due_at.is_not(None), claimed, JobRow.claimed_by == worker)
    statement = select(_JOBS).where(*held).with_for_update(skip_locked=True)
    return fetch_all(connection, Job, statement)


def list_due(
    connection: Connection, now: datetime, longest: timedelta, limit: int
) -> Sequence[UUID]:
    """Live rows that are not queued and whose time has come: late videos, then by priority.

    A row whose time is further ahead than `longest` is due, too: a clock had been wrong. Each read
    follows an index and ends at `limit`, however large the table is.
    """
    late = select(_JOBS.c.id).where(_IS_LATE, _JOBS.c.due_at <= now)
    found = dict.fromkeys(connection.scalars(late.order_by(_JOBS.c.due_at).limit(limit)))
    next_priority = select(_JOBS.c.priority).where(_IS_DUE).order_by(_JOBS.c.priority.desc())
    priority = connection.scalar(next_priority.limit(1))
    while priority is not None and len(found) < limit:
        of_priority = select(_JOBS.c.id).where(_IS_DUE, _JOBS.c.priority == priority)
        for is_due in (_JOBS.c.due_at <= now, _JOBS.c.due_at > now + longest):
            due = of_priority.where(is_due).order_by(_JOBS.c.due_at, _JOBS.c.id).limit(limit)
            found |= dict.fromkeys(connection.scalars(due))
        lower = next_priority.where(_JOBS.c.priority < priority).limit(1)
        priority = connection.scalar(lower)
    return list(found)[:limit]


def lock_due(
    connection: Connection, job_ids: Sequence[UUID], now: datetime, longest: timedelta
) -> list[Job]:
    """Those of these jobs that are still due, locked, in this order.

    One that another transaction has locked is left out; so is one that was claimed since it was
    listed, which is nobody's to take over. Without their results, which can be as large as videos.
    """
    is_due = or_(_JOBS.c.due_at <= now, _JOBS.c.due_at > now + longest)
    columns = [null().label("result") if one.key == "result" else one for one in _JOBS.c]
    statement = select(*columns).where(_IS_DUE, _JOBS.c.id.in_(job_ids), is_due)
    statement = statement.with_for_update(skip_locked=True)
    places = {job_id: place for place, job_id in enumerate(job_ids)}
    found = fetch_all(connection, Job, statement) if job_ids else []
    return sorted(found, key=lambda job: places[job.id])


def list_expired(connection: Connection, now: datetime, limit: int) -> list[Job]:
    """Queued jobs whose producer wanted them submitted by a time that has passed, locked."""
    statement = (
        select(_JOBS)
        .where(_MAY_EXPIRE, _JOBS.c.expires_at <= now)
        .order_by(_JOBS.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return fetch_all(connection, Job, statement)


def list_events(connection: Connection, job_id: UUID) -> list[Event]:
    statement = select(*columns_of(EventRow)).where(EventRow.job_id == job_id).order_by(EventRow.id)
    return fetch_all(connection, Event, statement)


def count_events(connection: Connection, job_id: UUID, event: JobEvent) -> int:
    """How often this has happened to the job."""
    is_one = (EventRow.job_id == job_id) & (EventRow.reason == event.value)
    statement = select(func.count()).select_from(EventRow).where(is_one)
    return int(connection.execute(statement).scalar_one())


# ------------------------------------------------------------------ transitions


def claim_job(
    connection: Connection,
    job_id: UUID,
    event: JobEvent,
    claim: Claim,
    *conditions: ColumnElement[bool],
) -> Job | None:
    """Take the job for a lease; the bumped fence keeps an earlier holder from writing more.

    None if the job is not where the one edge of this claim begins, waits for a time that has not
    come (`blocked_by` is set), or does not meet the further conditions.
    """
    source, target = next((key[0], to) for key, to in EDGES.items() if key[1] is event)
    is_free = or_(_JOBS.c.blocked_by.is_(None), _JOBS.c.due_at <= claim.now)
    change = (
        update(_JOBS)
        .where(_JOBS.c.id == job_id, _JOBS.c.state == source, is_free, *conditions)
        .values(
            state=target,
            fence=_JOBS.c.fence + 1,
            claimed_by=claim.worker,
            due_at=claim.until,
            blocked_by=None,
            blocked_reason=None,
        )
    )
    return _write_transition(connection, change, source, event, Move(claim.now))


def apply_event(connection: Connection, job: Job, event: JobEvent, move: Move) -> Job | None:
    """Move the job along one edge, exactly as it was read: same state, same fence.

    None where the edge is not permitted or the row has changed since.
    """
    target = next_state(job.state, event)
    if target is None:
        return None
    values = {**_AT_REST, "state": target, "due_at": move.due_at, **move.columns}
    entered_at = _ENTERED_AT.get(target)
    if entered_at is not None:
        values[entered_at] = getattr(job, entered_at) or move.now
    change = update(_JOBS).where(_is_as_read(job)).values(values)
    return _write_transition(connection, change, job.state, event, move)


def apply_permitted(connection: Connection, job: Job, event: JobEvent, move: Move) -> Job:
    """As `apply_event`, for a row that this transaction has locked, and an edge that there is."""
    moved = apply_event(connection, job, event, move)
    if moved is None:
        raise LookupError(f"{event.value} leads nowhere from {job.state.value}")
    return moved


def _write_transition(
    connection: Connection, change: Update, source: JobState, event: JobEvent, move: Move
) -> Job | None:
    """Change the row and write its line in the history; None if the change matches no row.

    PostgreSQL takes both as one statement; SQLite cannot, but has no round trips to save.
    """
    change = change.returning(_JOBS)
    line = {"at": move.now, "from_state": source, "reason": event.value, "detail": move.detail}
    if not is_postgres(connection):
        job = fetch_one(connection, Job, change)
        if job is not None:
            of_job = {"job_id": job.id, "to_state": job.state, "fence": job.fence}
            connection.execute(insert(_EVENTS).values({**line, **of_job}))
        return job
    changed = change.cte("changed")
    columns: dict[str, ColumnElement[Any]] = {
        **{name: literal(value, _EVENTS.c[name].type) for name, value in line.items()},
        "job_id": changed.c.id,
        "to_state": changed.c.state,
        "fence": changed.c.fence,
    }
    history = insert(_EVENTS).from_select(list(columns), select(*columns.values())).cte("history")
    return fetch_one(connection, Job, select(changed).add_cte(history))


# ------------------------------------------------------------------ times and reasons


def extend_claim(connection: Connection, job: Job, until: datetime) -> bool:
    """Renew the lease of a claimed job; False once somebody else has taken it over."""
    change = update(_JOBS).where(_is_as_read(job)).values(due_at=until)
    return connection.execute(change).rowcount == 1


def advance_due(connection: Connection, job: Job, due_at: datetime) -> None:
    """Make the row due at `due_at`, without moving it; nothing if it has moved."""
    extend_claim(connection, job, due_at)


def push_due(connection: Connection, job_ids: Sequence[UUID], due_at: datetime) -> None:
    """Make these rows due at `due_at`; nothing else about them changes."""
    connection.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(due_at=due_at))


def release_waiting(connection: Connection, job_ids: Sequence[UUID], due_at: datetime) -> None:
    """Make waiting rows claimable again, and due at `due_at`."""
    values = {"due_at": due_at, "blocked_by": None, "blocked_reason": None}
    connection.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(values))


def block_queued(
    connection: Connection, job_id: UUID, by: BlockedBy, due_at: datetime, reason: str
) -> None:
    """Keep the queued row from being admitted before `due_at`; waiting is no transition."""
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == JobState.QUEUED)
        .values(due_at=due_at, blocked_by=by.value, blocked_reason=reason)
    )


def unblock_due(
    connection: Connection, now: datetime, longest: timedelta, limit: int
) -> Sequence[UUID]:
    """Have queued rows admitted whose own time has come; at most `limit` of them.

    A retry further ahead than `longest` was written by a clock that was wrong.
    """
    ids: list[UUID] = []
    for by in TIMED:
        is_due = [_JOBS.c.due_at <= now]
        if by is BlockedBy.RETRY:
            is_due.append(_JOBS.c.due_at > now + longest)
        for condition in is_due:
            due = (
                select(_JOBS.c.id)
                .where(IS_BLOCKED, _JOBS.c.blocked_by == by.value, condition)
                .order_by(_JOBS.c.due_at)
                .limit(limit - len(ids))
                .with_for_update(skip_locked=True)
            )
            ids += connection.scalars(due) if len(ids) < limit else []
    if ids:
        release_waiting(connection, ids, now)
    return ids


def hasten_blocked(connection: Connection, by: BlockedBy, tenant: str | None, now: datetime) -> int:
    """Make the queued rows that wait for this reason due at once; how many."""
    is_meant: list[ColumnElement[bool]] = [IS_BLOCKED]
    is_meant += [_JOBS.c.blocked_by == by.value, _JOBS.c.due_at > now]
    if tenant is not None:
        is_meant.append(_JOBS.c.tenant == tenant)
    return connection.execute(update(_JOBS).where(*is_meant).values(due_at=now)).rowcount


def note_unrecordable(connection: Connection, job_id: UUID, reason: str) -> None:
    """Write why the submitted job's result is not; recording it clears the reason."""
    by = BlockedBy.UNRECORDABLE.value
    values = {"blocked_by": by, "blocked_reason": f"{by}: {reason}"}
    connection.execute(
        update(JobRow).where(JobRow.id == job_id, JobRow.state == JobState.SUBMITTED).values(values)
    )


def note_unanswered(connection: Connection, job_id: UUID, reason: str | None) -> None:
    """Write why the submitted job's polls fail; None once one has not. Another reason is kept."""
    unanswered = BlockedBy.UNANSWERED.value
    is_ours = or_(JobRow.blocked_by.is_(None), JobRow.blocked_by == unanswered)
    sentence = reason and f"{unanswered}: {reason}"
    values = {"blocked_by": reason and unanswered, "blocked_reason": sentence}
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == JobState.SUBMITTED, is_ours)
        .values(values)
    )


def _is_as_read(job: Job) -> ColumnElement[bool]:
    return and_(_JOBS.c.id == job.id, _JOBS.c.state == job.state, _JOBS.c.fence == job.fence)
