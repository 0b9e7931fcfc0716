"""4. archive: claim a completed job, stream its video into the archive, write where it is.

The last stage of the path; `sweep.py` looks after jobs that stand still.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx

from worker.clock import Clock, read_clock
from worker.db import Database
from worker.errors import ClaimLostError, PermanentError, RetryableError
from worker.fal.extend_video import parse_output
from worker.jobs import inline, table
from worker.jobs.states import JobEvent
from worker.jobs.values import Claim, Job, Move
from worker.media.download import Download, DownloadLimits, Sink, download_video
from worker.media.hosts import MediaHosts
from worker.media.layout import Layout
from worker.media.probe import VIDEO_TYPES, choose_extension
from worker.media.store import Store, StoredObject
from worker.media.unpack import is_inline, make_marker, unpack_video
from worker.stages.lease import Heartbeat, Holder

FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=5)
UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class ArchiveTerms:
    """What every archive step of this worker shares."""

    worker: str
    lease: timedelta
    hosts: MediaHosts
    limits: DownloadLimits
    layout: Layout


def archive_job(
    job_id: UUID,
    *,
    db: Database,
    client: httpx.Client,
    store: Store,
    terms: ArchiveTerms,
    clock: Clock = read_clock,
) -> Job | None:
    """Keep our own copy of the job's video. None if the job was not, or did not stay, ours."""
    now = clock()
    claim = Claim(terms.worker, now, now + terms.lease)
    with db.transaction() as connection:
        job = table.claim_job(connection, job_id, JobEvent.ARCHIVE_CLAIMED, claim)
    if job is None:
        return None
    try:
        with Heartbeat(job, db=db, lease=terms.lease, clock=clock) as heartbeat:
            stored = fetch_video(job, client=client, store=store, terms=terms, heartbeat=heartbeat)
    except ClaimLostError:
        return None
    except RetryableError as error:
        return postpone_archive(job, error, db=db, clock=clock)
    except PermanentError as error:
        return refuse_archive(job, error, db=db, clock=clock)
    return record_archive(job, stored, db=db, clock=clock)


def fetch_video(
    job: Job,
    *,
    client: httpx.Client,
    store: Store,
    terms: ArchiveTerms,
    heartbeat: Holder,
) -> StoredObject:
    """Stream the video to its final name. Raises RetryableError or PermanentError."""
    video = parse_output(job.result).video
    with store.spool.begin(str(job.id)) as file:
        download = take_video(
            video.url, file.write, client=client, terms=terms, heartbeat=heartbeat
        )
        extension = choose_extension(
            video.content_type or download.content_type, video.file_name, download.head
        )
        # A holder that has lost its claim leaves the file to the next one.
        heartbeat.renew()
        names = terms.layout.name(job.id, job.tenant, job.enqueued_at, extension)
        return store.publish(file, names.video, VIDEO_TYPES.get(extension, UNKNOWN_TYPE))


def take_video(
    url: str, sink: Sink, *, client: httpx.Client, terms: ArchiveTerms, heartbeat: Holder
) -> Download:
    """From its host, or out of the result itself."""
    if is_inline(url):
        return unpack_video(url, sink, limits=terms.limits, on_progress=heartbeat.check)
    return download_video(
        url,
        sink,
        client=client,
        hosts=terms.hosts,
        limits=terms.limits,
        on_progress=heartbeat.check,
    )


def describe_copy(stored: StoredObject) -> dict[str, Any]:
    """Our copy, as columns of its row."""
    return {
        "archive_uri": stored.uri,
        "archive_sha256": stored.sha256,
        "archive_bytes": stored.bytes,
    }


def record_archive(job: Job, stored: StoredObject, *, db: Database, clock: Clock) -> Job | None:
    """Write where the video is; one that came inside its result is then not kept there too."""
    columns = describe_copy(stored)
    result = job.result or {}
    url = parse_output(result).video.url
    marker = make_marker(url, stored.sha256, stored.bytes) if is_inline(url) else None
    if marker is not None:
        columns["result"] = {**result, "video": {**result["video"], "url": marker}}
    with db.transaction() as connection:
        move = Move(clock(), columns=columns)
        moved = table.apply_event(connection, job, JobEvent.ARCHIVE_RECORDED, move)
        if moved is not None and marker is not None:
            # Base64 is a third longer than its content: a shorter body does not hold the video.
            inline.replace_bodies(connection, job.id, marker.encode(), stored.bytes)
    return moved


def postpone_archive(job: Job, error: RetryableError, *, db: Database, clock: Clock) -> Job | None:
    """Give the row back until later; the paid result is as safe as before."""
    now = clock()
    blocked = {"blocked_reason": f"{error.code}: {error}"}
    delay = choose_delay(now - (job.completed_at or now))
    move = Move(now, now + delay, str(error), blocked)
    with db.transaction() as connection:
        return table.apply_event(connection, job, JobEvent.ARCHIVE_POSTPONED, move)


def refuse_archive(job: Job, error: PermanentError, *, db: Database, clock: Clock) -> Job | None:
    why = {"error_code": error.code, "error_message": str(error)}
    with db.transaction() as connection:
        move = Move(clock(), detail=str(error), columns=why)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_REFUSED, move)


def choose_delay(tried_for: timedelta) -> timedelta:
    """As long again as it has been tried so far, within bounds: so each pause is twice the last."""
    return min(max(tried_for, FIRST_DELAY), LONGEST_DELAY)
