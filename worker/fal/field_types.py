"""The types of the model's fields: enums, bounds and checks, each with its words if they need any.

Input is strict: "true" is no boolean and "121" no integer. Enums go by their value.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from worker.ground.data_uri import count_characters, is_data_uri, parse_data_uri

# fal names no limits. Ours keep a job's row and its log lines small; no text encoder reads as much.
TEXT_CHARACTERS = 65_536
URL_CHARACTERS = 8_192
# The most that a data URI may hold and still travel inside the request; the setting is below it.
INLINE_BYTES = 8 * 1024 * 1024


class VideoSize(StrEnum):
    AUTO = "auto"
    SQUARE_HD = "square_hd"
    SQUARE = "square"
    PORTRAIT_4_3 = "portrait_4_3"
    PORTRAIT_16_9 = "portrait_16_9"
    LANDSCAPE_4_3 = "landscape_4_3"
    LANDSCAPE_16_9 = "landscape_16_9"


class Scheduler(StrEnum):
    LTX2 = "ltx2"
    LINEAR_QUADRATIC = "linear_quadratic"
    BETA = "beta"


class Acceleration(StrEnum):
    NONE = "none"
    REGULAR = "regular"
    HIGH = "high"
    FULL = "full"


class CameraLora(StrEnum):
    DOLLY_IN = "dolly_in"
    DOLLY_OUT = "dolly_out"
    DOLLY_LEFT = "dolly_left"
    DOLLY_RIGHT = "dolly_right"
    JIB_UP = "jib_up"
    JIB_DOWN = "jib_down"
    STATIC = "static"
    NONE = "none"


class VideoOutputType(StrEnum):
    MP4 = "X264 (.mp4)"
    WEBM = "VP9 (.webm)"
    MOV = "PRORES4444 (.mov)"
    GIF = "GIF (.gif)"


class VideoQuality(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    MAXIMUM = "maximum"


class VideoWriteMode(StrEnum):
    FAST = "fast"
    BALANCED = "balanced"
    SMALL = "small"


class ExtendDirection(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError(text)  # PostgreSQL stores no NUL in text or JSON
    return text


def _check_prompt(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if (
        _ODD_IN_URL.search(url)
        or parts.scheme not in {"http", "https"}
        or not parts.hostname
        or "@" in parts.netloc
    ):
        raise ValueError(url)
    if parts.port == 0:  # reading the port raises ValueError by itself if it is none
        raise ValueError(url)
    return url


def _check_input_url(kind: str, url: str) -> str:
    if is_data_uri(url):
        parse_data_uri(url, kind=kind, max_bytes=INLINE_BYTES)
        return url
    if len(url) > URL_CHARACTERS:
        raise ValueError(url)
    return _check_url(url)


def _check_result_url(url: str) -> str:
    return url if url[:5].lower() == "data:" else _check_url(url)


def _check_count(value: int) -> int:
    """What a database and a float hold; nothing of a video is more."""
    if abs(value) >= 2**63:
        raise ValueError(value)
    return value


def _take_integral(value: object) -> object:
    """Take 121.0 for 121: JSON has one kind of number, and not every producer keeps them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tag_size(value: object) -> str:
    return "exact" if isinstance(value, Mapping | ImageSize) else "named"


_URL_WORDS = (
    "an absolute http or https URL with a host, without user name, password and spaces, "
    f"of at most {URL_CHARACTERS} characters, or a data URI in base64; a file of this machine only "
    "as pathlib.Path in Python and as FILE in the shell, never as text and never in a message"
)
_TEXT_WORDS = f"text of at most {TEXT_CHARACTERS} characters, without NUL and lone surrogates"
_INPUT_CHARACTERS = URL_CHARACTERS + count_characters(INLINE_BYTES)
_ODD_IN_URL = re.compile(r"[\x00-\x20\x7f\\]")
_INTEGRAL = BeforeValidator(_take_integral)
_FINITE = Field(strict=True, allow_inf_nan=False)

Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[
    str,
    Field(strict=True, max_length=TEXT_CHARACTERS, json_schema_extra={"allowed": _TEXT_WORDS}),
    AfterValidator(_check_text),
]
Prompt = Annotated[
    Text,
    Field(json_schema_extra={"allowed": f"{_TEXT_WORDS}, not blank"}),
    AfterValidator(_check_prompt),
]
VideoUrl = Annotated[
    str,
    Field(strict=True, max_length=_INPUT_CHARACTERS, json_schema_extra={"allowed": _URL_WORDS}),
    AfterValidator(partial(_check_input_url, "video")),
]
ImageUrl = Annotated[
    str,
    Field(strict=True, max_length=_INPUT_CHARACTERS, json_schema_extra={"allowed": _URL_WORDS}),
    AfterValidator(partial(_check_input_url, "image")),
]
ResultUrl = Annotated[
    str,
    Field(json_schema_extra={"allowed": "an absolute http or https URL, or a data URI"}),
    AfterValidator(_check_result_url),
]
FrameCount = Annotated[int, Field(strict=True, ge=9, le=481), _INTEGRAL]
ContextFrameCount = Annotated[int, Field(strict=True, ge=0, le=121), _INTEGRAL]
StepCount = Annotated[int, Field(strict=True, ge=8, le=50), _INTEGRAL]
# fal bounds no seed; ours is what databases and random generators hold without loss
Seed = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1), _INTEGRAL]
SidePixels = Annotated[int, Field(strict=True, ge=1, le=14142), _INTEGRAL]
FrameRate = Annotated[float, _FINITE, Field(ge=1, le=60)]
CfgScale = Annotated[float, _FINITE, Field(ge=1, le=20)]
StgScale = Annotated[float, _FINITE, Field(ge=0, le=20)]
ModalityScale = Annotated[float, _FINITE, Field(ge=0, le=10)]
Strength = Annotated[float, _FINITE, Field(ge=0, le=1)]
Count = Annotated[int, AfterValidator(_check_count)] | None
Measure = Annotated[float, Field(allow_inf_nan=False)] | None


class ImageSize(BaseModel):
    """A size of one's own, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: SidePixels = 512
    height: SidePixels = 512


Size = Annotated[
    Annotated[VideoSize, Tag("named")] | Annotated[ImageSize, Tag("exact")],
    Discriminator(_tag_size),
]
