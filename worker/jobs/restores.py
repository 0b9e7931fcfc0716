"""SQL on `restores`, and on what a restored back-up may have wrong; by the rules of `table.py`."""

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, exists, func, insert, or_, select, update

from worker.jobs.models import AttemptRow, JobRow, RestoreRow
from worker.jobs.rows import columns_of, fetch_all, fetch_one, table_of
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Job, Outcome, Restore

# The epoch of a table that was never restored.
FIRST_EPOCH = "0"
# How `claimed_by` begins where an attempt stands for one whose row is lost: no host has a slash.
STAND_IN = "restore/"

_RESTORES = table_of(RestoreRow)
_NEWEST = select(*_RESTORES.c).order_by(_RESTORES.c.id.desc()).limit(1)


def find_newest(connection: Connection) -> Restore | None:
    return fetch_one(connection, Restore, _NEWEST)


def read_epoch(connection: Connection) -> str:
    """What distinguishes tokens of this table's timeline from those of a lost one."""
    newest = find_newest(connection)
    return FIRST_EPOCH if newest is None else newest.epoch


def find_restore(connection: Connection, lost_since: datetime) -> Restore | None:
    """The restore that was carried out for this time before."""
    statement = select(*columns_of(RestoreRow)).where(RestoreRow.lost_since == lost_since)
    return fetch_one(connection, Restore, statement)


def insert_restore(connection: Connection, lost_since: datetime, now: datetime) -> Restore:
    """Begin a new epoch."""
    values = {"epoch": secrets.token_urlsafe(9), "lost_since": lost_since, "restored_at": now}
    statement = insert(_RESTORES).values(values).returning(*_RESTORES.c)
    return Restore(**connection.execute(statement).mappings().one())


def name_stand_in(restore: Restore) -> str:
    return STAND_IN + restore.epoch


def list_doubtful(connection: Connection, known: Restore | None, limit: int) -> list[Job]:
    """Jobs that fal may have taken in the gap, locked: queued, or claimed by a dead worker.

    `known` is a restore that has begun: what it has done already, and what came after it, is not
    among them.
    """
    statement = (
        select(*columns_of(JobRow))
        .where(*_are_doubtful(known))
        .order_by(JobRow.id)
        .limit(limit)
        .with_for_update()
    )
    return fetch_all(connection, Job, statement)


def count_doubtful(connection: Connection, known: Restore | None) -> dict[JobState, int]:
    """How many there are, with those that are unknown anyway."""
    doubtful = select(JobRow.state, func.count()).where(*_are_doubtful(known))
    found = {row[0]: int(row[1]) for row in connection.execute(doubtful.group_by(JobRow.state))}
    unknown = select(func.count()).where(*_are_unknown())
    return {**found, JobState.SUBMISSION_UNKNOWN: int(connection.execute(unknown).scalar_one())}


def hasten_unknown(connection: Connection, now: datetime) -> int:
    """Make all unknown submissions due at once; how many there are."""
    statement = update(JobRow).where(*_are_unknown()).values(due_at=now)
    return connection.execute(statement).rowcount


def widen_stand_ins(connection: Connection, lost_since: datetime) -> None:
    """What an earlier restore for a later time has put in doubt is searched for from then on."""
    connection.execute(
        update(AttemptRow)
        .where(
            AttemptRow.claimed_by.startswith(STAND_IN),
            AttemptRow.fal_request_id.is_(None),
            AttemptRow.started_at > lost_since,
        )
        .values(started_at=lost_since)
    )


def restart_observing(connection: Connection) -> None:
    """What was waited before the restore does not count: in the gap it may have been sent again."""
    is_open = or_(AttemptRow.outcome.is_(None), AttemptRow.outcome == Outcome.UNKNOWN)
    connection.execute(
        update(AttemptRow)
        .where(is_open, AttemptRow.fal_request_id.is_(None))
        .values(observed_start=None)
    )


def find_stand_in(connection: Connection, job_id: UUID) -> Attempt | None:
    """The job's attempt that stands for a lost one of which no request is known yet."""
    statement = (
        select(*columns_of(AttemptRow))
        .where(
            AttemptRow.job_id == job_id,
            AttemptRow.claimed_by.startswith(STAND_IN),
            AttemptRow.fal_request_id.is_(None),
        )
        .order_by(AttemptRow.number.desc())
        .limit(1)
    )
    return fetch_one(connection, Attempt, statement)


def _are_doubtful(known: Restore | None) -> Sequence[ColumnElement[bool]]:
    states = [JobState.QUEUED, JobState.SUBMITTING]
    live = (JobRow.due_at.is_not(None), JobRow.state.in_(states))
    if known is None:
        return live
    of_job = AttemptRow.job_id == JobRow.id
    is_done = exists().where(of_job, AttemptRow.claimed_by == name_stand_in(known))
    is_tried = exists().where(of_job, AttemptRow.started_at > known.restored_at)
    tried_since = func.coalesce(JobRow.redriven_at, JobRow.enqueued_at)
    return (*live, tried_since <= known.restored_at, ~is_done, ~is_tried)


def _are_unknown() -> Sequence[ColumnElement[bool]]:
    return (JobRow.due_at.is_not(None), JobRow.state == JobState.SUBMISSION_UNKNOWN)
