"""What a video file is: facts by decoding it, and its file extension by its first bytes."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath

import av
from av.container import InputContainer

from worker.errors import MediaRefusedError

DEFAULT_EXTENSION = "bin"
EXTENSIONS_BY_TYPE = {
    "image/gif": "gif",
    "video/matroska": "mkv",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}
VIDEO_TYPES = {extension: media_type for media_type, extension in EXTENSIONS_BY_TYPE.items()}
HEAD_BYTES = 256
# playlists and scripts that name other files or URLs are not among them, whatever the file's name
READ_OPTIONS = {"format_whitelist": "mov,matroska,gif,avi", "protocol_whitelist": "file"}

_EXTENSION = re.compile(r"[a-z0-9]{1,5}")
_EBML = b"\x1a\x45\xdf\xa3"
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What decoding the best video stream from end to end has shown.

    `container` is FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`; `fps` is the average rate;
    `frames` were really decoded; `duration` is `frames / fps`.
    """

    container: str
    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration: timedelta
    has_audio: bool


def probe_video(path: Path) -> VideoFacts:
    """Decode the whole file and tell what it is; raises MediaRefusedError if it is no video."""
    try:
        with av.open(path.absolute(), container_options=READ_OPTIONS) as container:
            return _read_facts(container)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable video: {error.strerror}") from error


def choose_extension(content_type: str | None, file_name: str | None, head: bytes) -> str:
    """Give a file extension without the dot: by the bytes, else the type, else the name."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(file_name or "").suffix.removeprefix(".").lower()
    named = suffix if _EXTENSION.fullmatch(suffix) else DEFAULT_EXTENSION
    return _recognise_bytes(head) or EXTENSIONS_BY_TYPE.get(media_type) or named


def _read_facts(container: InputContainer) -> VideoFacts:
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise MediaRefusedError("not a readable video: it has no video stream")
    stream.thread_type = "AUTO"
    frames = sum(1 for _ in container.decode(stream))
    fps = stream.average_rate
    if not frames or not fps:
        raise MediaRefusedError("not a readable video: it has no frames")
    return VideoFacts(
        container=container.format.name,
        codec=stream.codec_context.name,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        fps=float(fps),
        frames=frames,
        duration=timedelta(seconds=float(frames / fps)),
        has_audio=bool(container.streams.audio),
    )


def _recognise_bytes(head: bytes) -> str | None:
    kind, brand = head[4:8], head[8:12]
    if kind == b"ftyp":
        return "mov" if brand == b"qt  " else "mp4"
    if kind in _QUICKTIME_ATOMS:
        return "mov"
    if head.startswith(_EBML):
        return "mkv" if b"matroska" in head else "webm"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and brand == b"AVI ":
        return "avi"
    return None
