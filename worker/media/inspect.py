"""Whether a file may be an input: a video, or a picture, of which at least one frame can be seen.

Only the first frame is decoded, so this takes as long for an hour as for a second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
from av.container import InputContainer

from worker.ground.errors import MediaRefusedError
from worker.media.probe import (
    HEAD_BYTES,
    VIDEO_TYPES,
    check_pixels,
    choose_extension,
    find_picture,
    open_video,
)


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file turned out to be by its bytes, whatever its name says."""

    content_type: str
    extension: str


@dataclass(frozen=True, slots=True)
class _Picture:
    """A kind of picture: how it begins, and FFmpeg's name for reading it."""

    kind: FileKind
    head: bytes
    demuxer: str
    mark: bytes = b""


Inspect: TypeAlias = Callable[[Path], FileKind]

_PICTURES = (
    _Picture(FileKind("image/png", "png"), b"\x89PNG\r\n\x1a\n", "png_pipe"),
    _Picture(FileKind("image/jpeg", "jpg"), b"\xff\xd8\xff", "jpeg_pipe"),
    _Picture(FileKind("image/webp", "webp"), b"RIFF", "webp_pipe", mark=b"WEBP"),
    _Picture(FileKind("image/gif", "gif"), b"GIF8", "gif"),
)


def inspect_video(path: Path) -> FileKind:
    """Raises MediaRefusedError with the reason."""
    try:
        with open_video(path) as container:
            _see_frame(container)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable video: {error.strerror}") from error
    extension = choose_extension(None, None, _read_head(path))
    return FileKind(VIDEO_TYPES.get(extension, "video/mp4"), extension)


def inspect_image(path: Path) -> FileKind:
    """Raises MediaRefusedError with the reason."""
    head = _read_head(path)
    found = next((one for one in _PICTURES if _begins_as(one, head)), None)
    if found is None:
        raise MediaRefusedError("not a readable image: neither PNG, JPEG, WebP nor GIF")
    options = {"protocol_whitelist": "file"}
    try:
        with av.open(path.absolute(), format=found.demuxer, container_options=options) as container:
            _see_frame(container)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable image: {error.strerror}") from error
    return found.kind


def _see_frame(container: InputContainer) -> None:
    """A cover picture beside sound is no video stream."""
    stream = find_picture(container)
    if stream is None:
        raise MediaRefusedError("it has no video stream")
    check_pixels(stream.codec_context.width, stream.codec_context.height)
    frame = next(iter(container.decode(stream)), None)
    if frame is None:
        raise MediaRefusedError("no frame of it can be decoded")
    check_pixels(frame.width, frame.height)


def _begins_as(picture: _Picture, head: bytes) -> bool:
    return head.startswith(picture.head) and picture.mark in head[8:12]


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
