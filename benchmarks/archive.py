"""What archiving takes from claim to record, beside curl: `python -m benchmarks.archive`.

A server on loopback sends real videos. Rounds alternate: a process that archives the large one as a
worker does (fetched, hashed, verified, poster and recipe made, flushed to disk, recorded in a job
table), and `curl -o` to the same disk, which flushes nothing; and once more with `sync`. Then so
many small videos one after the other, for what each costs. Ends with 1 below 0.9 of curl, or above
50 MiB of growth.
"""

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import av
import uuid_utils.compat

from benchmarks.archive_fetch import run_curl, run_server
from worker.db import Database
from worker.jobs import table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job, Move, NewJob
from worker.media.hosts import parse_media_hosts
from worker.media.intake import DownloadLimits
from worker.media.layout import parse_layout
from worker.media.local_store import LocalStore
from worker.media.sample import make_sample
from worker.media.wire import MediaClient
from worker.schema import upgrade_schema
from worker.stages.archive import ArchiveTerms, archive_job
from worker.stages.fetch import Fetcher
from worker.stages.keep import Keeper
from worker.stages.source import Source

MIB = 1024 * 1024
WIDTH, HEIGHT, RATE = 1920, 1080, 24
LEAST_RATIO = 0.9
MOST_GROWTH_MIB = 50
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds, in MiB/s; `growth_mib` is the memory that the size costs."""

    mib: int
    rounds: int
    ours: float
    curl: float
    curl_synced: float
    ratio: float
    peak_mib: float
    growth_mib: float
    small_videos: int
    small_milliseconds: float
    small_curl_milliseconds: float

    @property
    def is_good(self) -> bool:
        return self.ratio >= LEAST_RATIO and self.growth_mib < MOST_GROWTH_MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the large video")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each")
    parser.add_argument("--small", type=int, default=200, help="how many small videos")
    parser.add_argument("--directory", type=Path, help="on which disk; temporary files go there")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--archive", nargs="+", metavar="DIRECTORY URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.archive:
        return archive(Path(given.archive[0]), given.archive[1:])
    with tempfile.TemporaryDirectory(prefix="archive-", dir=given.directory) as directory:
        measured = measure(Path(directory), given.mib, given.rounds, given.small)
    if given.json:
        print(json.dumps(asdict(measured)))
    else:
        print_table(measured)
    return 0 if measured.is_good else 1


def measure(directory: Path, mib: int, rounds: int, small: int) -> Measured:
    """The first process archives a small video: what it takes any takes."""
    make_sample(directory / "small.mp4")
    write_video(directory / "large.mov", mib)
    sums = {name: hash_file(directory / name) for name in ("small.mp4", "large.mov")}
    ours, theirs, synced, peaks = [], [], [], []
    with run_server(directory) as url:
        large, little = f"{url}/large.mov", f"{url}/small.mp4"
        base = run_archive(directory, [little])["peak_mib"]
        for _ in range(rounds):
            theirs.append(run_curl([large], directory, sums["large.mov"]))
            told = run_archive(directory, [large])
            ours.append(told["seconds"])
            peaks.append(told["peak_mib"])
            synced.append(time_synced_curl(directory, large))
        many = [little] * small
        small_ours = run_archive(directory, many)["seconds"] / small
        small_curl = run_curl(many, directory, sums["small.mp4"]) / small
    size = (directory / "large.mov").stat().st_size / MIB
    rates = [size / statistics.median(seconds) for seconds in (ours, theirs, synced)]
    return Measured(
        mib=mib,
        rounds=rounds,
        ours=rates[0],
        curl=rates[1],
        curl_synced=rates[2],
        ratio=rates[0] / rates[1],
        peak_mib=max(peaks),
        growth_mib=max(peaks) - base,
        small_videos=small,
        small_milliseconds=1000 * small_ours,
        small_curl_milliseconds=1000 * small_curl,
    )


def write_video(path: Path, mib: int) -> None:
    """Raw pictures: as many bytes as are asked for, made as fast as the disk takes them."""
    picture = av.VideoFrame(WIDTH, HEIGHT, "uyvy422")
    count = max(1, mib * MIB // (WIDTH * HEIGHT * 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "uyvy422"
        for number in range(count):
            picture.pts = number
            picture.planes[0].update(bytes([number % 200 + 20]) * picture.planes[0].buffer_size)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def time_synced_curl(directory: Path, url: str) -> float:
    """Seconds until what curl has written is on disk."""
    curl, sync = shutil.which("curl"), shutil.which("sync")
    if curl is None or sync is None:
        sys.exit("needs curl and sync")
    target = directory / "curl"
    began = time.monotonic()
    subprocess.run([curl, "-s", "--noproxy", "*", "-o", target, url], check=True)  # noqa: S603 - our own words
    subprocess.run([sync, target], check=True)  # noqa: S603 - our own words
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def run_archive(directory: Path, urls: list[str]) -> dict[str, float]:
    """Archive each URL as a job, in a process of its own; what it took."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        command = [sys.executable, "-m", "benchmarks.archive", "--archive", place, *urls]
        told: dict[str, float] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own words
        )
    return told


