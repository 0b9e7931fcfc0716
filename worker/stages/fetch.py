"""Beneath the archive stage. fetch: bring a finished video to local disk, and see that it is whole.

What is no video, or damaged, is fetched once more. A URL that its host knows no more is
asked for again at fal.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from pydantic import JsonValue

from worker.fal.completion import ODD_DELIVERY, Completion
from worker.fal.model import INLINE_BYTES, VideoFile, list_oddities, parse_output
from worker.fal.options import needs_signing, parse_options
from worker.fal.platform import FileSigner
from worker.fal.requests import Forgotten, Pending, RequestClient, ResultGone, Truth, Unclear
from worker.ground.data_uri import is_data_uri, parse_data_uri
from worker.ground.errors import (
    Finding,
    InvalidResultError,
    MediaBoundError,
    MediaGoneError,
    MediaMismatchError,
)
from worker.jobs.values import Attempt, Job
from worker.media.download import Download, DownloadLimits, download_video
from worker.media.examiner import Examiner
from worker.media.facts import Examined, Stated, VideoFacts
from worker.media.hosts import MediaHosts
from worker.media.layout import choose_extension
from worker.media.pinned import MediaClient
from worker.media.sidecar import VERSION, AttemptRecord, FileRecord, Sidecar, Times, VideoRecord
from worker.media.spool import SpoolFile
from worker.media.unpack import is_unpacked, make_marker, unpack_video
from worker.media.verify import compare_bytes, find_missing_bytes
from worker.stages.lease import Holder

# ------------------------------------------------------------------ record


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


# ------------------------------------------------------------------ source


@dataclass(frozen=True, slots=True)
class Source:
    """Both clients are opened when they are first needed: most videos need neither.

    `made` is the attempt whose request made the job's result; None if it is not known.
    """

    open_requests: Callable[[], RequestClient]
    open_signer: Callable[[], FileSigner]

    def find_url(self, job: Job, made: Attempt | None, life: timedelta) -> str:
        """The URL to read the job's video by, for at least so long.

        Raises MediaUnavailableError and MediaRefusedError where fal signs none.
        """
        url = parse_output(job.result).video.url
        if made is None or not needs_signing(parse_options(made.options)):
            return url
        return self.open_signer().sign_file(url, life)

    def renew_result(self, job: Job, made: Attempt | None, refusal: MediaGoneError) -> Job:
        """The job with the result that fal has now.

        Raises the refusal, with what fal says, if that is the same, or none any more.
        """
        if made is None:
            raise refusal
        truth = self.open_requests().find_truth(made, str(made.fal_request_id))
        result = read_result(truth)
        if result is None:
            raise MediaGoneError(f"{refusal}; fal was asked again: {describe_truth(truth)}")
        if parse_output(result).video.url == parse_output(job.result).video.url:
            raise MediaGoneError(f"{refusal}; fal was asked again: it names the same URL")
        return replace(job, result=result)


def read_result(truth: Truth) -> dict[str, Any] | None:
    """The result, if that is what fal says; pure."""
    if not isinstance(truth, Completion) or truth.status != "OK":
        return None
    try:
        parse_output(truth.payload)
    except InvalidResultError:
        return None
    return truth.payload if isinstance(truth.payload, dict) else None


def describe_truth(truth: Truth) -> str:
    """Why that is no result; pure."""
    match truth:
        case Unclear():
            return f"nothing was learnt ({truth.message})"
        case Completion():
            return "its result has no video"
        case Forgotten() | ResultGone():
            return "it has the result no longer"
        case Pending():
            return f"the request is {truth.status}"


# A signed URL has to hold for the whole download, and a little longer.
MARGIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified video, whole in its file; `job` has the result that it was fetched by.

    `warnings` say in what the file is odd, or differs from what was stated. Of a file that is not
    decoded `examined` is None: it is paid for, and nothing proves that it is damaged.
    """

    job: Job
    examined: Examined | None
    extension: str
    warnings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches one video at a time, with what a worker has at hand."""

    source: Source
    client: MediaClient
    hosts: MediaHosts
    limits: DownloadLimits
    examiner: Examiner

    def fetch_video(
        self,
        job: Job,
        made: Attempt | None,
        file: SpoolFile,
        holder: Holder,
        undecoded: str | None = None,
    ) -> Fetched:
        """Fill the file with the job's video; `made` as in Source.

        `undecoded` is the reason not to decode it, if there is one.

        Raises MediaMismatchError for what came twice and was no whole video (its bytes are in the
        file then), MediaGoneError, MediaUnavailableError, MediaRefusedError, StoreUnavailableError,
        and ClaimLostError.
        """
        try:
            return self._fetch_verified(job, made, file, holder, undecoded)
        except MediaGoneError as refusal:
            renewed = self.source.renew_result(job, made, refusal)
        file.restart()
        return self._fetch_verified(renewed, made, file, holder, undecoded)

    def _fetch_verified(
        self,
        job: Job,
        made: Attempt | None,
        file: SpoolFile,
        holder: Holder,
        undecoded: str | None,
    ) -> Fetched:
        try:
            return self._fetch_once(job, made, file, holder, undecoded)
        except MediaMismatchError:
            if is_data_uri(parse_output(job.result).video.url):
                raise
        file.restart()
        return self._fetch_once(job, made, file, holder, undecoded)

    def _fetch_once(
        self,
        job: Job,
        made: Attempt | None,
        file: SpoolFile,
        holder: Holder,
        undecoded: str | None,
    ) -> Fetched:
        download = self._take(job, made, file, holder)
        holder.check()
        file.begin_flush()  # the disk is busy with it while the processor is with decoding
        video = parse_output(job.result).video
        stated = read_stated(video, download.announced)
        extension, coding = name_extension(video, download), tuple(describe_coding(download))
        if undecoded is None:
            try:
                examined = self.examiner.verify(file.path, stated, holder.check)
                return Fetched(job, examined, extension, (*coding, *examined.oddities))
            except MediaBoundError as bound:
                undecoded = str(bound)
        odd = describe_undecoded(undecoded, stated, download.bytes)
        return Fetched(job, None, extension, (*coding, *odd))

    def _take(self, job: Job, made: Attempt | None, file: SpoolFile, holder: Holder) -> Download:
        """From its host, or out of the result itself."""
        url = parse_output(job.result).video.url
        if is_unpacked(url):
            raise MediaGoneError("the video came inside its result, and was taken out of it")
        if is_data_uri(url):
            return unpack_video(url, file, limits=self.limits, on_progress=holder.check)
        return download_video(
            self.source.find_url(job, made, self.limits.total + MARGIN),
            file,
            client=self.client,
            hosts=self.hosts,
            limits=self.limits,
            on_progress=holder.check,
        )


def describe_undecoded(reason: str, stated: Stated, size: int) -> Iterator[Finding]:
    """Raises MediaMismatchError if bytes are missing, which needs no decoding to be proven."""
    short = tuple(find_missing_bytes(stated, size))
    if short:
        raise MediaMismatchError(short)
    yield Finding("undecoded", f"archived without being decoded: {reason}")
    yield from compare_bytes(stated, size)


def describe_coding(download: Download) -> Iterator[Finding]:
    if download.coding is not None:
        told = f"its host calls the bytes encoded as {download.coding}, and they are not"
        yield Finding("odd_encoding", told, "Content-Encoding", stated=download.coding)


def name_extension(video: VideoFile, download: Download) -> str:
    return choose_extension(
        video.content_type or download.content_type, video.file_name, download.head
    )
