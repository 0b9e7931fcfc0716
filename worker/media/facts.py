"""What a worker and the process that decodes say to each other of a file: one JSON line each way.

JSON and not pickle: a decoder that is taken over can then give a wrong answer, but run nothing. A
worker itself needs no PyAV.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from worker.ground.errors import Finding


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file turned out to be by its bytes, not by its name."""

    content_type: str
    extension: str


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One stream: FFmpeg's word for its kind, and its codec; None if FFmpeg knows none."""

    kind: str
    codec: str | None


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the pass has shown.

    `container` is FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`; `media_type` follows from
    the first bytes. `fps` is the average rate, `frames` were really decoded, and `duration` is
    `frames / fps`; both are None where unknown. `rotation` says by how many degrees, 0
    to 359, the picture is turned clockwise when it is shown.

    If not `is_whole`, the file was too large to be decoded to its end: `frames` is then the number
    of its packets.
    """

    container: str
    media_type: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    frames: int
    duration: timedelta | None
    streams: tuple[StreamFacts, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Examined:
    """A video's facts, what is odd about it, and what proves that it is damaged.

    `rates` are the ways in which a frame rate can be read, and `lengths` those of the picture and
    of the file, in seconds.
    """

    facts: VideoFacts
    oddities: tuple[Finding, ...]
    damages: tuple[Finding, ...]
    rates: tuple[float, ...]
    lengths: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stated:
    """What fal and its host have said of a file; None, and what is not above zero: nothing.

    `content_length` is what the host announced. Bytes, pixels, frames per second, seconds.
    """

    bytes: int | None = None
    content_length: int | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    duration: float | None = None


Subject: TypeAlias = Literal["verify", "poster", "input_video", "input_image"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one question may take; `memory` counts bytes beyond those of a process just started."""

    memory: int = 256 * 1024 * 1024
    cpu: timedelta = timedelta(seconds=60)
    wall: timedelta = timedelta(minutes=3)


class _Line(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
    )

    def to_line(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class Question(_Line):
    subject: Subject
    name: bytes
    bounds: Bounds
    stated: Stated = Stated()
    facts: VideoFacts | None = None

    @property
    def path(self) -> Path:
        """Any name that the file system has, not only those that are UTF-8."""
        return Path(os.fsdecode(self.name))


class Answer(_Line):
    """One of these; `bound` says which bound was exceeded, and then this may be the last answer."""

    examined: Examined | None = None
    picture: bytes | None = None
    kind: FileKind | None = None
    mismatch: tuple[Finding, ...] | None = None
    refused: str | None = None
    bound: str | None = None
    is_last: bool = False
