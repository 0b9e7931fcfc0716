"""One small real clip, made once and then handed out for every request."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph

from emulator.render import Clip
from emulator.sound import Loop
from emulator.target import FORMATS, Encoding, Target

SIZE = (128, 96)
RATE = Fraction(24)
FRAMES = 24


def make_ready(path: Path) -> Clip:
    """A second of a moving test pattern with a soft tone, as mp4."""
    encoding = Encoding(FORMATS["X264 (.mp4)"], "medium", "fast", wants_audio=True)
    loop = Loop(b"")
    with Target(path, SIZE, RATE, encoding) as target:
        for frame in draw_pattern():
            target.add_frame(frame)
            target.add_sound(loop.take(target.lacking_samples))
    return Clip(path, SIZE, RATE, FRAMES)


def copy_ready(clip: Clip, directory: Path) -> Clip:
    """The clip under a name of its own, without its bytes being copied."""
    path = directory / clip.path.name
    os.link(clip.path, path)
    return replace(clip, path=path)


def draw_pattern() -> list[av.VideoFrame]:
    graph = Graph()
    graph.link_nodes(
        graph.add("testsrc2", f"size={SIZE[0]}x{SIZE[1]}:rate={RATE}"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return [graph.vpull() for _ in range(FRAMES)]
