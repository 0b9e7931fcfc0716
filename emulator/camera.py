"""The invented part: context frames played to and fro under a slowly moving camera.

No model is involved. Each new frame is a context frame, seen through a window that moves as
`camera_lora` says over a canvas with mirrored borders, tinted a little by the seed, and faded to
the end image. At the seam nothing has moved yet, so the cut does not jump.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.filter import Graph
from av.filter.context import FilterContext

from emulator.source import PIXELS

FARTHEST = 0.12
"""Largest move, as a part of the picture; its border is an eighth."""
FARTHEST_PER_FRAME = 0.0025
FADED_PART = 0.4
TINT_FRAMES = 12
TICK = Fraction(1, 25)
"""Time base inside the graphs; frames get their real times when they are written."""

MOVES = {
    "dolly_in": (1.0, 0.0, 0.0),
    "dolly_out": (-1.0, 0.0, 0.0),
    "dolly_left": (0.0, -1.0, 0.0),
    "dolly_right": (0.0, 1.0, 0.0),
    "jib_up": (0.0, 0.0, -1.0),
    "jib_down": (0.0, 0.0, 1.0),
    "static": (0.0, 0.0, 0.0),
}
"""Zoom, move to the right, move down; `none` drifts gently where the seed says."""


@dataclass(frozen=True, slots=True)
class Shot:
    """What is to be invented. `end_image` has the size of the frames."""

    frames: int
    is_backward: bool
    move: str
    scale: float
    seed: int
    end_image: av.VideoFrame | None = None
    end_image_strength: float = 1.0


def shoot(shot: Shot, context: Sequence[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The new frames in playing order. Backward, the last of them meets the source."""
    if shot.frames == 0:
        return
    graph = build_graph(shot, context[0])
    for number in range(shot.frames):
        frame = context[choose_context(shot, len(context), number)]
        _push(graph, frame, number, at=0)
        if shot.end_image is not None:
            _push(graph, shot.end_image, number, at=1)
        yield from _pull(graph)
    graph.vpush(None)
    yield from _pull(graph)


def choose_context(shot: Shot, count: int, number: int) -> int:
    """Which context frame a new one is made of: to and fro, beginning beside the seam."""
    distance = shot.frames - number if shot.is_backward else number + 1
    period = max(1, 2 * (count - 1))
    away = min(distance % period, period - distance % period) if count > 1 else 0
    return away if shot.is_backward else count - 1 - away


def build_graph(shot: Shot, sample: av.VideoFrame) -> Graph:
    graph = Graph()
    width, height = sample.width, sample.height
    nodes = [
        _add_input(graph, sample),
        *_add_canvas(graph, width, height),
        graph.add("zoompan", express_window(shot, width, height)),
        graph.add("hue", express_tint(shot)),
    ]
    if shot.end_image is not None:
        overlay = graph.add("overlay", "format=yuv420")
        _add_end_image(graph, shot, shot.end_image).link_to(overlay, 0, 1)
        nodes.append(overlay)
    nodes += [graph.add("format", PIXELS), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def express_window(shot: Shot, width: int, height: int) -> str:
    """Arguments of zoompan: window and place as expressions of the frame number `on`."""
    zoom, right, down = _choose_move(shot)
    farthest = min(FARTHEST, FARTHEST_PER_FRAME * shot.frames)
    # Played backward the camera arrives at the seam instead of leaving it.
    farthest *= -1 if shot.is_backward else 1
    moved = f"{farthest / shot.frames:.9f}*({_express_distance(shot, 'on')})"
    base = 1 + 2 * _border(width) / width
    return (
        f"z={base:.9f}*(1+{zoom:.6f}*{moved})"
        f":x=(iw-iw/zoom)/2+{right * width:.6f}*{moved}"
        f":y=(ih-ih/zoom)/2+{down * height:.6f}*{moved}"
        f":d=1:s={width}x{height}"
    )


def express_tint(shot: Shot) -> str:
    """Arguments of hue: a shift of colour and light that grows from the seam on."""
    chance = random.Random(shot.seed)
    degrees = chance.choice((-1, 1)) * chance.uniform(3, 8)
    light = chance.choice((-1, 1)) * chance.uniform(0.1, 0.3)
    grown = f"min(1,({_express_distance(shot, 'n')})/{TINT_FRAMES})"
    return f"h={degrees:.6f}*{grown}:b={light:.6f}*{grown}"


def _choose_move(shot: Shot) -> tuple[float, float, float]:
    if shot.move == "none":
        angle = random.Random(shot.seed).uniform(0, 2 * math.pi)
        return 0.3, 0.3 * math.cos(angle), 0.3 * math.sin(angle)
    zoom, right, down = MOVES[shot.move]
    return zoom * shot.scale, right * shot.scale, down * shot.scale


def _express_distance(shot: Shot, number: str) -> str:
    """How many frames lie between this one and the source, this one included."""
    return f"{shot.frames}-{number}" if shot.is_backward else f"{number}+1"


def _add_canvas(graph: Graph, width: int, height: int) -> list[FilterContext]:
    x, y = _border(width), _border(height)
    return [
        graph.add("pad", f"{width + 2 * x}:{height + 2 * y}:{x}:{y}"),
        graph.add("fillborders", f"{x}:{x}:{y}:{y}:mirror"),
    ]


def _add_end_image(graph: Graph, shot: Shot, image: av.VideoFrame) -> FilterContext:
    nodes = [
        _add_input(graph, image),
        graph.add("format", "rgba"),
        graph.add("colorchannelmixer", f"aa={shot.end_image_strength:.6f}"),
    ]
    # The outermost frame shows the image as strongly as it gets: the fade is over before it.
    if faded := min(shot.frames - 1, round(shot.frames * FADED_PART)):
        fade = f"out:0:{faded}" if shot.is_backward else f"in:{shot.frames - 1 - faded}:{faded}"
        nodes.append(graph.add("fade", f"{fade}:alpha=1"))
    graph.link_nodes(*nodes)
    return nodes[-1]


def _add_input(graph: Graph, sample: av.VideoFrame) -> FilterContext:
    return graph.add_buffer(
        width=sample.width, height=sample.height, format=sample.format, time_base=TICK
    )


def _border(length: int) -> int:
    """An eighth, even because colour has half the resolution."""
    return max(2, length // 16 * 2)


def _push(graph: Graph, frame: av.VideoFrame, number: int, *, at: int) -> None:
    frame.pts = number
    frame.time_base = TICK
    graph.vpush(frame, at=at)


def _pull(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
