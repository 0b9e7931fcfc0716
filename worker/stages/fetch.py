"""Beneath the archive stage. fetch: bring a finished video to local disk, and see that it is whole.

What is no video, or damaged, is fetched once more. A URL that its host knows no more is
asked for again at fal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from worker.fal.model import VideoFile, parse_output
from worker.ground.data_uri import is_data_uri
from worker.ground.errors import Finding, MediaBoundError, MediaGoneError, MediaMismatchError
from worker.jobs.values import Attempt, Job
from worker.media.download import Download, DownloadLimits, download_video
from worker.media.examiner import Examiner
from worker.media.facts import Examined, Stated
from worker.media.hosts import MediaHosts
from worker.media.layout import choose_extension
from worker.media.pinned import MediaClient
from worker.media.spool import SpoolFile
from worker.media.unpack import is_unpacked, unpack_video
from worker.media.verify import compare_bytes, find_missing_bytes
from worker.stages.lease import Holder
from worker.stages.record import read_stated
from worker.stages.source import Source

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
