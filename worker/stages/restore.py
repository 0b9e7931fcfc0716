"""Beside the path. restore: what a restored back-up, or a failover, may have wrong is put in doubt.

Of all that happened since the back-up the rows are lost, but not the requests at fal. So what is
queued here may be paid already: it becomes unknown, with an attempt that stands for the lost one,
and `resolve.py` searches for that before anything is bought. A new epoch keeps the tokens of new
attempts apart from those of lost ones.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from worker.fal.options import RequestOptions
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import attempts, deliveries, restores
from worker.jobs.states import JobState
from worker.jobs.values import Job, NewAttempt, Restore
from worker.stages.complete import doubt_job
from worker.stages.sweep import take_over

BATCH = 200

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found and done, or would be; without an epoch nothing was done.

    `doubted` were queued, `taken_over` in the hands of a worker; `unknown` are all that are unknown
    now, and searched for at once.
    """

    lost_since: datetime
    epoch: str | None
    is_repeated: bool
    doubted: int
    taken_over: int
    unknown: int
    strays: int


def restore_jobs(
    lost_since: datetime,
    *,
    db: Database,
    options: RequestOptions,
    account: str | None,
    clock: Clock = read_clock,
) -> Restored:
    """Put in doubt what fal may have taken since then. For a table that no worker is at.

    The same time again is the same restore: it goes on where it was interrupted, and leaves alone
    what came after it. `options` are the defaults that lost submissions were sent with, `account`
    the fingerprint of the key that paid for them.
    """
    now = clock()
    with db.transaction() as connection:
        known = restores.find_restore(connection, lost_since)
        restore = known or restores.insert_restore(connection, lost_since, now)
        restores.widen_stand_ins(connection, lost_since)
        if known is None:
            restores.restart_observing(connection)
    done = {JobState.QUEUED: 0, JobState.SUBMITTING: 0}
    while True:
        with db.transaction() as connection:
            batch = restores.list_doubtful(connection, known, BATCH)
            for job in batch:
                _put_in_doubt(connection, job, restore, options, account, now)
                done[job.state] += 1
        if len(batch) < BATCH:
            break
    with db.transaction() as connection:
        unknown = restores.hasten_unknown(connection, now)
        strays = deliveries.count_strays(connection)
    found = {**done, JobState.SUBMISSION_UNKNOWN: unknown}
    restored = _describe(lost_since, restore.epoch, found, strays, is_repeated=known is not None)
    log.warning("restored", epoch=restored.epoch, doubted=restored.doubted, unknown=unknown)
    return restored


def foresee_restore(lost_since: datetime, *, db: Database) -> Restored:
    """What `restore_jobs` would do; nothing is written."""
    with db.reading() as connection:
        known = restores.find_restore(connection, lost_since)
        found = restores.count_doubtful(connection, known)
        strays = deliveries.count_strays(connection)
    return _describe(lost_since, None, found, strays, is_repeated=known is not None)


def _put_in_doubt(
    connection: Connection,
    job: Job,
    restore: Restore,
    options: RequestOptions,
    account: str | None,
    now: datetime,
) -> None:
    if job.state is JobState.SUBMITTING:
        # Its own attempt stands for whatever else was lost: it has the same input.
        take_over(connection, job, now, lease=timedelta())
        return
    sent = RequestOptions.model_validate(job.options).fill_in(options)
    new = NewAttempt(
        uuid7(),
        # A token that nobody has: its webhook is told by what it was signed for.
        attempts.hash_token(secrets.token_urlsafe(32)),
        max(restore.lost_since, job.tried_since),
        sent.to_json(),
        account,
    )
    detail = f"the table was restored, and what happened since {restore.lost_since:%F %T} is lost"
    doubt_job(connection, job, new, now, detail, restores.name_stand_in(restore))


def _describe(
    lost_since: datetime,
    epoch: str | None,
    found: Mapping[JobState, int],
    strays: int,
    *,
    is_repeated: bool,
) -> Restored:
    doubted = found.get(JobState.QUEUED, 0)
    taken_over = found.get(JobState.SUBMITTING, 0)
    unknown = found[JobState.SUBMISSION_UNKNOWN]
    if epoch is None:
        unknown += doubted + taken_over
    return Restored(lost_since, epoch, is_repeated, doubted, taken_over, unknown, strays)
