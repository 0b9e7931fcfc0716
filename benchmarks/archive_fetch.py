"""How fast a video comes, beside curl, and in how much memory: `benchmarks/archive_fetch.py`.

A server on loopback sends a file of noise. Rounds alternate: a process that downloads it as a
worker does, hashing it on its way to the disk, and `curl -o` to the same disk. Then so many small
videos one after the other, for what each costs beside its bytes. Needs three times the size on
disk; ends with 1 if a checksum differs, or below 0.9 of curl, or above 50 MiB of growth.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from worker.media.download import download_video
from worker.media.hosts import parse_media_hosts
from worker.media.intake import DownloadLimits
from worker.media.wire import MediaClient

MIB = 1024 * 1024
SMALL_BYTES = 64 * 1024
LEAST_RATIO = 0.9
MOST_GROWTH_MIB = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds, in MiB/s; `growth_mib` is the memory that the size costs."""

    mib: int
    rounds: int
    ours: float
    curl: float
    ratio: float
    ours_cpu_seconds: float
    peak_mib: float
    growth_mib: float
    small_videos: int
    small_milliseconds: float
    small_curl_milliseconds: float

    @property
    def is_good(self) -> bool:
        return self.ratio >= LEAST_RATIO and self.growth_mib < MOST_GROWTH_MIB


class FileSink:
    """As a worker's file on disk: written and hashed, and begun anew if need be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes, /) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()

    def sha256(self) -> str:
        return self._digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Sends the file named by the path, straight from the disk's cache."""

    directory: Path

    def do_GET(self) -> None:
        with (self.directory / self.path.removeprefix("/")).open("rb") as file:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the large video")
    parser.add_argument("--rounds", type=int, default=5, help="downloads by each of the two")
    parser.add_argument("--small", type=int, default=200, help="how many small videos")
    parser.add_argument("--directory", type=Path, help="on which disk; temporary files go there")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--fetch", nargs="+", metavar="URL FILE", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fetch:
        return fetch(given.fetch[:-1], Path(given.fetch[-1]))
    if given.serve:
        return serve(given.serve)
    with tempfile.TemporaryDirectory(prefix="fetch-benchmark-", dir=given.directory) as directory:
        measured = measure(Path(directory), given.mib, given.rounds, given.small)
    show = print_json if given.json else print_table
    show(measured)
    return 0 if measured.is_good else 1


def measure(directory: Path, mib: int, rounds: int, small: int) -> Measured:
    """The first process downloads 1 MiB: what it takes is what any takes without a large file."""
    sums = {name: write_noise(directory / name, size) for name, size in name_files(mib).items()}
    ours, theirs, cpu, peaks = [], [], [], []
    with run_server(directory) as url:
        base = float(run_fetch([f"{url}/tiny"], directory, sums["tiny"])["peak_mib"])
        for number in range(rounds):
            # by turns, so that neither has the machine to itself for long
            for is_ours in (True, False) if number % 2 else (False, True):
                if not is_ours:
                    theirs.append(run_curl([f"{url}/large"], directory, sums["large"]))
                    continue
                told = run_fetch([f"{url}/large"], directory, sums["large"])
                ours.append(told["seconds"])
                cpu.append(told["cpu_seconds"])
                peaks.append(told["peak_mib"])
        urls = [f"{url}/small"] * small
        small_ours = run_fetch(urls, directory, sums["small"])["seconds"] / small
        small_curl = run_curl(urls, directory, sums["small"]) / small
    ours_rate, curl_rate = mib / statistics.median(ours), mib / statistics.median(theirs)
    return Measured(
        mib=mib,
        rounds=rounds,
        ours=ours_rate,
        curl=curl_rate,
        ratio=ours_rate / curl_rate,
        ours_cpu_seconds=statistics.median(cpu),
        peak_mib=max(peaks),
        growth_mib=max(peaks) - base,
        small_videos=small,
        small_milliseconds=1000 * small_ours,
        small_curl_milliseconds=1000 * small_curl,
    )


def name_files(mib: int) -> dict[str, int]:
    return {"tiny": MIB, "small": SMALL_BYTES, "large": mib * MIB}


def run_fetch(urls: list[str], directory: Path, sha256: str) -> dict[str, float]:
    """What the process tells; ends this one if the file is not what was sent."""
    target = directory / "ours"
    command = [sys.executable, __file__, "--fetch", *urls, str(target)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603 - our own words
    check_file(target, sha256, told.pop("sha256"))
    return {name: float(value) for name, value in told.items()}


def run_curl(urls: list[str], directory: Path, sha256: str) -> float:
    """Its own seconds, without those of its start."""
    target = directory / "curl"
    curl = shutil.which("curl") or sys.exit("needs curl")
    command = [curl, "--silent", "--noproxy", "*", "--write-out", "%{time_total}\n"]
    for url in urls:
        command += ["-o", str(target), url]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own words
    check_file(target, sha256, sha256)
    return sum(map(float, told.split()))


def check_file(path: Path, sha256: str, told: str) -> None:
    """Also takes the file away, so that each round begins with the same disk."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    path.unlink()
    if not found == sha256 == told:
        sys.exit(f"{path.name}: the checksum differs")


def fetch(urls: list[str], path: Path) -> int:
    """In a process of its own: download all into the one file, and tell what it took."""
    client, limits = MediaClient(), DownloadLimits(timedelta(hours=1), 2**40)
    hosts = parse_media_hosts(urls[0].removeprefix("http://").partition("/")[0])
    began, told = time.monotonic(), ""
    for url in urls:
        with path.open("wb", buffering=0) as file:
            sink = FileSink(file)
            told = download_video(url, sink, client=client, hosts=hosts, limits=limits).sha256
    usage = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "sha256": told,
    }
    print(json.dumps(measured))
    return 0


def serve(directory: Path) -> int:
    """In a process of its own, until it is ended."""
    Handler.directory = directory
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
    return 0


@contextmanager
def run_server(directory: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, __file__, "--serve", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own words
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def write_noise(path: Path, size: int) -> str:
    """Its SHA-256."""
    noise, digest = random.Random(size), hashlib.sha256()  # noqa: S311 - content, not a secret
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            chunk = noise.randbytes(min(MIB, size - start))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def print_json(measured: Measured) -> None:
    print(json.dumps(asdict(measured)))


def print_table(one: Measured) -> None:
    print("| MiB | rounds | ours MiB/s | curl MiB/s | ratio | CPU s | peak MiB | growth MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rates = f"{one.ours:.0f} | {one.curl:.0f} | {one.ratio:.2f} | {one.ours_cpu_seconds:.1f}"
    print(f"| {one.mib} | {one.rounds} | {rates} | {one.peak_mib:.0f} | {one.growth_mib:.1f} |")
    print(
        f"\n{one.small_videos} videos of {SMALL_BYTES // 1024} KiB: "
        f"{one.small_milliseconds:.1f} ms each, curl {one.small_curl_milliseconds:.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
