"""SQL on `jobs` and `events`: given a connection, never commits, hands out frozen values.

A transition is one UPDATE guarded by id, state and fence, with its history row beside it
(`transitions.py`). Where it matches no row somebody else was first: the function returns None, and
its caller leaves things be.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    CTE,
    Connection,
    Insert,
    Select,
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
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from worker.ground.errors import JobNotFoundError
from worker.jobs.models import EventRow, JobRow
from worker.jobs.rows import (
    bind_new,
    columns_of,
    fetch_all,
    fetch_one,
    is_postgres,
    name_new,
    name_values,
    spell_insert,
    table_of,
)
from worker.jobs.states import EDGES, JobEvent, JobState, next_state
from worker.jobs.values import UNANSWERED, UNRECORDABLE, Claim, Event, Job, Move, NewJob

# ------------------------------------------------------------------ transitions


Change: TypeAlias = Insert | Update

_JOBS, _EVENTS = table_of(JobRow), table_of(EventRow)
_TELL = insert(_EVENTS).inline()
# A row that no worker holds, nothing holds up, that has not failed, and whose files nobody deletes.
AT_REST: dict[str, None] = {
    "claimed_by": None,
    "blocked_reason": None,
    "error_code": None,
    "error_message": None,
    "error_details": None,
    "archive_pruned_at": None,
}
# Exactly as the job was read; `name_read` gives the values.
AS_READ = and_(
    _JOBS.c.id == bindparam("of_id"),
    _JOBS.c.state == bindparam("of_state"),
    _JOBS.c.fence == bindparam("of_fence"),
)


def name_read(job: Job) -> dict[str, Any]:
    return {"of_id": job.id, "of_state": job.state, "of_fence": job.fence}


def insert_row(connection: Connection, new: NewJob) -> Job | None:
    """A queued job; None if its id or key is taken."""
    values = {**name_values(new), "state": JobState.QUEUED, "fence": 0}
    change = _build_insert(tuple(values), for_postgres=is_postgres(connection))
    move = Move(new.enqueued_at)
    return apply_change(connection, change, name_new(values), None, JobEvent.ENQUEUED, move)


def claim_row(connection: Connection, job_id: UUID, event: JobEvent, claim: Claim) -> Job | None:
    """The one edge of a claim; None if the row is not where it begins, or waits for a time."""
    source, values = name_claim(job_id, event, claim)
    return apply_change(connection, build_claim(), values, source, event, Move(claim.now))


def name_claim(job_id: UUID, event: JobEvent, claim: Claim) -> tuple[JobState, dict[str, Any]]:
    """Where the claim begins, and the values for `build_claim`."""
    source = next(state for state, edge_event in EDGES if edge_event is event)
    return source, {
        "of_id": job_id,
        "of_state": source,
        "new_state": EDGES[source, event],
        "new_claimed_by": claim.worker,
        "new_due_at": claim.until,
        "now": claim.now,
    }


def move_row(
    connection: Connection, job: Job, values: Mapping[str, Any], event: JobEvent, move: Move
) -> Job | None:
    """Write the values, exactly as the job was read: same state, same fence. Else None."""
    change = _build_move(tuple(values))
    named = name_read(job) | name_new(values)
    return apply_change(connection, change, named, job.state, event, move)


def apply_change(
    connection: Connection,
    change: Change,
    values: Mapping[str, Any],
    source: JobState | None,
    event: JobEvent,
    move: Move,
) -> Job | None:
    """The changed job, with its line in the history; None if the change matches no row."""
    if is_postgres(connection):
        told = name_told(source, event, move)
        return fetch_one(connection, Job, _tell_change(change), {**values, **told})
    job = fetch_one(connection, Job, change, values)
    if job is not None:
        where = {"job_id": job.id, "to_state": job.state, "fence": job.fence}
        connection.execute(_TELL, _describe_told(source, event, move) | where)
    return job


@cache
def _build_insert(names: tuple[str, ...], *, for_postgres: bool) -> Insert:
    return (
        spell_insert(_JOBS, for_postgres=for_postgres)
        .values(bind_new(_JOBS, names))
        .on_conflict_do_nothing()
        .returning(*_JOBS.c)
    )


@cache
def build_claim() -> Update:
    is_free = or_(_JOBS.c.blocked_reason.is_(None), _JOBS.c.due_at <= bindparam("now"))
    values = bind_new(_JOBS, ("state", "claimed_by", "due_at"))
    return (
        update(_JOBS)
        .where(_JOBS.c.id == bindparam("of_id"), _JOBS.c.state == bindparam("of_state"), is_free)
        .values(**values, fence=_JOBS.c.fence + 1, blocked_reason=None)
        .returning(*_JOBS.c)
    )


@cache
def _build_move(names: tuple[str, ...]) -> Update:
    return update(_JOBS).where(AS_READ).values(bind_new(_JOBS, names)).returning(*_JOBS.c)


@cache
def _tell_change(change: Change) -> Select[Any]:
    """The same with its line in the history."""
    changed = change.cte("changed")
    return select(changed).add_cte(tell_of(changed))


def tell_of(changed: CTE) -> CTE:
    """The lines in the history of what another part of the statement changes."""
    at, from_state, reason, detail = (
        bindparam(f"told_{name}", type_=_EVENTS.c[name].type)
        for name in ("at", "from_state", "reason", "detail")
    )
    line = {
        "job_id": changed.c.id,
        "at": at,
        "from_state": from_state,
        "to_state": changed.c.state,
        "reason": reason,
        "detail": detail,
        "fence": changed.c.fence,
    }
    return insert(_EVENTS).from_select(list(line), select(*line.values())).cte("told")


def name_told(source: JobState | None, event: JobEvent, move: Move) -> dict[str, Any]:
    """The values for `tell_of`."""
    told = _describe_told(source, event, move)
    return {f"told_{name}": value for name, value in told.items()}


def _describe_told(source: JobState | None, event: JobEvent, move: Move) -> dict[str, Any]:
    return {"at": move.now, "from_state": source, "reason": event.value, "detail": move.detail}


# Set when a job first enters the state, and never moved by a later visit.
_ENTERED_AT = {
    JobState.SUBMITTED: "submitted_at",
    JobState.COMPLETED: "completed_at",
    JobState.ARCHIVED: "archived_at",
    JobState.FAILED: "failed_at",
    JobState.CANCELLED: "cancelled_at",
}

_JOBS_TABLE = table_of(JobRow)
_FIND = select(*_JOBS_TABLE.c).where(_JOBS_TABLE.c.id == bindparam("of_id"))
_LOCK = _FIND.with_for_update()
_IS_LATE = and_(
    JobRow.archive_alarmed_at.is_not(None),
    JobRow.state.in_([JobState.COMPLETED, JobState.ARCHIVING]),
)
_SET_DUE = update(_JOBS_TABLE).where(AS_READ).values(due_at=bindparam("new_due_at"))


def insert_job(connection: Connection, new: NewJob) -> Job | None:
    """Insert a queued job; None if its id, or its (tenant, idempotency key), is taken already."""
    return insert_row(connection, new)


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
    return claim_row(connection, job_id, event, claim)


def extend_claim(connection: Connection, job: Job, until: datetime) -> bool:
    """Renew the lease of a claimed job; False once somebody else has taken it over."""
    values = {**name_read(job), "new_due_at": until}
    return connection.execute(_SET_DUE, values).rowcount == 1


def apply_event(connection: Connection, job: Job, event: JobEvent, move: Move) -> Job | None:
    """Move the job along one edge, exactly as it was read: same state, same fence.

    None where the edge is not permitted or the row has changed since.
    """
    target = next_state(job.state, event)
    if target is None:
        return None
    values = {**AT_REST, "state": target, "due_at": move.due_at, **move.columns}
    entered_at = _ENTERED_AT.get(target)
    if entered_at is not None:
        values[entered_at] = getattr(job, entered_at) or move.now
    return move_row(connection, job, values, event, move)


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
    connection.execute(_SET_DUE, {**name_read(job), "new_due_at": due_at})


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


# ------------------------------------------------------------------ claims


def list_claims(connection: Connection, worker: str) -> list[Job]:
    """The jobs that this worker holds, locked; those that somebody has in hand are left out."""
    statement = (
        select(*columns_of(JobRow))
        # The first condition lets the index of live rows find them.
        .where(JobRow.due_at.is_not(None), JobRow.claimed_by == worker)
        .with_for_update(skip_locked=True)
    )
    return fetch_all(connection, Job, statement)


# ------------------------------------------------------------------ bulk


Row: TypeAlias = dict[str, Any]

_NAMES = [field.name for field in fields(NewJob)]
_EVENT_NAMES = ["job_id", "at", "to_state", "reason", "fence"]
_EMPTY = dict.fromkeys(field.name for field in fields(Job))


def insert_jobs(connection: Connection, new: Sequence[NewJob]) -> dict[UUID, Job]:
    """Insert queued jobs, but those whose id, or (tenant, idempotency key), is taken; by their id.

    No two of them may have an id or a key in common.
    """
    if not new:
        return {}
    rows = [_list_values(one) for one in new]
    insert_all = _insert_packed if is_postgres(connection) else _insert_plainly
    inserted = set(insert_all(connection, rows))
    return {
        row["id"]: Job(**{**_EMPTY, **row})  # nothing else has a value yet
        for row in rows
        if row["id"] in inserted
    }


def list_rivals(connection: Connection, new: Sequence[NewJob]) -> list[Job]:
    """The jobs that have an id, or a (tenant, idempotency key), of one of these."""
    if not new:
        return []
    keys: dict[str, list[str]] = {}
    for one in new:
        if one.idempotency_key is not None:
            keys.setdefault(one.tenant, []).append(one.idempotency_key)
    by_id = select(*columns_of(JobRow)).where(JobRow.id.in_([one.id for one in new]))
    rivals = fetch_all(connection, Job, by_id)
    for tenant, named in keys.items():
        rivals += list_by_keys(connection, tenant, named)
    return rivals


def list_by_keys(connection: Connection, tenant: str, keys: Sequence[str]) -> list[Job]:
    """Of one tenant: SQLite searches no index for pairs."""
    statement = select(*columns_of(JobRow)).where(
        JobRow.tenant == tenant, JobRow.idempotency_key.in_(keys)
    )
    return fetch_all(connection, Job, statement)


def _list_values(new: NewJob) -> Row:
    values = {name: getattr(new, name) for name in _NAMES}
    return {**values, "state": JobState.QUEUED, "fence": 0}


def _insert_packed(connection: Connection, rows: Sequence[Row]) -> Iterable[UUID]:
    """All in one parameter and one statement: a parameter for each value takes far longer."""
    names, types = list(rows[0]), JobRow.__table__.columns
    packed = func.jsonb_to_recordset(cast(bindparam("rows", type_=Text()), JSONB))
    unpacked = packed.table_valued(*(column(name, types[name].type) for name in names))
    made = (
        postgresql.insert(JobRow)
        .from_select(names, select(*unpacked.render_derived(with_types=True).columns))
        .on_conflict_do_nothing()
        .returning(JobRow.id, JobRow.enqueued_at, JobRow.state, JobRow.fence)
        .cte("made")
    )
    reason = literal(JobEvent.ENQUEUED.value)
    events = select(made.c.id, made.c.enqueued_at, made.c.state, reason, made.c.fence)
    noted = insert(EventRow).from_select(_EVENT_NAMES, events).cte("noted")
    statement = select(made.c.id).add_cte(noted)
    return connection.execute(statement, {"rows": json.dumps(rows, default=str)}).scalars()


def _insert_plainly(connection: Connection, rows: Sequence[Row]) -> Iterable[UUID]:
    statement = sqlite.insert(JobRow).on_conflict_do_nothing().returning(JobRow.id)
    inserted = connection.execute(statement, rows).scalars().all()
    at = {row["id"]: row["enqueued_at"] for row in rows}
    events = [
        (job_id, at[job_id], JobState.QUEUED, JobEvent.ENQUEUED.value, 0) for job_id in inserted
    ]
    if events:
        named = [dict(zip(_EVENT_NAMES, values, strict=True)) for values in events]
        connection.execute(insert(EventRow), named)
    return inserted
