"""Input and output of the model `fal-ai/ltx-2.3-22b/extend-video`: field types, fields, reading.

Names, types, enums and defaults are those of the model's API page; the ranges are those of its
OpenAPI schema. fal changes defaults without notice, so every field is sent explicitly. Input is
strict: "true" is no boolean and "121" no integer.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
)

from worker.fal.completion import make_storable
from worker.ground import validation
from worker.ground.data_uri import count_characters, is_data_uri, parse_data_uri
from worker.ground.errors import Finding, InvalidResultError

# fal names no limits. Ours keep a job's row and its log lines small; no text encoder reads as much.
TEXT_CHARACTERS = 65_536
URL_CHARACTERS = 8_192
# The most that a data URI may hold and still travel inside the request; the setting is below it.
INLINE_BYTES = 8 * 1024 * 1024


VideoSize = Literal[
    "auto",
    "square_hd",
    "square",
    "portrait_4_3",
    "portrait_16_9",
    "landscape_4_3",
    "landscape_16_9",
]
Scheduler = Literal["ltx2", "linear_quadratic", "beta"]
Acceleration = Literal["none", "regular", "high", "full"]
CameraLora = Literal[
    "dolly_in", "dolly_out", "dolly_left", "dolly_right", "jib_up", "jib_down", "static", "none"
]
VideoOutputType = Literal["X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)", "GIF (.gif)"]
VideoQuality = Literal["low", "medium", "high", "maximum"]
VideoWriteMode = Literal["fast", "balanced", "small"]
ExtendDirection = Literal["forward", "backward"]


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


# ------------------------------------------------------------------ the fields

MEASURES = ("width", "height", "fps", "duration", "num_frames")


def draw_seed() -> int:
    return secrets.randbelow(2**31)


class ExtendVideoInput(BaseModel):
    """All 39 fields, with the defaults of the model's API page; build it by `complete_input`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt = Field(description="What happens in the new part of the video.")
    video_url: VideoUrl = Field(description="Where fal fetches the video to extend.")
    end_image_url: ImageUrl | None = Field(
        None, description="Where fal fetches a picture on which the new part ends; null: none."
    )
    num_frames: FrameCount = Field(121, description="Frames to generate, context included.")
    video_size: Size = Field(
        "auto",
        description="Size of the picture by name, or as width and height; auto follows the source.",
    )
    generate_audio: Flag = Field(default=True, description="Generate sound too.")
    use_multiscale: Flag = Field(
        default=True,
        description="Generate small first, and the full size guided by it: more coherent.",
    )
    match_input_fps: Flag = Field(
        default=True, description="Keep the source's frame rate; `fps` is then unused."
    )
    fps: FrameRate = Field(24.0, description="Frames per second, if the source's rate is not kept.")
    num_inference_steps: StepCount = Field(
        15, description="Denoising steps: more is slower and finer."
    )
    video_cfg_scale: CfgScale = Field(
        3.0, description="How closely the picture follows the prompt."
    )
    video_stg_scale: StgScale = Field(
        1.0, description="Strength of the spatiotemporal guidance of the picture; 0 turns it off."
    )
    video_rescaling_scale: Strength = Field(
        0.85, description="Balance between both guidances of the picture."
    )
    video_modality_scale: ModalityScale = Field(
        3.0, description="How strongly the sound guides the picture."
    )
    audio_cfg_scale: CfgScale = Field(7.0, description="How closely the sound follows the prompt.")
    audio_stg_scale: StgScale = Field(
        0.0, description="Strength of the spatiotemporal guidance of the sound; 0 turns it off."
    )
    audio_rescaling_scale: Strength = Field(
        0.7, description="Balance between both guidances of the sound."
    )
    audio_modality_scale: ModalityScale = Field(
        3.0, description="How strongly the picture guides the sound."
    )
    gradient_estimation_gamma: ModalityScale = Field(
        0.0, description="Gamma of the gradient estimation while denoising; 0 turns it off."
    )
    use_restart_sampling: Flag = Field(
        default=True,
        description="Add a little noise at each step, which often gives finer pictures.",
    )
    scheduler: Scheduler = Field("beta", description="How the noise falls from step to step.")
    acceleration: Acceleration = Field(
        "none", description="How much quality may be given up for speed."
    )
    camera_lora: CameraLora = Field(
        "none",
        description="A camera movement, kept more exactly than one described in the prompt.",
    )
    camera_lora_scale: Strength = Field(1.0, description="Strength of the camera movement.")
    negative_prompt: Text = Field(
        "news broadcast, 3d animation, computer graphics, pc game, console game, video game, "
        "cartoon, childish, watermark, logo, text, on screen text, subtitles, titles, signature, "
        "slowmo, static",
        description="What the video is not to look like; may be empty.",
    )
    seed: Seed | None = Field(
        None, description="Start of the random numbers; null: drawn when the job is enqueued."
    )
    enable_prompt_expansion: Flag = Field(
        default=True, description="Let fal enrich the prompt; the result states the prompt used."
    )
    enable_safety_checker: Flag = Field(
        default=True, description="Let fal check for unsafe content."
    )
    video_output_type: VideoOutputType = Field(
        "X264 (.mp4)", description="Codec and container of the result."
    )
    video_quality: VideoQuality = Field(
        "high", description="Quality at which the result is encoded."
    )
    video_write_mode: VideoWriteMode = Field(
        "balanced", description="Whether encoding aims at speed or at a small file."
    )
    sync_mode: Flag = Field(
        default=False,
        description="Return the video in the result as a data URI, kept by fal for minutes only.",
    )
    distill_lora_first_pass_scale: Strength = Field(
        0.2, description="Strength of the distillation in the first pass; 0 turns it off."
    )
    distill_lora_second_pass_scale: Strength = Field(
        0.5, description="Strength of the distillation in later passes."
    )
    extend_direction: ExtendDirection = Field(
        "forward", description="Whether to add after the end or before the beginning."
    )
    num_context_frames: ContextFrameCount = Field(
        25, description="Frames of the source that the new part is made from."
    )
    video_strength: Strength = Field(1.0, description="How firmly the context's picture is kept.")
    audio_strength: Strength = Field(1.0, description="How firmly the context's sound is kept.")
    end_image_strength: Strength = Field(1.0, description="How firmly the end picture is met.")

    def to_json(self) -> dict[str, JsonValue]:
        """Every field in order of declaration, nulls included: what is stored and what is sent."""
        return self.model_dump(mode="json")


