"""SQL on `gates`, the rate limits of all workers together, and on how many downloads run at once.

A row of `gates` lets one pass in each pause, or counts failures in a row. Releases before admission
kept their pauses of submissions here, too: `close_old_gate` keeps theirs closed.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, delete, func, or_, select, update

from worker.jobs.attempts import result_time
from worker.jobs.models import GateRow, JobRow
from worker.jobs.rows import fetch_all, fetch_one, insert_for, is_postgres, table_of
from worker.jobs.states import JobEvent, JobState
from worker.jobs.table import claim_job
from worker.jobs.values import Claim, Gate, Job

# Named with a job's id: how many polls of it have failed in a row.
POLL_GATE = "poll"
# So many are logged, and have fal's listing queried.
MANY_POLLS = 3

# What earlier releases read before they submit. They take a pause of more than an hour for the work
# of a wrong clock, and pass it; so it is shorter, and each sweep renews it.
OLD_GATE = "submissions"
OLD_PAUSE = timedelta(minutes=50)
OLD_REASON = "fal refuses the account: a newer release of this worker admits what is submitted"

# Any number that no other program on this database locks.
_ADVISORY_LOCK = 0x6578_7465_6E64_0001
_GATES = table_of(GateRow)


def name_poll_gate(job_id: UUID) -> str:
    return f"{POLL_GATE} {job_id}"


def find_gate(connection: Connection, name: str, *, lock: bool = False) -> Gate | None:
    """The row, if there is one; with `lock`, nobody else changes it before this ends."""
    statement = select(*_GATES.c).where(_GATES.c.name == name)
    return fetch_one(connection, Gate, statement.with_for_update() if lock else statement)


def list_gates(connection: Connection, names: Sequence[str]) -> list[Gate]:
    """Those of these names that there are."""
    statement = select(*_GATES.c).where(_GATES.c.name.in_(names)).order_by(_GATES.c.name)
    return fetch_all(connection, Gate, statement)


def shut_gate(connection: Connection, gate: Gate) -> None:
    """Write the row: nothing passes before `gate.opens_at`."""
    values = {"opens_at": gate.opens_at, "reason": gate.reason, "strikes": gate.strikes}
    connection.execute(
        insert_for(connection, GateRow)
        .values(name=gate.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def close_old_gate(connection: Connection, now: datetime) -> None:
    """Keep workers of earlier releases, which know no caps, from submitting (ADR 24)."""
    shut_gate(connection, Gate(OLD_GATE, now + OLD_PAUSE, OLD_REASON))


def count_strike(connection: Connection, name: str, now: datetime) -> int:
    """One more failure in a row; how many there are. Without a reason nothing is paused yet."""
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=now, strikes=1)
        .on_conflict_do_update(index_elements=["name"], set_={"strikes": GateRow.strikes + 1})
        .returning(GateRow.strikes)
    )
    return int(connection.execute(statement).scalar_one())


def pass_gate(connection: Connection, name: str, now: datetime, pause: timedelta) -> bool:
    """Whether this caller may pass now; the next one only after the pause. Of many, one passes.

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
    """End the pause."""
    connection.execute(delete(GateRow).where(GateRow.name == name))


def remove_stale(connection: Connection, start: str, before: datetime) -> None:
    """Remove the pauses whose names begin so, and that ended before then."""
    is_named = GateRow.name.startswith(start, autoescape=True)
    connection.execute(delete(GateRow).where(is_named, GateRow.opens_at < before))


def claim_download(
    connection: Connection,
    job_id: UUID,
    claim: Claim,
    *,
    most: int,
    defer: Callable[[datetime], datetime],
) -> Job | None:
    """As `table.claim_job` for the archive step, as long as fewer than `most` downloads run.

    A job that finds no room is not changed, but for `due_at`: `defer` gives the next time from the
    one since when it has waited.
    """
    if is_postgres(connection):
        # Until this transaction ends nobody else counts; on SQLite it is the only writer anyway.
        # A statement of its own: the next one sees what those before it in the queue committed.
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    # Those run whose worker has renewed its lease.
    running = table_of(JobRow).alias("running")
    count = select(func.count()).where(
        running.c.state == JobState.ARCHIVING, running.c.due_at > claim.now
    )
    has_room = count.scalar_subquery() < most
    job = claim_job(connection, job_id, JobEvent.ARCHIVE_CLAIMED, claim, has_room)
    if job is not None:
        return job
    is_claimable = (
        JobRow.id == job_id,
        JobRow.state == JobState.COMPLETED,
        or_(JobRow.blocked_by.is_(None), JobRow.due_at <= claim.now),
    )
    found = connection.execute(select(result_time()).where(*is_claimable)).one_or_none()
    if found is not None:
        due_at = defer(found[0] or claim.now)
        connection.execute(update(JobRow).where(*is_claimable).values(due_at=due_at))
    return None
