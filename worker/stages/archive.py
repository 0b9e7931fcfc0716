"""4. archive: claim a completed job, keep its video, write where it is.

The last stage of the path. Beneath it: `fetch.py`, onto local disk and verified; beside it,
`sweep.py` for jobs that stand still. The sidecar comes first and reserves the name, the video last:
a video under its name always has its sidecar beside it (ADR 13). Another video than the one that
the row names gets names of its own, so that the row's sidecar and video agree whenever the process
ends.
"""

import json
import random
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from worker.fal.completion import ODD_DELIVERY
from worker.fal.model import INLINE_BYTES, list_oddities, parse_output
from worker.ground.clock import Clock, Draw, read_clock, spread
from worker.ground.data_uri import is_data_uri, parse_data_uri
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
from worker.jobs.states import BlockedBy, JobEvent
from worker.jobs.values import Attempt, Claim, Job, Move
from worker.media.layout import (
    HEAD_BYTES,
    UNKNOWN_TYPE,
    VIDEO_TYPES,
    ArchiveNames,
    Layout,
    choose_extension,
    name_quarantine,
)
from worker.media.sidecar import (
    VERSION,
    AttemptRecord,
    FileRecord,
    Sidecar,
    Times,
    VideoRecord,
    describe_file,
    parse_sidecar,
)
from worker.media.spool import SpoolFile
from worker.media.store import Store
from worker.media.unpack import is_unpacked, make_marker
from worker.stages.fetch import Fetched, Fetcher
from worker.stages.lease import Heartbeat, Holder
from worker.stages.upload import FILE_FIELDS

# How long a job waits that found too many downloads running: short, but many wait together.
FIRST_TURN = timedelta(seconds=2)
LONGEST_TURN = timedelta(minutes=1)
FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=5)
# A host that no longer has the video may not have it yet: so long after the result it is believed.
GONE_AFTER = timedelta(minutes=10)
JSON, JPEG, BYTES = "application/json", "image/jpeg", "application/octet-stream"
# A data URI is quoted by its beginning.
MOST_URL_CHARACTERS = 500
# After so many the video itself may be what ends them.
MOST_SILENT_CLAIMS = 3
SOFTWARE = f"extend-video {version('extend-video')}"


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """What every archive step of this worker shares."""

    worker: str
    lease: timedelta
    max_downloads: int = 32
    """How many may run at once, over all workers."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A published video: its job with the result it was fetched by, and columns for the row."""

    job: Job
    columns: dict[str, Any]


def archive_job(job_id: UUID, *, keeper: "Keeper", policy: ArchivePolicy) -> Job | None:
    """Archive the job's video. None if the job was not ours, or is no longer."""
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
        return None  # claimed by another, not due yet, or too many downloads run: it is later
    try:
        with Heartbeat(job, db=db, lease=policy.lease, clock=clock) as heartbeat:
            kept = keeper.keep_video(job, heartbeat)
    except ClaimLostError:
        return None  # another worker has it
    except (RetryableError, PermanentError) as error:
        return _end_try(job, error, db=db, clock=clock)
    return _record_archive(kept, db=db, clock=clock)


def _record_archive(kept: Kept, *, db: Database, clock: Clock) -> Job | None:
    """Write where the video is; one that came inside its result is not kept there as well.

    The result is written again, as its URL may be a newer one.
    """
    digest, size = kept.columns["archive_sha256"], kept.columns["archive_bytes"]
    result = mark_result(kept.job.result or {}, digest, size)
    was_inline = is_data_uri(parse_output(kept.job.result).video.url)
    with db.transaction() if was_inline else db.statement() as connection:
        move = Move(clock(), columns={**kept.columns, "result": result})
        moved = table.apply_event(connection, kept.job, JobEvent.ARCHIVE_RECORDED, move)
        if moved is not None and was_inline:
            marker = parse_output(moved.result).video.url
            # Base64 is a third longer than its content: a shorter body does not hold the video.
            deliveries.replace_bodies(connection, moved.id, marker.encode(), size)
    return moved


