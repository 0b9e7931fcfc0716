"""An extended video: the source whole, and new frames after it or before it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from emulator.camera import Shot, shoot
from emulator.problems import ModelError, Problem
from emulator.sound import Loop, Sound
from emulator.source import Source, inspect_source, read_frames, read_image
from emulator.target import Encoding, Target

SMALLEST_SIDE = 16
MOST_PIXELS = 4096 * 2304
FINEST_RATE = 1001
"""Largest denominator of a frame rate: 24000/1001 and the like stay exact."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to render. `size` and `rate` None: the source's own."""

    video: Path
    end_image: Path | None
    target: Path
    size: tuple[int, int] | None
    rate: Fraction | None
    context_frames: int
    shot: Shot
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Clip:
    """What was rendered."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    frames: int


@dataclass(frozen=True, slots=True)
class Material:
    """What the new part is made of: at least one frame, at most a second of sound."""

    frames: tuple[av.VideoFrame, ...]
    sound: bytes


class StoppedError(Exception):
    """The emulator is ending; nobody waits for this clip."""


def render(order: Order, is_stopped: Callable[[], bool]) -> Clip:
    """Render the whole clip. Memory holds the context frames, never the whole source.

    Raises ModelError: the video or the end image cannot be used.
    Raises StoppedError: `is_stopped` said so.
    """
    source = inspect_source(order.video)
    size = choose_size(order.size or source.size)
    rate = (order.rate or source.rate).limit_denominator(FINEST_RATE)
    shot = order.shot
    if order.end_image is not None:
        shot = replace(shot, end_image=read_image(order.end_image, size))
    with Target(order.target, size, rate, order.encoding) as target:
        cut = Cut(source, target, max(1, order.context_frames), is_stopped)
        if shot.is_backward:
            cut.add_new(shot, cut.look_ahead())
            cut.add_source()
        else:
            cut.add_new(shot, cut.add_source())
    return Clip(order.target, size, rate, target.frames)


def choose_size(wanted: tuple[int, int]) -> tuple[int, int]:
    """The wanted size in even numbers, as 4:2:0 needs.

    Raises ModelError: larger than a loopback emulator should render.
    """
    width, height = (max(SMALLEST_SIDE, side // 2 * 2) for side in wanted)
    if width * height > MOST_PIXELS:
        message = f"The emulator renders at most {MOST_PIXELS} pixels per frame"
        asked = {"width": width, "height": height}
        raise ModelError(Problem("feature_not_supported", ("video_size",), message, asked))
    return width, height


class Cut:
    """Puts source and new frames into the target, sound level with the picture."""

    def __init__(
        self, source: Source, target: Target, context: int, is_stopped: Callable[[], bool]
    ) -> None:
        self._source = source
        self._target = target
        self._context = context
        self._is_stopped = is_stopped

    def add_source(self) -> Material:
        """Add the source; what is returned is its end."""
        target, sound = self._target, Sound()
        context: deque[av.VideoFrame] = deque(maxlen=self._context)
        for frame in read_frames(self._source, target.size, target.rate, sound.feed):
            context.append(frame)
            self._add_frame(frame)
            target.add_sound(sound.take(target.lacking_samples))
        sound.feed(None)
        target.add_sound(sound.take_exactly(target.lacking_samples))
        return Material(tuple(context), sound.kept)

    def look_ahead(self) -> Material:
        """The beginning of the source, of which nothing is added yet."""
        context: list[av.VideoFrame] = []
        sound = Sound(keeps_first=True)
        needs_sound = self._source.has_audio and self._target.has_audio
        target = self._target
        for frame in read_frames(self._source, target.size, target.rate, sound.feed):
            if len(context) < self._context:
                context.append(frame)
            elif sound.has_kept_a_second or not needs_sound:
                break
        return Material(tuple(context), sound.kept)

    def add_new(self, shot: Shot, material: Material) -> None:
        loop = Loop(material.sound)
        for frame in shoot(shot, material.frames):
            self._add_frame(frame)
            self._target.add_sound(loop.take(self._target.lacking_samples))

    def _add_frame(self, frame: av.VideoFrame) -> None:
        if self._is_stopped():
            raise StoppedError
        self._target.add_frame(frame)
