"""A short real clip with sound, for those who have none at hand."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, FPS, SECONDS = 640, 360, 24, 2
SAMPLE_RATE = 48_000
PICTURE = (
    ("testsrc2", f"size={WIDTH}x{HEIGHT}:rate={FPS}:duration={SECONDS}"),
    ("format", "yuv420p"),
    ("buffersink", None),
)
TONE = (
    ("sine", f"frequency=220:sample_rate={SAMPLE_RATE}:duration={SECONDS}"),
    ("volume", "0.2"),
    ("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
    ("abuffersink", None),
)


def make_sample(path: Path) -> None:
    """Write an MP4 of a moving test picture and a soft tone."""
    # Only now: the shell imports this module for each of its commands.
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for number, picture in enumerate(_run_filters(PICTURE)):
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        for sound in _run_filters(TONE):
            container.mux(audio.encode(sound))
        container.mux(audio.encode())


def _run_filters(chain: tuple[tuple[str, str | None], ...]) -> Iterator[Any]:
    from av.filter import Graph

    graph = Graph()
    contexts = [graph.add(name, options) for name, options in chain]
    for context, following in pairwise(contexts):
        context.link_to(following)
    graph.configure()
    while True:
        try:
            yield graph.pull()
        except EOFError:
            return