def _end_try(job: Job, error: ExtendVideoError, *, db: Database, clock: Clock) -> Job | None:
    """Postpone the copy, while the paid result is as safe as before; or the job has failed.

    Shortly after its result a missing video may still appear. A redrive archives it again.
    """
    now = clock()
    with db.transaction() as connection:
        completed_at = attempts.find_result_time(connection, job.id) or now
        is_early = isinstance(error, MediaGoneError) and now - completed_at < GONE_AFTER
        if isinstance(error, RetryableError) or is_early:
            by = BlockedBy.RETRY.value
            blocked = {"blocked_by": by, "blocked_reason": f"{error.code}: {error}"}
            move = Move(now, now + choose_delay(now - completed_at), str(error), blocked)
            return table.apply_event(connection, job, JobEvent.ARCHIVE_POSTPONED, move)
        why = {"error_code": error.code, "error_message": str(error)}
        if isinstance(error, UnarchivableError):
            why["quarantine_uri"] = error.quarantine_uri
        move = Move(now, detail=str(error), columns=why)
        return table.apply_event(connection, job, JobEvent.ARCHIVE_REFUSED, move)


def choose_delay(tried_for: timedelta) -> timedelta:
    """As long again as it has been tried so far, within bounds: so each pause is twice the last."""
    return min(max(tried_for, FIRST_DELAY), LONGEST_DELAY)


def choose_turn_delay(waited_for: timedelta, draw: Draw = random.random) -> timedelta:
    """The longer it has waited the longer it waits: the many of a jam do not query all the time."""
    return spread(min(max(waited_for, FIRST_TURN), LONGEST_TURN), draw)


# ------------------------------------------------------------------ into the archive


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
            with self.db.reading() as connection:
                tried, silent = attempts.list_attempts(connection, job.id), 0
                if job.fence > MOST_SILENT_CLAIMS:  # so many claims were there of any kind
                    event = JobEvent.ARCHIVE_CLAIM_EXPIRED
                    silent = table.count_events(connection, job.id, event)
            made, undecoded = find_maker(job, tried), None
            if silent >= MOST_SILENT_CLAIMS:
                undecoded = f"{silent} workers ended while they archived it"
            try:
                fetched = self.fetcher.fetch_video(job, made, file, holder, undecoded)
            except MediaMismatchError as mismatch:
                holder.renew()
                raise self._quarantine(job, file, mismatch) from mismatch
            return self._publish(fetched, tried, file, holder)

    def _publish(
        self, fetched: Fetched, tried: Sequence[Attempt], file: SpoolFile, holder: Holder
    ) -> Kept:
        """Poster, sidecar and video under their final names; a video without poster is as good."""
        job, digest = fetched.job, file.sha256()
        names = self._choose_names(job, fetched.extension, digest)
        facts = fetched.examined.facts if fetched.examined else None
        poster = None
        if facts is not None:
            with suppress(MediaRefusedError):  # no frame of it can be shown: the video counts
                poster = self.fetcher.examiner.draw_poster(file.path, facts, holder.check)
        # All that is odd about the result: as it was delivered, in its fields, in its file.
        warnings = [one for one in job.archive_warnings or () if one.get("code") == ODD_DELIVERY]
        warnings += [one.to_json() for one in (*list_oddities(job.result), *fetched.warnings)]
        sidecar = build_sidecar(
            job,
            tried,
            VideoRecord(name=names.video, bytes=file.bytes, sha256=digest, media=facts),
            None if poster is None else describe_file(names.poster, poster),
            warnings,
        )
        # A holder that has lost its claim leaves the file to the next one.
        holder.renew()
        self._reserve(names.sidecar, sidecar)
        if poster is not None:
            self.store.put(names.poster, poster, JPEG)
        media_type = facts.media_type if facts else VIDEO_TYPES.get(fetched.extension, UNKNOWN_TYPE)
        stored = self.store.publish(file, names.video, media_type)
        columns = {
            "archive_uri": stored.uri,
            "archive_sha256": stored.sha256,
            "archive_bytes": stored.bytes,
            "archive_media": sidecar.video.model_dump(mode="json")["media"],
            "archive_warnings": warnings or None,
            "archive_poster_uri": None if poster is None else self.store.find_uri(names.poster),
            "archive_sidecar_uri": self.store.find_uri(names.sidecar),
            "archive_verified_at": self.clock(),
            "archive_error": None,
        }
        return Kept(job, columns)

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

    def _reserve(self, name: str, sidecar: Sidecar) -> None:
        """Write the sidecar, but never over that of another job.

        Raises NameTakenError, and StoreUnavailableError if what has the name was just deleted.
        """
        body, owner = sidecar.to_bytes(), None
        if self.store.create(name, body, JSON):
            return
        try:
            owner = parse_sidecar(b"".join(self.store.read(name))).job_id
        except InvalidSidecarError:
            pass  # it is no sidecar of ours
        except StoreObjectMissingError as error:  # the next try shows whose it is
            raise StoreUnavailableError(f"{name} was deleted just now") from error
        if owner != sidecar.job_id:
            raise NameTakenError(f"{name} belongs to {owner or 'somebody else'}")
        self.store.put(name, body, JSON)

    def _quarantine(
        self, job: Job, file: SpoolFile, mismatch: MediaMismatchError
    ) -> UnarchivableError:
        """Keep the bytes and the evidence against them, for an operator."""
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


