"""Beside the path. restore: what a restored back-up, or a failover, may have wrong is put in doubt.

The rows of all that happened since the back-up are lost, but not the requests at fal. So what is
queued here may be paid already: it becomes unknown, with an attempt that stands for the lost one,
and `resolve.py` searches for that before anything is bought. A new epoch keeps the tokens of new
attempts apart from those of lost ones.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from uuid_utils.compat import uuid7

from worker.fal.options import RequestOptions
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import attempts, deliveries, restores
from worker.jobs.states import JobState
from worker.jobs.values import NewAttempt
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
    """Put in doubt what fal may have taken since then. For a table that no worker uses now.

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
    since = restore.lost_since
    detail = f"the table was restored, and what happened since {since:%F %T} is lost"
    done = {JobState.QUEUED: 0, JobState.SUBMITTING: 0}
    has_more = True
    while has_more:
        with db.transaction() as connection:
            batch = restores.list_doubtful(connection, known, BATCH)
            for job in batch:
                done[job.state] += 1
                if job.state is JobState.SUBMITTING:
                    # Its own attempt stands for all that was lost: it has the same input.
                    take_over(connection, job, now, lease=timedelta())
                    continue
                lost = NewAttempt(
                    uuid7(),
                    # A token that nobody has: a webhook is recognised by what its own was made for.
                    attempts.hash_token(secrets.token_urlsafe(32)),
                    max(since, job.tried_since),
                    RequestOptions.model_validate(job.options).fill_in(options).to_json(),
                    account,
                )
                by = restores.name_stand_in(restore)
                doubt_job(connection, job, lost, now, detail, by)
        has_more = len(batch) == BATCH
    with db.transaction() as connection:
        unknown = restores.hasten_unknown(connection, now)
        strays = deliveries.count_strays(connection)
    doubted, taken_over = done[JobState.QUEUED], done[JobState.SUBMITTING]
    log.warning("restored", epoch=restore.epoch, doubted=doubted, unknown=unknown)
    is_repeated = known is not None
    return Restored(lost_since, restore.epoch, is_repeated, doubted, taken_over, unknown, strays)


def foresee_restore(lost_since: datetime, *, db: Database) -> Restored:
    """What `restore_jobs` would do; nothing is written."""
    with db.reading() as connection:
        known = restores.find_restore(connection, lost_since)
        found = restores.count_doubtful(connection, known)
        strays = deliveries.count_strays(connection)
    doubted, taken_over = found.get(JobState.QUEUED, 0), found.get(JobState.SUBMITTING, 0)
    unknown = found[JobState.SUBMISSION_UNKNOWN] + doubted + taken_over
    return Restored(lost_since, None, known is not None, doubted, taken_over, unknown, strays)
