"""4. archive: claim a completed job, have its video kept, write where it is.

The last stage of the path. Beneath it: `source.py`, where the video can be read; `fetch.py`, onto
local disk and verified; `keep.py`, into the archive. `sweep.py` looks after jobs that stand still.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from worker.fal.model import parse_output
from worker.ground.clock import Clock, Draw, read_clock, spread
from worker.ground.data_uri import is_data_uri
from worker.ground.db import Database
from worker.ground.errors import (
    ClaimLostError,
    ExtendVideoError,
    InvalidSidecarError,
    MediaGoneError,
    MediaMismatchError,
    MediaRefusedError,
    NameTakenError,
    PermanentError,
    RetryableError,
    StoreObjectMissingError,
    StoreUnavailableError,
    UnarchivableError,
)
from worker.jobs import attempts, deliveries, limits, table
from worker.jobs.states import JobEvent
from worker.jobs.values import Attempt, Claim, Job, Move
from worker.media.examiner import Examiner
from worker.media.facts import VideoFacts
from worker.media.layout import (
    HEAD_BYTES,
    UNKNOWN_TYPE,
    VIDEO_TYPES,
    ArchiveNames,
    Layout,
    StoredObject,
    choose_extension,
    name_quarantine,
)
from worker.media.sidecar import FileRecord, Sidecar, describe_file, parse_sidecar
from worker.media.spool import SpoolFile
from worker.media.store import Store
from worker.stages.fetch import (
    ArchivedFiles,
    Fetched,
    Fetcher,
    build_sidecar,
    find_maker,
    list_warnings,
    mark_result,
)
from worker.stages.lease import Heartbeat, Holder

# ------------------------------------------------------------------ keep


JSON, JPEG, BYTES = "application/json", "image/jpeg", "application/octet-stream"
# A data URI is quoted by its beginning.
MOST_URL_CHARACTERS = 500
# After so many the video itself may be what ends them.
MOST_SILENT_CLAIMS = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """A published video: its job with the result it was fetched by, and columns for the row."""

    job: Job
    columns: dict[str, Any]
    stored: StoredObject


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps one video at a time, with what a worker has at hand."""

    db: Database
    store: Store
    fetcher: Fetcher
    layout: Layout
    clock: Clock = read_clock

    def keep_video(self, job: Job, holder: Holder) -> Kept:
        """Fetch, verify and publish the video of the job's result.

        Raises RetryableError, PermanentError (ClaimLostError among them). After an
        UnarchivableError the bytes are in quarantine; else nothing has its final name but, at
        worst, what belongs to the video.
        """
        with self.store.spool.begin(str(job.id)) as file:
            tried = self._list_attempts(job)
            try:
                fetched = self.fetcher.fetch_video(
                    job, find_maker(job, tried), file, holder, self._explain_silence(job)
                )
            except MediaMismatchError as mismatch:
                holder.renew()
                raise self._quarantine(job, file, mismatch) from mismatch
            return self._publish(fetched, tried, file, holder)

    def _publish(
        self, fetched: Fetched, tried: Sequence[Attempt], file: SpoolFile, holder: Holder
    ) -> Kept:
        job = fetched.job
        facts = None if fetched.examined is None else fetched.examined.facts
        names = self._choose_names(job, fetched.extension, file.sha256())
        pictures = {} if facts is None else dict(self._draw(file, facts, names, holder))
        video = FileRecord(name=names.video, bytes=file.bytes, sha256=file.sha256())
        warnings = list_warnings(job, fetched.warnings)
        sidecar = build_sidecar(
            job,
            tried,
            facts,
            ArchivedFiles(
                video,
                _describe_picture(names.poster, pictures),
            ),
            warnings,
        )
        # A holder that has lost its claim leaves the file to the next one.
        holder.renew()
        self._reserve(names.sidecar, sidecar)
        for name, body in pictures.items():
            self.store.put(name, body, JPEG)
        media_type = facts.media_type if facts else VIDEO_TYPES.get(fetched.extension, UNKNOWN_TYPE)
        stored = self.store.publish(file, names.video, media_type)
        poster = self.store.find_uri(names.poster) if names.poster in pictures else None
        columns = {
            "archive_uri": stored.uri,
            "archive_sha256": stored.sha256,
            "archive_bytes": stored.bytes,
            "archive_media": sidecar.video.model_dump(mode="json")["media"],
            "archive_warnings": warnings or None,
            "archive_poster_uri": poster,
            "archive_sidecar_uri": self.store.find_uri(names.sidecar),
            "archive_verified_at": self.clock(),
            "archive_error": None,
        }
        return Kept(fetched.job, columns, stored)

    def _choose_names(self, job: Job, extension: str, sha256: str) -> ArchiveNames:
        """The usual ones; marked ones if those are of another video that the row names."""
        usual, marked = (
            self.layout.name(job.id, job.tenant, job.enqueued_at, extension, mark)
            for mark in ("", sha256)
        )
        current = (job.archive_uri and self.store.find_name(job.archive_uri)) or ""
        is_usual = current.rpartition(".")[0] == usual.video.rpartition(".")[0]
        is_other = is_usual and job.archive_sha256 != sha256
        return marked if is_other or current == marked.video else usual

    def _draw(
        self, file: SpoolFile, facts: VideoFacts, names: ArchiveNames, holder: Holder
    ) -> Iterator[tuple[str, bytes]]:
        """The poster by its name. A video without one is as good."""
        with suppress(MediaRefusedError):  # no frame of it can be shown: the video counts
            yield names.poster, self.examiner.draw_poster(file.path, facts, holder.check)

    def _reserve(self, name: str, sidecar: Sidecar) -> None:
        """Write the sidecar, but never over that of another job. Raises NameTakenError."""
        body = sidecar.to_bytes()
        if self.store.create(name, body, JSON):
            return
        owner = self._find_owner(name)
        if owner != sidecar.job_id:
            raise NameTakenError(f"{name} belongs to {owner or 'somebody else'}")
        self.store.put(name, body, JSON)

    def _find_owner(self, name: str) -> UUID | None:
        """The job that the sidecar tells of; None if it is no sidecar of ours.

        Raises StoreUnavailableError if it is there no more.
        """
        try:
            return parse_sidecar(b"".join(self.store.read(name))).job_id
        except InvalidSidecarError:  # told by None
            return None
        except StoreObjectMissingError as error:  # its owner's, if anybody's: the next try tells
            raise StoreUnavailableError(f"{name} was deleted just now") from error

    def _quarantine(
        self, job: Job, file: SpoolFile, mismatch: MediaMismatchError
    ) -> UnarchivableError:
        """Keep the bytes and the evidence against them, for whoever looks into it."""
        video = parse_output(job.result).video
        with file.path.open("rb") as content:
            head = content.read(HEAD_BYTES)
        names = name_quarantine(job.id, choose_extension(None, video.file_name, head))
        evidence = {
            "job_id": str(job.id),
            "request_id": job.fal_request_id,
            "url": video.url[:MOST_URL_CHARACTERS],
            "evidence": [one.to_json() for one in mismatch.evidence],
            "bytes": file.bytes,
            "sha256": file.sha256(),
            "at": self.clock().isoformat(),
        }
        body = json.dumps(evidence, ensure_ascii=False, indent=2).encode()
        self.store.put(names.evidence, body, JSON)
        stored = self.store.publish(file, names.video, BYTES)
        return UnarchivableError(mismatch.evidence, stored.uri)

    @property
    def examiner(self) -> Examiner:
        return self.fetcher.examiner

    def _explain_silence(self, job: Job) -> str | None:
        """Why the file is not to be decoded, if worker after worker ended while it had the job."""
        if job.fence <= MOST_SILENT_CLAIMS:
            return None  # so few claims were there of any kind
        with self.db.reading() as connection:
            silent = table.count_events(connection, job.id, JobEvent.ARCHIVE_CLAIM_EXPIRED)
        if silent < MOST_SILENT_CLAIMS:
            return None
        return f"{silent} workers ended while they archived it"

    def _list_attempts(self, job: Job) -> list[Attempt]:
        with self.db.reading() as connection:
            return attempts.list_attempts(connection, job.id)


def _describe_picture(name: str, pictures: Mapping[str, bytes]) -> FileRecord | None:
    return describe_file(name, pictures[name]) if name in pictures else None


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
