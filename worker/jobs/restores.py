"""SQL on `restores`, and on what a restored back-up may have wrong; by the rules of `table.py`."""

import secrets
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, or_, select

from worker.jobs.models import AttemptRow, JobRow, RestoreRow
from worker.jobs.rows import change, count, fetch_all, fetch_one, table_of
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Job, Outcome, Restore

# The epoch of a table that was never restored.
FIRST_EPOCH = "0"
# How `claimed_by` begins where an attempt stands for one whose row is lost: no host has a slash.
STAND_IN = "restore/"

_RESTORES, _ATTEMPTS, _JOBS = table_of(RestoreRow), table_of(AttemptRow), table_of(JobRow)
_NEWEST_EPOCH = select(_RESTORES.c.epoch).order_by(_RESTORES.c.id.desc()).limit(1)
_IS_STAND_IN = and_(AttemptRow.claimed_by.startswith(STAND_IN), AttemptRow.fal_request_id.is_(None))
_IS_UNKNOWN = and_(JobRow.due_at.is_not(None), JobRow.state == JobState.SUBMISSION_UNKNOWN)


def read_epoch(connection: Connection) -> str:
    """What distinguishes tokens of this table's timeline from those of a lost one."""
    return connection.execute(_NEWEST_EPOCH).scalar_one_or_none() or FIRST_EPOCH


def find_restore(connection: Connection, lost_since: datetime) -> Restore | None:
    """The restore that was carried out for this time before."""
    statement = select(_RESTORES).where(RestoreRow.lost_since == lost_since)
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
    statement = select(_JOBS).where(*_are_doubtful(known)).order_by(JobRow.id).limit(limit)
    return fetch_all(connection, Job, statement.with_for_update())


def count_doubtful(connection: Connection, known: Restore | None) -> dict[JobState, int]:
    """How many there are, with those that are unknown anyway."""
    doubtful = select(JobRow.state, func.count()).where(*_are_doubtful(known))
    found = dict(connection.execute(doubtful.group_by(JobRow.state)).all())
    return {**found, JobState.SUBMISSION_UNKNOWN: count(connection, _IS_UNKNOWN)}


def hasten_unknown(connection: Connection, now: datetime) -> int:
    """Make all unknown submissions due at once; how many there are."""
    return change(connection, JobRow, _IS_UNKNOWN, due_at=now)


def widen_stand_ins(connection: Connection, lost_since: datetime) -> None:
    """What an earlier restore for a later time has put in doubt is searched for from then on."""
    is_later = AttemptRow.started_at > lost_since
    change(connection, AttemptRow, _IS_STAND_IN, is_later, started_at=lost_since)


def restart_observing(connection: Connection) -> None:
    """What was waited before the restore does not count: in the gap it may have been sent again."""
    is_open = or_(AttemptRow.outcome.is_(None), AttemptRow.outcome == Outcome.UNKNOWN)
    is_unmatched = AttemptRow.fal_request_id.is_(None)
    change(connection, AttemptRow, is_open, is_unmatched, observed_start=None)


def find_stand_in(connection: Connection, job_id: UUID) -> Attempt | None:
    """The job's attempt that stands for a lost one of which no request is known yet."""
    statement = select(_ATTEMPTS).where(AttemptRow.job_id == job_id, _IS_STAND_IN)
    newest = statement.order_by(AttemptRow.number.desc()).limit(1)
    return fetch_one(connection, Attempt, newest)


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
