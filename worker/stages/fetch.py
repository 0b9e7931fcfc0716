"""Beneath `archive.py`. fetch: bring a finished video to local disk, and see that it is whole.

A URL expires while fal still has the result: then the result is fetched again, and has a URL that
works. Files that not everybody may read are read by a URL that their owner has signed (fal-api,
section 7). What is no video, or damaged, is downloaded once more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from worker.fal.completion import Completion
from worker.fal.model import VideoFile, parse_output
from worker.fal.options import needs_signing, parse_options
from worker.fal.platform import PlatformClient
from worker.fal.requests import RequestClient, Unclear
from worker.ground.data_uri import is_data_uri
from worker.ground.errors import (
    Finding,
    MediaBoundError,
    MediaGoneError,
    MediaMismatchError,
)
from worker.jobs.values import Attempt, Job
from worker.media.download import DownloadLimits, download_video
from worker.media.examiner import Examiner
from worker.media.facts import Examined, Stated
from worker.media.hosts import MediaHosts
from worker.media.layout import choose_extension
from worker.media.pinned import MediaClient
from worker.media.spool import SpoolFile
from worker.media.unpack import is_unpacked, unpack_video
from worker.media.verify import compare_bytes, find_missing_bytes
from worker.stages.endings import find_failure
from worker.stages.lease import Holder

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
    """Fetches one video at a time, with what a worker has at hand.

    fal's clients are opened when they are first needed: most videos need neither.
    """

    open_requests: Callable[[], RequestClient]
    open_signer: Callable[[], PlatformClient]
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
        """Fill the file with the job's video.

        `made` is the attempt whose request made the job's result; None if it is not known.
        `undecoded` is the reason not to decode it, if there is one.

        Raises MediaMismatchError for what came twice and was no whole video (its bytes are in the
        file then), MediaGoneError, MediaUnavailableError, MediaRefusedError, StoreUnavailableError,
        and ClaimLostError.
        """
        is_renewed = is_repeated = False
        while True:
            try:
                return self._fetch_once(job, made, file, holder, undecoded)
            except MediaMismatchError:
                if is_repeated or is_data_uri(parse_output(job.result).video.url):
                    raise
                is_repeated = True
            except MediaGoneError as refusal:
                if is_renewed:
                    raise
                job = self._renew_result(job, made, refusal)
                is_renewed, is_repeated = True, False
            file.restart()

    def _fetch_once(
        self,
        job: Job,
        made: Attempt | None,
        file: SpoolFile,
        holder: Holder,
        undecoded: str | None,
    ) -> Fetched:
        """From its host, or out of the result itself."""
        video, limits = parse_output(job.result).video, self.limits
        url = video.url
        if is_unpacked(url):
            raise MediaGoneError("the video came inside its result, and was taken out of it")
        if is_data_uri(url):
            download = unpack_video(url, file, limits=limits, on_progress=holder.check)
        else:
            if made is not None and needs_signing(parse_options(made.options)):
                url = self.open_signer().sign_file(url, limits.total + MARGIN)
            client, hosts = self.client, self.hosts
            download = download_video(
                url, file, client=client, hosts=hosts, limits=limits, on_progress=holder.check
            )
        holder.check()
        media_type = video.content_type or download.content_type
        extension = choose_extension(media_type, video.file_name, download.head)
        stated, odd = read_stated(video, download.announced), list[Finding]()
        if download.coding is not None:
            words = f"its host calls the bytes encoded as {download.coding}, and they are not"
            odd.append(Finding("odd_encoding", words, "Content-Encoding", stated=download.coding))
        if undecoded is None:
            try:
                examined = self.examiner.verify(file.path, stated, holder.check)
                return Fetched(job, examined, extension, (*odd, *examined.oddities))
            except MediaBoundError as bound:
                undecoded = str(bound)
        odd += describe_undecoded(undecoded, stated, download.bytes)
        return Fetched(job, None, extension, tuple(odd))

    def _renew_result(self, job: Job, made: Attempt | None, refusal: MediaGoneError) -> Job:
        """The job with the result that fal has now.

        Raises the refusal, with what fal says, if that is the same, or none any more.
        """
        if made is None:
            raise refusal
        truth = self.open_requests().find_truth(made, str(made.fal_request_id))
        if isinstance(truth, Completion) and find_failure(truth) is None:
            result: Any = truth.payload  # an object, or it would be a failure
            if parse_output(result).video.url != parse_output(job.result).video.url:
                return replace(job, result=result)
        words = truth.message if isinstance(truth, Unclear) else "it has no other result"
        raise MediaGoneError(f"{refusal}; fal was polled again: {words}")


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


def describe_undecoded(reason: str, stated: Stated, size: int) -> Iterator[Finding]:
    """Raises MediaMismatchError if bytes are missing, which needs no decoding to be proven."""
    short = tuple(find_missing_bytes(stated, size))
    if short:
        raise MediaMismatchError(short)
    yield Finding("undecoded", f"archived without being decoded: {reason}")
    yield from compare_bytes(stated, size)
