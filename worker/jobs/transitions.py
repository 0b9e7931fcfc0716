"""How a transition is spelled: the change of a job's row, and its line in the history.

PostgreSQL takes both as one statement. SQLite knows no such statement, but has no round trips to
save. Each statement is built once, for building one costs more than running it.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    CTE,
    Connection,
    Insert,
    Select,
    Update,
    and_,
    bindparam,
    insert,
    or_,
    select,
    update,
)

from worker.jobs.models import EventRow, JobRow
from worker.jobs.rows import (
    bind_new,
    fetch_one,
    is_postgres,
    name_new,
    name_values,
    spell_insert,
    table_of,
)
from worker.jobs.states import EDGES, JobEvent, JobState
from worker.jobs.values import Claim, Job, Move, NewJob

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
