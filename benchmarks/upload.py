"""How long the upload of a large video takes, and how much memory: `python benchmarks/upload.py`.

Each size is a real process, `extend-video enqueue --video FILE`, against an emulator of fal on
loopback, which keeps the parts on disk. The file is a short video with a box of noise behind it.
Needs four times the largest size on disk; ends with 1 if a checksum differs or time runs out.
"""

import argparse
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from worker.media.sample import make_sample

MIB = 1024 * 1024
EXTEND_VIDEO = str(Path(sys.executable).parent / "extend-video")
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """One upload; `peak_mib` is the most memory its process ever had, above it its growth."""

    mib: int
    parts: int
    seconds: float
    mib_per_second: float
    peak_mib: float
    growth_mib: float
    same_checksum: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256, 1024], help="sizes")
    parser.add_argument("--seconds", type=float, default=900, help="most time for all of it")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(prefix="upload-benchmark-") as directory:
        measured = measure_all(Path(directory), given.mib, deadline)
    show = print_json if given.json else print_table
    show(measured)
    return 0 if all(one.same_checksum for one in measured) else 1


def measure_all(directory: Path, sizes: list[int], deadline: float) -> list[Measured]:
    """The first process has a file of 1 MiB: what it takes is what any takes without a file."""
    with run_emulator(directory / "emulator") as url:
        env = {
            **os.environ,
            "BROKER_URL": "redis://127.0.0.1:9/0",  # unavailable: a sweep would publish
            "DATABASE_URL": f"sqlite:///{directory / 'jobs.db'}",
            "FAL_CDN_URL": url,
            "FAL_KEY": "emulator-key",
            "FAL_REST_URL": url,
            "LOG_LEVEL": "error",
        }
        run([EXTEND_VIDEO, "migrate"], env, deadline)
        base = measure(directory, 1, 0.0, env, deadline)
        return [measure(directory, mib, base.peak_mib, env, deadline) for mib in sizes]


def measure(
    directory: Path, mib: int, base_mib: float, env: dict[str, str], deadline: float
) -> Measured:
    video = directory / "video.mp4"
    sent = write_video(video, mib)
    job_request = [EXTEND_VIDEO, "enqueue", "--prompt", "on", "--video", str(video), "--json"]
    began = time.monotonic()
    peak = run(job_request, env, deadline)
    seconds = time.monotonic() - began
    url = read_newest_url(directory / "jobs.db")
    kept = find_kept(directory / "emulator", url)
    same = hash_file(kept) == sent == hash_served(url)
    parts = count_parts(env["FAL_REST_URL"], url)
    kept.unlink()
    rate = video.stat().st_size / MIB / seconds
    return Measured(mib, parts, seconds, rate, peak, peak - base_mib, same)


def write_video(path: Path, mib: int) -> str:
    """A video of this size; its SHA-256. Players pass over a box named `free`."""
    make_sample(path)
    noise = random.Random(mib)  # noqa: S311 - content, not a secret
    rest = mib * MIB - path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0\0\0\1free" + rest.to_bytes(8, "big"))
        rest -= 16
        while rest > 0:
            rest -= file.write(noise.randbytes(min(MIB, rest)))
    return hash_file(path)


def run(command: list[str], env: dict[str, str], deadline: float) -> float:
    """The peak memory of the process in MiB; ends this one if it fails."""
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:  # noqa: S603
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                process.kill()
                sys.exit(f"out of time: {command[1]}")
            time.sleep(LOOK_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode != 0:
        sys.exit(f"{command[1]} ended with {process.returncode}")
    return ended[2].ru_maxrss / 1024


def read_newest_url(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        [stored] = connection.execute("SELECT input FROM jobs ORDER BY rowid DESC").fetchone()
    return str(json.loads(stored)["video_url"])


@contextmanager
def run_emulator(directory: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "emulator", "--directory", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            yield process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()


def find_kept(directory: Path, url: str) -> Path:
    return directory / httpx.URL(url).path.removeprefix("/")


def count_parts(base_url: str, url: str) -> int:
    """Of how many parts the emulator put the file together."""
    shown = httpx.get(f"{base_url}/_emulator/uploads", trust_env=False).json()
    return next(int(one["parts"]) for one in shown if url.endswith(one["name"]))


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_served(url: str) -> str:
    digest = hashlib.sha256()
    with httpx.stream("GET", url, trust_env=False) as response:
        for chunk in response.iter_raw():
            digest.update(chunk)
    return digest.hexdigest()


def print_json(measured: list[Measured]) -> None:
    print(json.dumps([asdict(one) for one in measured]))


def print_table(measured: list[Measured]) -> None:
    print("| MiB | parts | seconds | MiB/s | peak MiB | growth MiB | checksum |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for one in measured:
        told = "equal" if one.same_checksum else "DIFFERS"
        numbers = f"{one.seconds:.1f} | {one.mib_per_second:.0f} | {one.peak_mib:.0f}"
        print(f"| {one.mib} | {one.parts} | {numbers} | {one.growth_mib:.1f} | {told} |")


if __name__ == "__main__":
    sys.exit(main())
