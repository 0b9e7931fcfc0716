"""Real videos of a wanted size, and a host that sends them."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import av
from typing_extensions import override

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
RAW_WIDTH, RAW_HEIGHT, RAW_FORMAT = 1920, 1080, "uyvy422"
CLIP_WIDTH, CLIP_HEIGHT, CLIP_SECONDS = 640, 360, 2
RATE = 24


def write_raw(path: Path, mib: int) -> None:
    """Raw pictures: as many bytes as are asked for, made as fast as the disk takes them."""
    picture = av.VideoFrame(RAW_WIDTH, RAW_HEIGHT, RAW_FORMAT)
    count = max(1, mib * MIB // (RAW_WIDTH * RAW_HEIGHT * 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = RAW_WIDTH, RAW_HEIGHT, RAW_FORMAT
        for number in range(count):
            picture.pts = number
            picture.planes[0].update(bytes([number % 200 + 20]) * picture.planes[0].buffer_size)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    flush(path)


def write_clip(path: Path) -> None:
    """H.264 of noise, at the bit rate that makes about 1 MiB of two seconds."""
    noise = random.Random(1)  # noqa: S311 - content, not a secret
    picture = av.VideoFrame(CLIP_WIDTH, CLIP_HEIGHT, "gray")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = CLIP_WIDTH, CLIP_HEIGHT, "yuv420p"
        stream.bit_rate = 8 * MIB // CLIP_SECONDS
        for number in range(CLIP_SECONDS * RATE):
            picture.planes[0].update(noise.randbytes(picture.planes[0].buffer_size))
            shown = picture.reformat(format="yuv420p")
            shown.pts = number
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    flush(path)


def flush(path: Path) -> None:
    """So that the disk is not busy with it while others are measured."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Handler(BaseHTTPRequestHandler):
    """Sends the file that the path names, straight from the disk's cache; a query is ignored."""

    protocol_version = "HTTP/1.1"
    directory: Path

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.removeprefix("/")
        with (self.directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.send_header("Content-Type", "video/mp4")
            self.send_header("ETag", f'"{size}"')
            self.end_headers()
            self.connection.sendfile(file)

    @override
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def run_host(directory: Path) -> Iterator[str]:
    """A process that sends the directory's files; its address."""
    command = [sys.executable, "-m", "benchmarks.harness.videos", str(directory.absolute())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:  # noqa: S603 - our own words
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    Handler.directory = Path(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
