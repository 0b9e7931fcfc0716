"""Beneath the archive stage: what a job's rows say of its video, in media's own plain values.

What fal has stated of it, to be verified; and its sidecar, to be kept beside it.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from pydantic import JsonValue

from worker.fal.completion import ODD_DELIVERY
from worker.fal.model import INLINE_BYTES, VideoFile, list_oddities, parse_output
from worker.ground.data_uri import is_data_uri, parse_data_uri
from worker.ground.errors import Finding
from worker.jobs.values import Attempt, Job
from worker.media.facts import Stated, VideoFacts
from worker.media.sidecar import VERSION, AttemptRecord, FileRecord, Sidecar, Times, VideoRecord
from worker.media.unpack import is_unpacked, make_marker

SOFTWARE = f"extend-video {version('extend-video')}"
INLINE_FIELDS = {"video_url": "video", "end_image_url": "image"}


@dataclass(frozen=True, slots=True)
class ArchivedFiles:
    """What lies, or is about to lie, in the archive for one job."""

    video: FileRecord
    poster: FileRecord | None = None


def read_stated(video: VideoFile, content_length: int | None) -> Stated:
    """What fal says in the result, and its CDN in the header; a data URI has no header."""
    return Stated(
        bytes=video.file_size,
        content_length=content_length,
        media_type=video.content_type,
        width=video.width,
        height=video.height,
        fps=video.fps,
        frames=video.num_frames,
        duration=video.duration,
    )


def list_warnings(job: Job, of_file: Iterable[Finding]) -> list[dict[str, str]]:
    """All that is odd about the job's result: as it was delivered, in its fields, in its file."""
    delivered = [one for one in job.archive_warnings or () if one.get("code") == ODD_DELIVERY]
    return [*delivered, *(one.to_json() for one in (*list_oddities(job.result), *of_file))]


def build_sidecar(
    job: Job,
    attempts: Sequence[Attempt],
    facts: VideoFacts | None,
    files: ArchivedFiles,
    warnings: Sequence[dict[str, str]] = (),
) -> Sidecar:
    """The sidecar of a job with a result. Raises InvalidResultError if it has none."""
    made = find_maker(job, attempts)
    video = files.video
    sent = mark_input(job.input if made is None else made.input)
    seed = parse_output(job.result).seed
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
        attempts=tuple(map(_record_attempt, attempts)),
        times=Times(
            enqueued_at=job.enqueued_at,
            submitted_at=job.submitted_at,
            completed_at=job.completed_at,
        ),
        video=VideoRecord(name=video.name, bytes=video.bytes, sha256=video.sha256, media=facts),
        poster=files.poster,
        archive_warnings=tuple(warnings),
    )


def mark_input(fields: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The same input, with a marker in place of each data URI."""
    urls = {name: fields.get(name) for name in INLINE_FIELDS}
    marked = {
        name: mark_data_uri(url, INLINE_FIELDS[name])
        for name, url in urls.items()
        if isinstance(url, str) and is_data_uri(url) and not is_unpacked(url)
    }
    return {**fields, **marked}


def list_markers(fields: Mapping[str, Any], beside: Container[str]) -> list[str]:
    """The fields, but for those given elsewhere, of which there is only a marker."""
    inline = (name for name in INLINE_FIELDS if name not in beside)
    return [name for name in inline if is_unpacked(str(fields.get(name)))]


def restore_input(marked: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The marked input, with each data URI of the stored one that has the marker's very content."""
    genuine = mark_input(stored)
    same = {
        name: stored[name] for name in list_markers(marked, ()) if genuine.get(name) == marked[name]
    }
    return {**marked, **same}


def mark_data_uri(url: str, kind: str) -> str:
    content = parse_data_uri(url, kind=kind, max_bytes=INLINE_BYTES).content
    return make_marker(url, sha256(content).hexdigest(), len(content))


def mark_result(result: dict[str, Any], sha256: str, size: int) -> dict[str, JsonValue]:
    """The same result, with the marker that the job's row gets once it is archived."""
    url = parse_output(result).video.url
    if not is_data_uri(url) or is_unpacked(url):
        return result
    marker = make_marker(url, sha256, size)
    return {**result, "video": {**result["video"], "url": marker}}


def find_maker(job: Job, attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt whose request made the result."""
    made = (one for one in attempts if one.fal_request_id == job.fal_request_id is not None)
    return next(made, None)


def _record_attempt(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        number=attempt.number,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
        ending=attempt.ending,
        request_id=attempt.fal_request_id,
        extra_charge_at=attempt.extra_charge_at,
    )
