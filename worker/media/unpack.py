"""Unpack a video that came inside its URL (a data URI), chunk by chunk, into any sink.

What is wrong with such a URL does not mend itself, so every error is a MediaRefusedError.
"""

import base64
import binascii
from collections.abc import Iterator

from worker.ground.data_uri import SCHEME, is_data_uri
from worker.ground.errors import MediaRefusedError
from worker.media.download import Chunk, Download, DownloadLimits, Intake, OnProgress, Sink

CHUNK_CHARACTERS = 64 * 1024
MAX_HEADER = 256
DEFAULT_TYPE = "text/plain"
_SPACES = str.maketrans("", "", " \t\r\n")


def unpack_video(
    url: str,
    sink: Sink,
    *,
    limits: DownloadLimits,
    on_progress: OnProgress | None = None,
) -> Download:
    """Decode the data URI into `sink`; memory stays at a few chunks beside the text itself.

    As `download_video`, with the same bound on bytes. Raises MediaRefusedError.
    """
    content_type, start = _read_header(url)
    with Intake(sink, limits.max_bytes, on_progress) as intake:
        for chunk in _decode(url, start):
            intake.take(chunk)
        if intake.received == 0:
            raise MediaRefusedError("the video inside the result is empty")
        return intake.finish(content_type)


def make_marker(url: str, sha256: str, size: int) -> str:
    """What is kept in place of an archived data URI: still one, but without its content."""
    content_type, _ = _read_header(url)
    return f"{SCHEME}{content_type};archived;sha256={sha256};bytes={size},"


def is_unpacked(url: str) -> bool:
    """Whether it is a marker that stands in place of a data URI."""
    return is_data_uri(url) and ";archived;" in url[:MAX_HEADER]


def _read_header(url: str) -> tuple[str, int]:
    """The content type, and where the content begins."""
    comma = url.find(",", 0, MAX_HEADER)
    head = url[len(SCHEME) : comma]
    if comma < 0 or not is_data_uri(url):
        raise MediaRefusedError("the video inside the result is no data URI")
    content_type, *parameters = (part.strip().lower() for part in head.split(";"))
    if "base64" not in parameters:
        raise MediaRefusedError("the video inside the result is not encoded as base64")
    return content_type or DEFAULT_TYPE, comma + 1


def _decode(url: str, start: int) -> Iterator[Chunk]:
    """By slices; spaces and line ends, which some encoders put in, are passed over.

    So is missing padding: a paid result is taken as it came, not judged as an input is.
    """
    rest, has_ended = "", False
    for place in (*range(start, len(url), CHUNK_CHARACTERS), None):
        if place is None:
            text, rest = rest + "=" * (-len(rest) % 4), ""
        else:
            text = rest + url[place : place + CHUNK_CHARACTERS].translate(_SPACES)
            whole = len(text) - len(text) % 4
            text, rest = text[:whole], text[whole:]
        if has_ended and (text or rest):
            raise MediaRefusedError("the video inside the result goes on after its end")
        if text:
            try:
                yield base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                reason = f"the video inside the result is spoiled: {error}"
                raise MediaRefusedError(reason) from None
            has_ended = text.endswith("=")
