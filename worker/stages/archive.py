"""4. archive: claim a completed job, have its video kept, write where it is.

The last stage of the path. Beneath it: `source.py`, where the video can be read; `fetch.py`, onto
local disk and verified; `keep.py`, into the archive. `sweep.py` looks after jobs that stand still.
"""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from worker.fal.model import parse_output
from worker.ground.clock import Clock, Draw, spread
from worker.ground.data_uri import is_data_uri
from worker.ground.db import Database
from worker.ground.errors import (
    ClaimLostError,
    ExtendVideoError,
    MediaGoneError,
    PermanentError,
    RetryableError,
    UnarchivableError,
)
from worker.jobs import attempts, deliveries, limits, table
from worker.jobs.states import JobEvent
from worker.jobs.values import Claim, Job, Move
from worker.stages.keep import Keeper, Kept
from worker.stages.lease import Heartbeat
from worker.stages.record import mark_result

# How long a job waits that found too many downloads running: short, but many wait together.
FIRST_TURN = timedelta(seconds=2)
LONGEST_TURN = timedelta(minutes=1)
FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=5)
# A host that has the video no more may not have it yet: so long after the result it is believed.
GONE_AFTER = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """What every archive step of this worker shares."""

    worker: str
    lease: timedelta
    max_downloads: int = 32
    """How many may run at once, over all workers."""


def archive_job(job_id: UUID, *, keeper: Keeper, policy: ArchivePolicy) -> Job | None:
    """Keep our own copy of the job's video. None if the job was not, or did not stay, ours."""
    db, clock = keeper.db, keeper.clock
    now = clock()
    claim = Claim(policy.worker, now, now + policy.lease)
    with db.transaction() as connection:
        job = limits.claim_download(
            connection,
            job_id,
            claim,
            most=policy.max_downloads,
            defer=lambda since: now + choose_turn_delay(now - since),
        )
    if job is None:
        return None
    try:
        with Heartbeat(job, db=db, lease=policy.lease, clock=clock) as heartbeat:
            kept = keeper.keep_video(job, heartbeat)
    except ClaimLostError:
        return None
    except RetryableError as error:
        return postpone_archive(job, error, db=db, clock=clock)
    except MediaGoneError as error:
        settle = postpone_archive if is_early(job, db=db, clock=clock) else refuse_archive
        return settle(job, error, db=db, clock=clock)
    except PermanentError as error:
        return refuse_archive(job, error, db=db, clock=clock)
    return record_archive(kept, db=db, clock=clock)


def is_early(job: Job, *, db: Database, clock: Clock) -> bool:
    """Whether the result came so lately that its host may not have the video yet."""
    now = clock()
    with db.reading() as connection:
        completed_at = attempts.find_result_time(connection, job.id)
    return now - (completed_at or now) < GONE_AFTER


def record_archive(kept: Kept, *, db: Database, clock: Clock) -> Job | None:
    """Write where the video is."""
    was_inline = is_data_uri(parse_output(kept.job.result).video.url)
    with db.transaction() if was_inline else db.statement() as connection:
        move = Move(clock(), columns=describe_copy(kept))
        moved = table.apply_event(connection, kept.job, JobEvent.ARCHIVE_RECORDED, move)
        if moved is not None and was_inline:
            marker = parse_output(moved.result).video.url
            # Base64 is a third longer than its content: a shorter body does not hold the video.
            deliveries.replace_bodies(connection, moved.id, marker.encode(), kept.stored.bytes)
    return moved


def describe_copy(kept: Kept) -> dict[str, Any]:
    """Our copy, as columns of its row; a video that came inside its result is not kept there too.

    The result is written again, as its URL may be a newer one.
    """
    result = mark_result(kept.job.result or {}, kept.stored.sha256, kept.stored.bytes)
    return {**kept.columns, "result": result}


def postpone_archive(
    job: Job, error: ExtendVideoError, *, db: Database, clock: Clock
) -> Job | None:
    """Give the row back until later; the paid result is as safe as before."""
    now = clock()
    blocked = {"blocked_reason": f"{error.code}: {error}"}
    with db.transaction() as connection:
        completed_at = attempts.find_result_time(connection, job.id)
        delay = choose_delay(now - (completed_at or now))
        move = Move(now, now + delay, str(error), blocked)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_POSTPONED, move)


def refuse_archive(job: Job, error: PermanentError, *, db: Database, clock: Clock) -> Job | None:
    why = {"error_code": error.code, "error_message": str(error)}
    if isinstance(error, UnarchivableError):
        why["quarantine_uri"] = error.quarantine_uri
    with db.transaction() as connection:
        move = Move(clock(), detail=str(error), columns=why)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_REFUSED, move)


def choose_delay(tried_for: timedelta) -> timedelta:
    """As long again as it has been tried so far, within bounds: so each pause is twice the last."""
    return min(max(tried_for, FIRST_DELAY), LONGEST_DELAY)


def choose_turn_delay(waited_for: timedelta, draw: Draw = random.random) -> timedelta:
    """The longer it has waited the longer it waits: the many of a jam do not ask all the time."""
    return spread(min(max(waited_for, FIRST_TURN), LONGEST_TURN), draw)
