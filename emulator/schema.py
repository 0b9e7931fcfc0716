"""The endpoint's 39 input fields, written down a second time on purpose.

The worker has its own model of the same input; the two never share a line, so that a slip in
one is caught by the other. Where fal's published defaults differ by date, the newest are used.
Keys that are not in the table are ignored, as fal's schema does not forbid them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import override

from emulator.problems import ModelError, Problem

Loc = tuple[str | int, ...]

NEGATIVE_PROMPT = (
    "news broadcast, 3d animation, computer graphics, pc game, console game, video game, cartoon, "
    "childish, watermark, logo, text, on screen text, subtitles, titles, signature, slowmo, static"
)
SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


class Kind(Protocol):
    """The type of a field: what is wrong with a value, and its form once nothing is."""

    def examine(self, loc: Loc, value: object) -> Iterator[Problem]: ...

    def normalize(self, value: Any) -> object: ...  # noqa: ANN401 - examined, so of the kind's type


@dataclass(frozen=True, slots=True)
class Text(Kind):
    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if not isinstance(value, str):
            yield Problem("string_type", loc, "Input should be a valid string", value)

    @override
    def normalize(self, value: Any) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if not isinstance(value, bool):
            yield Problem("bool_type", loc, "Input should be a valid boolean", value)

    @override
    def normalize(self, value: Any) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """An integer; `25.0` counts as one."""

    low: int | None = None
    high: int | None = None

    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            yield Problem("int_type", loc, "Input should be a valid integer", value)
        else:
            yield from _examine_range(loc, value, self.low, self.high)

    @override
    def normalize(self, value: Any) -> object:
        return int(value)


@dataclass(frozen=True, slots=True)
class Real(Kind):
    low: float
    high: float

    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Problem("float_type", loc, "Input should be a valid number", value)
        else:
            yield from _examine_range(loc, value, self.low, self.high)

    @override
    def normalize(self, value: Any) -> object:
        return float(value)


@dataclass(frozen=True, slots=True)
class OneOf(Kind):
    values: tuple[str, ...]

    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if value not in self.values:
            expected = ", ".join(map(repr, self.values))
            message = f"Input should be one of {expected}"
            yield Problem("one_of", loc, message, value, {"expected": list(self.values)})

    @override
    def normalize(self, value: Any) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """`auto`, a named size, or `{"width": 1280, "height": 720}`; a missing side is 512."""

    @override
    def examine(self, loc: Loc, value: object) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield from OneOf(("auto", *SIZES)).examine(loc, value)
            return
        for side in ("width", "height"):
            yield from Whole(1, 14142).examine((*loc, side), value.get(side, 512))

    @override
    def normalize(self, value: Any) -> object:
        if not isinstance(value, dict):
            return value
        return {side: int(value.get(side, 512)) for side in ("width", "height")}


REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Field:
    kind: Kind
    default: object = REQUIRED


_STRENGTH = Field(Real(0, 1), 1.0)
_ON = Field(Flag(), default=True)
_OFF = Field(Flag(), default=False)

FIELDS: Mapping[str, Field] = {
    "prompt": Field(Text()),
    "video_url": Field(Text()),
    "end_image_url": Field(Text(), None),
    "num_frames": Field(Whole(9, 481), 121),
    "video_size": Field(Size(), "auto"),
    "generate_audio": _ON,
    "use_multiscale": _ON,
    "match_input_fps": _ON,
    "fps": Field(Real(1, 60), 24.0),
    "num_inference_steps": Field(Whole(8, 50), 40),
    "video_cfg_scale": Field(Real(1, 20), 3.0),
    "video_stg_scale": Field(Real(0, 20), 0.0),
    "video_rescaling_scale": Field(Real(0, 1), 0.7),
    "video_modality_scale": Field(Real(0, 10), 3.0),
    "audio_cfg_scale": Field(Real(1, 20), 7.0),
    "audio_stg_scale": Field(Real(0, 20), 0.0),
    "audio_rescaling_scale": Field(Real(0, 1), 0.7),
    "audio_modality_scale": Field(Real(0, 10), 3.0),
    "gradient_estimation_gamma": Field(Real(0, 10), 2.0),
    "use_restart_sampling": _OFF,
    "scheduler": Field(OneOf(("ltx2", "linear_quadratic", "beta")), "ltx2"),
    "acceleration": Field(OneOf(("none", "regular", "high", "full")), "regular"),
    "camera_lora": Field(
        OneOf(
            (
                "dolly_in",
                "dolly_out",
                "dolly_left",
                "dolly_right",
                "jib_up",
                "jib_down",
                "static",
                "none",
            )
        ),
        "none",
    ),
    "camera_lora_scale": _STRENGTH,
    "negative_prompt": Field(Text(), NEGATIVE_PROMPT),
    "seed": Field(Whole(), None),
    "enable_prompt_expansion": _ON,
    "enable_safety_checker": _ON,
    "video_output_type": Field(
        OneOf(("X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)", "GIF (.gif)")), "X264 (.mp4)"
    ),
    "video_quality": Field(OneOf(("low", "medium", "high", "maximum")), "high"),
    "video_write_mode": Field(OneOf(("fast", "balanced", "small")), "balanced"),
    "sync_mode": _OFF,
    "distill_lora_first_pass_scale": Field(Real(0, 1), 0.2),
    "distill_lora_second_pass_scale": Field(Real(0, 1), 0.5),
    "extend_direction": Field(OneOf(("forward", "backward")), "forward"),
    "num_context_frames": Field(Whole(0, 121), 25),
    "video_strength": _STRENGTH,
    "audio_strength": _STRENGTH,
    "end_image_strength": _STRENGTH,
}


def read_input(raw: Mapping[str, object]) -> dict[str, Any]:
    """The input with every default filled in.

    Raises ModelError: naming everything that is wrong with it.
    """
    problems = [problem for name, field in FIELDS.items() for problem in _examine(raw, name, field)]
    if problems:
        raise ModelError(*problems)
    return {name: _fill_in(raw, name, field) for name, field in FIELDS.items()}


def _examine(raw: Mapping[str, object], name: str, field: Field) -> Iterator[Problem]:
    if name not in raw:
        if field.default is REQUIRED:
            yield Problem("missing", (name,), "Field required", dict(raw))
    elif raw[name] is not None or field.default is not None:
        yield from field.kind.examine((name,), raw[name])


def _fill_in(raw: Mapping[str, object], name: str, field: Field) -> object:
    value = raw.get(name, field.default)
    return None if value is None else field.kind.normalize(value)


def _examine_range(
    loc: Loc, value: float, low: float | None, high: float | None
) -> Iterator[Problem]:
    if low is not None and value < low:
        message = f"Input should be greater than or equal to {low}"
        yield Problem("greater_than_equal", loc, message, value, {"ge": low})
    if high is not None and value > high:
        message = f"Input should be less than or equal to {high}"
        yield Problem("less_than_equal", loc, message, value, {"le": high})
