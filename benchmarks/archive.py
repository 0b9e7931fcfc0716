"""How fast videos are archived, beside curl: `python -m benchmarks.archive`.

A host on loopback sends real videos, one of 1 GiB or 200 of 1 MiB each. Ours is measured in three
parts, each with what is in the one before: downloaded and hashed; flushed under a final name; the
whole step from claim to record, which verifies, and makes poster and sidecar. Curl neither hashes
nor flushes nor looks at what came, so it is also timed up to the end of a `sync` of its files, and
for the small ones up to the end of decoding them.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, get_args

from benchmarks.harness.archiving import Part, measure_part
from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.run import run_alone
from benchmarks.harness.videos import MIB, run_host, write_clip, write_raw

LEAST, MOST_GROWTH = Goal(">=", 0.9), Goal("<", 50)
THREADS = 4
"""Of a worker; curl -Z has as many transfers at once."""
DECODE = Path(__file__).parent / "reference" / "decode.py"
UNIT = "MiB/s"

Run: TypeAlias = Callable[[], dict[str, float]]
Rounds: TypeAlias = dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Load:
    """What is fetched: the URLs, each of `size` bytes, so many at once."""

    name: str
    urls: Sequence[str]
    size: int
    threads: int
    directory: Path

    @property
    def mib(self) -> float:
        return self.size * len(self.urls) / MIB

    def archive(self, part: Part) -> dict[str, float]:
        with self._open_directory() as place:
            told = measure_part(part, self.threads, place, self.urls)
        return {"speed": self.mib / told["seconds"], "peak": told["peak_mib"]}

    def fetch(self, *, is_decoded: bool) -> dict[str, float]:
        """One run of curl, timed when all has come, is on disk, and is decoded."""
        with self._open_directory() as place:
            paths = [str(place / f"{number}.mp4") for number in range(len(self.urls))]
            commands = {"speed": self._write_command(paths), "synced": ["sync", *paths, str(place)]}
            if is_decoded:
                commands["decoded"] = [sys.executable, str(DECODE), str(self.threads), *paths]
            began, found = time.monotonic(), {}
            for name, command in commands.items():
                run(command)
                found[name] = self.mib / (time.monotonic() - began)
            if any(Path(path).stat().st_size != self.size for path in paths):
                sys.exit("curl has not fetched the whole")
        return found

    @contextmanager
    def _open_directory(self) -> Iterator[Path]:
        """Gone with its files after each run, so that each begins with the same disk."""
        with TemporaryDirectory(dir=self.directory) as place:
            yield Path(place)

    def _write_command(self, paths: Sequence[str]) -> list[str]:
        command = ["curl", "--silent", "--fail", "--noproxy", "*"]
        if self.threads > 1:
            command += ["--parallel", "--parallel-max", str(self.threads)]
        for url, path in zip(self.urls, paths, strict=True):
            command += [url, "-o", path]
        return command


def measure(plan: Plan) -> list[Figure]:
    host, count = plan.directory / "host", plan.pick(200, 4)
    host.mkdir()
    write_raw(host / "large.mov", plan.pick(1024, 8))
    write_clip(host / "small.mp4")
    large_size, small_size = ((host / name).stat().st_size for name in ("large.mov", "small.mp4"))
    with run_host(host) as url:
        urls = [f"{url}/small.mp4?{number}" for number in range(count)]
        few = urls[: plan.pick(50, 2)]
        large = Load("1 GiB", [f"{url}/large.mov"], large_size, 1, plan.directory)
        small = Load("200 x 1 MiB", urls, small_size, THREADS, plan.directory)
        looked_at = Load("50 x 1 MiB", few, small_size, THREADS, plan.directory)
        one = Load("1 MiB", urls[:1], small_size, 1, plan.directory)
        return [
            *measure_large(plan, large, one),
            *measure_small(plan, small),
            *measure_looking(plan, looked_at),
        ]


def measure_large(plan: Plan, load: Load, small: Load) -> list[Figure]:
    rounds, base = run_rounds(plan, load), small.archive("whole")["peak"]
    growth = tuple(peak - base for peak in rounds["whole"]["peak"])
    return [
        *compare_parts(load, rounds, "curl"),
        Figure(f"{load.name}: peak of memory, over that of 1 MiB", "MiB", growth, goal=MOST_GROWTH),
    ]


def measure_small(plan: Plan, load: Load) -> list[Figure]:
    rounds = run_rounds(plan, load, ("download", "publish"))
    return list(compare_parts(load, rounds, "curl -Z"))


def measure_looking(plan: Plan, load: Load) -> list[Figure]:
    """The whole step takes so long for each, whatever their number, that fewer will do."""
    rounds = run_rounds(plan, load, ("whole",), is_decoded=True)
    decoded, told = rounds["curl"]["decoded"], "curl -Z + sync + decode"
    return [
        *compare_parts(load, rounds, "curl -Z"),
        Figure(f"{load.name}: whole step", UNIT, rounds["whole"]["speed"], decoded, told),
    ]


def run_rounds(
    plan: Plan, load: Load, parts: Sequence[Part] = get_args(Part), *, is_decoded: bool = False
) -> Rounds:
    """By name of each part of ours, and `curl`: values by name, a round each."""
    ours: dict[str, Run] = {part: partial(load.archive, part) for part in parts}
    return plan.alternate({"curl": partial(load.fetch, is_decoded=is_decoded), **ours})


def compare_parts(load: Load, rounds: Rounds, name: str) -> Iterator[Figure]:
    """The goal is held against a reference that gives the same guarantee, or a lesser one."""
    plain, synced = rounds["curl"]["speed"], rounds["curl"]["synced"]
    for title, part, reference, told, goal in (
        ("download, hashed", "download", plain, name, LEAST),
        ("download, hashed, flushed, named", "publish", synced, f"{name} + sync", LEAST),
        ("whole step", "whole", synced, f"{name} + sync", LEAST),
        ("whole step", "whole", plain, name, None),
    ):
        if part in rounds:
            ours = rounds[part]["speed"]
            yield Figure(f"{load.name}: {title}", UNIT, ours, reference, told, goal)


def run(command: Sequence[str]) -> None:
    program = shutil.which(command[0]) or sys.exit(f"needs {command[0]}")
    # curl -Z always shows its progress
    silent = subprocess.DEVNULL
    subprocess.run([program, *command[1:]], check=True, stderr=silent)  # noqa: S603 - our own words


ARCHIVE = Question("archive", "How fast are videos archived, beside curl?", measure)

if __name__ == "__main__":
    sys.exit(run_alone(ARCHIVE))