class VideoFile(BaseModel):
    """A video at fal; only its URL is certain. Bytes, pixels, frames per second, seconds."""

    model_config = ConfigDict(frozen=True, extra="allow")

    url: ResultUrl
    content_type: str | None = None
    file_name: str | None = None
    file_size: Count = None
    width: Count = None
    height: Count = None
    fps: Measure = None
    duration: Measure = None
    num_frames: Count = None


def _promise(schema: dict[str, Any]) -> None:
    """Write into the schema what fal promises of a result, which is more than what we need."""
    schema["properties"] |= {"seed": {"type": "integer"}, "prompt": {"type": "string"}}
    schema["required"] = ["video", "seed", "prompt"]


class ExtendVideoOutput(BaseModel):
    """What fal returns; only the video is certain. Build it by `parse_output`.

    Fields unknown to us are kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow", json_schema_extra=_promise)

    video: VideoFile
    seed: Seed | None = None
    prompt: str | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """The fields that fal sent, unknown ones included."""
        return self.model_dump(mode="json", exclude_unset=True)


def complete_input(
    fields: Mapping[str, object], *, draw_seed: Callable[[], int] = draw_seed
) -> ExtendVideoInput:
    """Check the fields, fill in the defaults, and draw a seed if none (or null) is given.

    A drawn seed makes each input unique, so that a submission whose answer was lost can be found
    again by its input. Raises InvalidInputError with every violation at once.
    """
    given = validation.validate_fields(ExtendVideoInput, fields)
    return given if given.seed is not None else given.model_copy(update={"seed": draw_seed()})


def parse_field(name: str, text: str) -> object:
    """Turn the text of `--set name=text` into a JSON value of the field's type.

    Takes true or false, numbers, null where allowed, WIDTHxHEIGHT or a JSON object for a size.
    Text that is none of these stays text, which `complete_input` refuses.
    """
    return validation.parse_text(ExtendVideoInput, name, text)


def parse_output(payload: JsonValue) -> ExtendVideoOutput:
    """Read a result: the video is paid for, and all that is needed is its URL.

    A field that cannot be read counts as not stated. Raises InvalidResultError without a URL.
    """
    return _read_output(payload)[0]


def list_oddities(payload: JsonValue) -> tuple[Finding, ...]:
    """The fields of a result that count as not stated although fal names or promises them.

    Raises InvalidResultError as `parse_output` does.
    """
    output, unread = _read_output(payload)
    absent = [name for name in ("seed", "prompt") if getattr(output, name) is None]
    measured = (f"video.{name}" for name in MEASURES if name in output.video.model_fields_set)
    absent += [name for name in measured if getattr(output.video, name[6:]) is None]
    odd = [
        Finding("odd_field", f"{name} cannot be read: {value}", name, stated=value)
        for name, value in unread.items()
    ]
    missing = [name for name in absent if name not in unread]
    return (*odd, *(Finding("not_stated", f"fal does not state {name}", name) for name in missing))


def _read_output(payload: JsonValue) -> tuple[ExtendVideoOutput, dict[str, str]]:
    """The result, and the values that could not be read by their fields."""
    fields = make_storable(payload)
    try:
        return ExtendVideoOutput.model_validate(fields), {}
    except ValidationError as error:
        places = [tuple(map(str, one["loc"][:2])) for one in error.errors(include_url=False)]
        wrong = validation.list_violations(ExtendVideoOutput, error)
    if not isinstance(fields, dict) or not {(), ("video",), ("video", "url")}.isdisjoint(places):
        raise InvalidResultError("; ".join(map(str, wrong))) from None
    unread = {}
    video = fields["video"]
    readable = {**fields, "video": dict(video) if isinstance(video, dict) else video}
    for place in places:
        inner = readable if len(place) == 1 else readable["video"]
        if isinstance(inner, dict) and place[-1] in inner:
            unread[".".join(place)] = validation.show_value(inner.pop(place[-1]))
    return ExtendVideoOutput.model_validate(readable), unread
