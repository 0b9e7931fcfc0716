"""What a worker asks of the process that decodes, and what that answers: one JSON line each.

JSON and not pickle: whoever takes over a decoder can then say something wrong, but run nothing.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.ground.errors import Finding
from worker.media.inspect import FileKind
from worker.media.probe import Examined, VideoFacts
from worker.media.verify import Stated


class Subject(StrEnum):
    """What is asked about a file."""

    VERIFY = "verify"
    POSTER = "poster"
    SHEET = "sheet"
    INPUT_VIDEO = "input_video"
    INPUT_IMAGE = "input_image"


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
