"""Input and output of the model `fal-ai/ltx-2.3-22b/extend-video`: field types, fields, reading.

Names, types, enums and defaults are those of the model's API page; the ranges are those of its
OpenAPI schema. fal changes defaults without notice, so every field is sent explicitly. Input is
strict: "true" is no boolean and "121" no integer.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
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
    ValidatorFunctionWrapHandler,
    WrapValidator,
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
MEASURES = ("width", "height", "fps", "duration", "num_frames")
NEGATIVE_PROMPT = (
    "news broadcast, 3d animation, computer graphics, pc game, console game, video game, "
    "cartoon, childish, watermark, logo, text, on screen text, subtitles, titles, signature, "
    "slowmo, static"
)


# ------------------------------------------------------------------ the types of fields

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


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    is_absolute = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
    # Reading the port raises ValueError by itself if it is none.
    if not is_absolute or parts.port == 0 or re.search(r"[\x00-\x20\x7f\\]", url):
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


def _take_integral(value: object) -> object:
    """Take 121.0 for 121: JSON has one kind of number, and not every producer keeps them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _leave_out(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """A field beside the video that cannot be read counts as not stated."""
    try:
        return read(value)
    except ValueError:
        return None


def _tag_size(value: object) -> str:
    return "exact" if isinstance(value, Mapping | ImageSize) else "named"


_URL_WORDS = (
    "an absolute http or https URL with a host, without user name, password and spaces, "
    f"of at most {URL_CHARACTERS} characters, or a data URI in base64; a file of this machine only "
    "as pathlib.Path in Python and as FILE in the shell, never as text and never in a message"
)
_TEXT_WORDS = f"text of at most {TEXT_CHARACTERS} characters, without NUL and lone surrogates"
_URL = Field(
    strict=True,
    max_length=URL_CHARACTERS + count_characters(INLINE_BYTES),
    json_schema_extra={"allowed": _URL_WORDS},
)
_INTEGRAL = BeforeValidator(_take_integral)
_FINITE = Field(strict=True, allow_inf_nan=False)

Flag = Annotated[bool, Field(strict=True)]
# PostgreSQL stores no NUL in text or JSON.
Text = Annotated[
    str,
    Field(
        strict=True,
        max_length=TEXT_CHARACTERS,
        pattern=r"^[^\x00]*$",
        json_schema_extra={"allowed": _TEXT_WORDS},
    ),
]
Prompt = Annotated[
    Text,
    Field(
        pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
        json_schema_extra={"allowed": f"{_TEXT_WORDS}, not blank"},
    ),
]
VideoUrl = Annotated[str, _URL, AfterValidator(partial(_check_input_url, "video"))]
ImageUrl = Annotated[str, _URL, AfterValidator(partial(_check_input_url, "image"))]
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


class ImageSize(BaseModel):
    """A size of one's own, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: SidePixels = 512
    height: SidePixels = 512


Size = Annotated[
    Annotated[VideoSize, Tag("named")] | Annotated[ImageSize, Tag("exact")],
    Discriminator(_tag_size),
]
# Of a result. What a database and a float hold; nothing of a video is more.
Stated = WrapValidator(_leave_out)
Words = Annotated[str | None, Stated]
Count = Annotated[Annotated[int, Field(gt=-(2**63), lt=2**63)] | None, Stated]
Measure = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, Stated]


# ------------------------------------------------------------------ the fields


class ExtendVideoInput(BaseModel):
    """All 39 fields, with the defaults of the model's API page; build it by `complete_input`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Prompt
    """What happens in the new part of the video."""
    video_url: VideoUrl
    """Where fal fetches the video to extend."""
    end_image_url: ImageUrl | None = None
    """Where fal fetches a picture on which the new part ends; null: none."""
    num_frames: FrameCount = 121
    """Frames to generate, context included."""
    video_size: Size = "auto"
    """Size of the picture by name, or as width and height; auto follows the source."""
    generate_audio: Flag = True
    """Generate sound too."""
    use_multiscale: Flag = True
    """Generate small first, and the full size guided by it: more coherent."""
    match_input_fps: Flag = True
    """Keep the source's frame rate; `fps` is then unused."""
    fps: FrameRate = 24.0
    """Frames per second, if the source's rate is not kept."""
    num_inference_steps: StepCount = 15
    """Denoising steps: more is slower and finer."""
    video_cfg_scale: CfgScale = 3.0
    """How closely the picture follows the prompt."""
    video_stg_scale: StgScale = 1.0
    """Strength of the spatiotemporal guidance of the picture; 0 turns it off."""
    video_rescaling_scale: Strength = 0.85
    """Balance between both guidances of the picture."""
    video_modality_scale: ModalityScale = 3.0
    """How strongly the sound guides the picture."""
    audio_cfg_scale: CfgScale = 7.0
    """How closely the sound follows the prompt."""
    audio_stg_scale: StgScale = 0.0
    """Strength of the spatiotemporal guidance of the sound; 0 turns it off."""
    audio_rescaling_scale: Strength = 0.7
    """Balance between both guidances of the sound."""
    audio_modality_scale: ModalityScale = 3.0
    """How strongly the picture guides the sound."""
    gradient_estimation_gamma: ModalityScale = 0.0
    """Gamma of the gradient estimation while denoising; 0 turns it off."""
    use_restart_sampling: Flag = True
    """Add a little noise at each step, which often gives finer pictures."""
    scheduler: Scheduler = "beta"
    """How the noise falls from step to step."""
    acceleration: Acceleration = "none"
    """How much quality may be given up for speed."""
    camera_lora: CameraLora = "none"
    """A camera movement, kept more exactly than one described in the prompt."""
    camera_lora_scale: Strength = 1.0
    """Strength of the camera movement."""
    negative_prompt: Text = NEGATIVE_PROMPT
    """What the video is not to look like; may be empty."""
    seed: Seed | None = None
    """Start of the random numbers; null: drawn when the job is enqueued."""
    enable_prompt_expansion: Flag = True
    """Let fal enrich the prompt; the result states the prompt used."""
    enable_safety_checker: Flag = True
    """Let fal check for unsafe content."""
    video_output_type: VideoOutputType = "X264 (.mp4)"
    """Codec and container of the result."""
    video_quality: VideoQuality = "high"
    """Quality at which the result is encoded."""
    video_write_mode: VideoWriteMode = "balanced"
    """Whether encoding aims at speed or at a small file."""
    sync_mode: Flag = False
    """Return the video in the result as a data URI, kept by fal for minutes only."""
    distill_lora_first_pass_scale: Strength = 0.2
    """Strength of the distillation in the first pass; 0 turns it off."""
    distill_lora_second_pass_scale: Strength = 0.5
    """Strength of the distillation in later passes."""
    extend_direction: ExtendDirection = "forward"
    """Whether to add after the end or before the beginning."""
    num_context_frames: ContextFrameCount = 25
    """Frames of the source that the new part is made from."""
    video_strength: Strength = 1.0
    """How firmly the context's picture is kept."""
    audio_strength: Strength = 1.0
    """How firmly the context's sound is kept."""
    end_image_strength: Strength = 1.0
    """How firmly the end picture is met."""

    def to_json(self) -> dict[str, JsonValue]:
        """Every field in order of declaration, nulls included: what is stored and what is sent."""
        return self.model_dump(mode="json")


class VideoFile(BaseModel):
    """A video at fal; only its URL is certain. Bytes, pixels, frames per second, seconds."""

    model_config = ConfigDict(frozen=True, extra="allow")

    url: ResultUrl
    content_type: Words = None
    file_name: Words = None
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
    seed: Annotated[Seed | None, Stated] = None
    prompt: Words = None


def complete_input(fields: Mapping[str, object]) -> ExtendVideoInput:
    """Check the fields, fill in the defaults, and draw a seed if none (or null) is given.

    A drawn seed makes each input unique, so that a submission whose answer was lost can be found
    again by its input. Raises InvalidInputError with every violation at once.
    """
    given = validation.validate_fields(ExtendVideoInput, fields)
    if given.seed is None:
        return given.model_copy(update={"seed": secrets.randbelow(2**31)})
    return given


def parse_field(name: str, text: str) -> object:
    """Turn the text of `--set name=text` into a JSON value of the field's type.

    Takes true or false, numbers, null where allowed, WIDTHxHEIGHT or a JSON object for a size.
    Other text is returned as it is, and `complete_input` refuses it.
    """
    return validation.parse_text(ExtendVideoInput, name, text)


def parse_output(payload: JsonValue) -> ExtendVideoOutput:
    """Read a result: the video is paid for, and all that is needed is its URL.

    A field that cannot be read counts as not stated. Raises InvalidResultError without a URL.
    """
    try:
        return ExtendVideoOutput.model_validate(make_storable(payload))
    except ValidationError as error:
        wrong = validation.list_violations(ExtendVideoOutput, error)
        raise InvalidResultError("; ".join(map(str, wrong))) from None


def list_oddities(payload: JsonValue) -> Iterator[Finding]:
    """The fields of a result that count as not stated although fal names or promises them.

    Raises InvalidResultError as `parse_output` does.
    """
    output = parse_output(payload)
    stated: Any = payload
    for prefix, read, given, promised in (
        ("", output, stated, ("seed", "prompt")),
        ("video.", output.video, stated["video"], ()),
    ):
        for field in type(read).model_fields:
            name, value = f"{prefix}{field}", given.get(field)
            if getattr(read, field) is not None:
                continue
            if value is not None:
                shown = validation.show_value(value)
                yield Finding("odd_field", f"{name} cannot be read: {shown}", name, stated=shown)
            elif field in promised or (field in MEASURES and field in given):
                yield Finding("not_stated", f"fal does not state {name}", name)