# ------------------------------------------------------------------ the sidecar


def build_sidecar(
    job: Job,
    tried: Sequence[Attempt],
    video: VideoRecord,
    poster: FileRecord | None = None,
    warnings: Sequence[dict[str, str]] = (),
) -> Sidecar:
    """The sidecar of a job with a result. Raises InvalidResultError if it has none."""
    made = find_maker(job, tried)
    sent = mark_input(job.input if made is None else made.input)
    seed = parse_output(job.result).seed
    records = (
        AttemptRecord.model_validate(one, from_attributes=True).model_copy(
            update={"request_id": one.fal_request_id}
        )
        for one in tried
    )
    return Sidecar(
        recipe=VERSION,
        software=SOFTWARE,
        job_id=job.id,
        tenant=job.tenant,
        labels=job.labels,
        endpoint=job.endpoint,
        request_id=job.fal_request_id,
        input=sent,
        options=job.options if made is None else made.options,
        result=mark_result(job.result or {}, video.sha256, video.bytes),
        seed=sent.get("seed") if seed is None else seed,
        attempts=tuple(records),
        times=Times.model_validate(job, from_attributes=True),
        video=video,
        poster=poster,
        archive_warnings=tuple(warnings),
    )


def mark_input(fields: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The same input, with a marker in place of each data URI."""
    marked = dict(fields)
    for name, kind in FILE_FIELDS.items():
        url = fields.get(name)
        if isinstance(url, str) and is_data_uri(url) and not is_unpacked(url):
            content = parse_data_uri(url, kind=kind, max_bytes=INLINE_BYTES).content
            marked[name] = make_marker(url, sha256(content).hexdigest(), len(content))
    return marked


def list_markers(fields: Mapping[str, Any], beside: Container[str]) -> list[str]:
    """The fields, but for those given elsewhere, of which there is only a marker."""
    inline = (name for name in FILE_FIELDS if name not in beside)
    return [name for name in inline if is_unpacked(str(fields.get(name)))]


def restore_input(marked: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The marked input, with each data URI of the stored one that has the marker's very content."""
    known = mark_input(stored)
    same = [name for name in list_markers(marked, ()) if known.get(name) == marked[name]]
    return {**marked, **{name: stored[name] for name in same}}


def mark_result(result: dict[str, Any], sha256: str, size: int) -> dict[str, JsonValue]:
    """The same result, with the marker that the job's row gets once it is archived."""
    url = parse_output(result).video.url
    if not is_data_uri(url) or is_unpacked(url):
        return result
    return {**result, "video": {**result["video"], "url": make_marker(url, sha256, size)}}


def find_maker(job: Job, tried: Sequence[Attempt]) -> Attempt | None:
    """The attempt whose request made the result."""
    made = (one for one in tried if one.fal_request_id == job.fal_request_id is not None)
    return next(made, None)