def archive(directory: Path, urls: list[str]) -> int:
    database_url = f"sqlite:///{directory / 'jobs.db'}"
    upgrade_schema(database_url)
    db = Database(database_url)
    keeper = build_keeper(db, directory, urls[0])
    jobs = [insert_completed(db, url) for url in urls]
    began = time.monotonic()
    for job in jobs:
        archived = archive_job(job.id, keeper=keeper, terms=ArchiveTerms("benchmark", HOUR))
        if archived is None or archived.state is not JobState.ARCHIVED:
            sys.exit(f"not archived: {archived and (archived.blocked_reason, archived.error_code)}")
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))
    return 0


def build_keeper(db: Database, directory: Path, url: str) -> Keeper:
    hosts = parse_media_hosts(url.removeprefix("http://").partition("/")[0])
    source = Source(db, ask_nobody, ask_nobody)
    fetcher = Fetcher(source, MediaClient(), hosts, DownloadLimits(HOUR, 2**40))
    store = LocalStore(directory / "archive")
    return Keeper(db, store, fetcher, parse_layout("{yyyy}/{mm}/{dd}/{job_id}.{ext}"))


def ask_nobody() -> NoReturn:
    raise AssertionError("fal was asked")


def insert_completed(db: Database, url: str) -> Job:
    """A job whose result states the video's URL alone."""
    now = datetime.now(UTC)
    new = NewJob(
        id=uuid_utils.compat.uuid7(),
        endpoint="a/b",
        input={"prompt": "benchmark"},
        tenant="default",
        idempotency_key=None,
        priority=0,
        labels={},
        enqueued_at=now,
        due_at=now + HOUR,
    )
    result = {"video": {"url": url}, "seed": 1, "prompt": "benchmark"}
    with db.transaction() as connection:
        job = table.insert_job(connection, new)
        assert job is not None  # noqa: S101 - its id is new
        move = Move(now, now + HOUR, columns={"result": result})
        return table.apply_permitted(connection, job, JobEvent.RESULT_ARRIVED, move)


def print_table(one: Measured) -> None:
    print("| MiB | rounds | ours MiB/s | curl MiB/s | ratio | curl + sync | peak MiB | growth |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rates = f"{one.ours:.0f} | {one.curl:.0f} | {one.ratio:.2f} | {one.curl_synced:.0f}"
    print(f"| {one.mib} | {one.rounds} | {rates} | {one.peak_mib:.0f} | {one.growth_mib:.1f} |")
    print(
        f"\n{one.small_videos} videos of 2 s: {one.small_milliseconds:.1f} ms each from claim to "
        f"record, curl {one.small_curl_milliseconds:.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
