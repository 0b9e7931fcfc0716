"""Unpack a video that came inside its URL (a data URI), chunk by chunk, into any sink.

A faulty URL cannot become good, so every fault is a MediaRefusedError.
"""

from worker.ground.data_uri import (
    MAX_HEADER,
    SCHEME,
    DataUriError,
    decode_data_uri,
    is_data_uri,
    read_content_type,
)
from worker.ground.errors import MediaRefusedError
from worker.media.download import Download, DownloadLimits, Intake, OnProgress, Sink


def unpack_video(
    url: str,
    sink: Sink,
    *,
    limits: DownloadLimits,
    on_progress: OnProgress | None = None,
) -> Download:
    """Decode the data URI into `sink`; memory is a few chunks beside the text itself.

    As `download_video`, with the same bound on bytes. Raises MediaRefusedError.
    """
    try:
        content_type = read_content_type(url)
        with Intake(sink, limits.max_bytes, on_progress) as intake:
            for chunk in decode_data_uri(url):
                intake.take(chunk)
            if intake.received == 0:
                raise MediaRefusedError("the video inside the result is empty")
            return intake.finish(content_type)
    except DataUriError as error:
        raise MediaRefusedError(f"the video inside the result {error}") from None


def make_marker(url: str, sha256: str, size: int) -> str:
    """What is kept in place of an archived data URI: still one, but without its content."""
    try:
        content_type = read_content_type(url)
    except DataUriError as error:
        raise MediaRefusedError(f"the video inside the result {error}") from None
    return f"{SCHEME}{content_type};archived;sha256={sha256};bytes={size},"


def is_unpacked(url: str) -> bool:
    """Whether it is a marker that stands in place of a data URI."""
    return is_data_uri(url) and ";archived;" in url[:MAX_HEADER]
