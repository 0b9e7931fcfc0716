"""How many downloads run at once, over all workers: counted and claimed in one."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID

from sqlalchemy import Connection, Update, bindparam, delete, func, or_, select, update

from worker.jobs.attempts import result_time
from worker.jobs.models import GateRow, JobRow
from worker.jobs.rows import fetch_all, fetch_one, insert_for, is_postgres, table_of
from worker.jobs.states import JobEvent, JobState
from worker.jobs.table import apply_change, build_claim, name_claim
from worker.jobs.values import Claim, Gate, Job, Move

# ------------------------------------------------------------------ gates


# Named with a job's id: how many polls of it have failed in a row.
POLL_GATE = "poll"
# So many are told of, and have fal's listing asked.
MANY_POLLS = 3

_GATES = table_of(GateRow)
_FIND = select(*_GATES.c).where(_GATES.c.name == bindparam("of_name"))
_LOCK = _FIND.with_for_update()


def name_poll_gate(job_id: UUID) -> str:
    return f"{POLL_GATE} {job_id}"


def find_gate(connection: Connection, name: str, *, lock: bool = False) -> Gate | None:
    """The gate, if anybody has shut it; with `lock`, nobody else moves it before this ends."""
    return fetch_one(connection, Gate, _LOCK if lock else _FIND, {"of_name": name})


def list_gates(connection: Connection, names: Sequence[str], *, lock: bool = False) -> list[Gate]:
    """Those of the gates that there are; with `lock`, nobody else moves them before this ends."""
    statement = select(*_GATES.c).where(_GATES.c.name.in_(names)).order_by(_GATES.c.name)
    return fetch_all(connection, Gate, statement.with_for_update() if lock else statement)


def shut_gate(connection: Connection, gate: Gate) -> None:
    """Let nobody pass before `gate.opens_at`."""
    values = {"opens_at": gate.opens_at, "reason": gate.reason, "strikes": gate.strikes}
    connection.execute(
        insert_for(connection, GateRow)
        .values(name=gate.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def count_strike(connection: Connection, name: str, now: datetime) -> int:
    """One more in a row; how many there are. The gate is open as long as it has no reason."""
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=now, strikes=1)
        .on_conflict_do_update(index_elements=["name"], set_={"strikes": GateRow.strikes + 1})
        .returning(GateRow.strikes)
    )
    return int(connection.execute(statement).scalar_one())


def pass_gate(connection: Connection, name: str, now: datetime, pause: timedelta) -> bool:
    """Pass if it is open by now, and shut it for the pause; of many at once only one passes.

    A time further ahead than the pause was written by a clock that was wrong.
    """
    is_open = or_(GateRow.opens_at <= now, GateRow.opens_at > now + pause)
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=now + pause)
        .on_conflict_do_update(
            index_elements=["name"], set_={"opens_at": now + pause}, where=is_open
        )
        .returning(GateRow.name)
    )
    return connection.execute(statement).one_or_none() is not None


def remove_gate(connection: Connection, name: str) -> None:
    """Let everybody pass."""
    connection.execute(delete(GateRow).where(GateRow.name == name))


def remove_stale(connection: Connection, start: str, before: datetime) -> None:
    """Remove the gates whose names begin so, and that have been open since then."""
    connection.execute(
        delete(GateRow).where(
            GateRow.name.startswith(start, autoescape=True), GateRow.opens_at < before
        )
    )


# ------------------------------------------------------------------ downloads


# Any number that no other program on this database locks.
_ADVISORY_LOCK = 0x6578_7465_6E64_0001
_LOCK_DOWNLOADS = select(func.pg_advisory_xact_lock(_ADVISORY_LOCK))


def claim_download(
    connection: Connection,
    job_id: UUID,
    claim: Claim,
    *,
    most: int,
    defer: Callable[[datetime], datetime],
) -> Job | None:
    """As `table.claim_job` for the archive step, as long as fewer than `most` downloads run.

    A job that is turned away stays as it is, but for `due_at`: `defer` tells the next time from the
    one since when it has waited.
    """
    _wait_for_turn(connection)
    event = JobEvent.ARCHIVE_CLAIMED
    source, values = name_claim(job_id, event, claim)
    values["most"] = most
    job = apply_change(connection, _build_claim(), values, source, event, Move(claim.now))
    if job is None:
        _turn_away(connection, job_id, claim, defer)
    return job


def _wait_for_turn(connection: Connection) -> None:
    """Until this transaction ends nobody else counts; on SQLite it is the only writer anyway.

    A statement of its own: the next one sees what those before it in the queue have committed.
    """
    if is_postgres(connection):
        connection.execute(_LOCK_DOWNLOADS)


@cache
def _build_claim() -> Update:
    """Of the downloads those run whose worker has been heard of within its lease."""
    running = table_of(JobRow).alias("running")
    count = select(func.count()).where(
        running.c.state == JobState.ARCHIVING, running.c.due_at > bindparam("now")
    )
    return build_claim().where(count.scalar_subquery() < bindparam("most"))


def _turn_away(
    connection: Connection, job_id: UUID, claim: Claim, defer: Callable[[datetime], datetime]
) -> None:
    """Let a job that could be claimed but for the others wait; any other is left alone."""
    is_claimable = (
        JobRow.id == job_id,
        JobRow.state == JobState.COMPLETED,
        or_(JobRow.blocked_reason.is_(None), JobRow.due_at <= claim.now),
    )
    found = connection.execute(select(result_time()).where(*is_claimable)).one_or_none()
    if found is not None:
        due_at = defer(found[0] or claim.now)
        connection.execute(update(JobRow).where(*is_claimable).values(due_at=due_at))
