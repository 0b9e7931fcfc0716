"""Archive videos as a worker does, in a process of its own: all of the step, or a part of it.

`python -m benchmarks.harness.archiving PART THREADS DIRECTORY URL…` prints JSON: seconds, without
those of its start, and its peak of memory.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias
from uuid import UUID

import uuid_utils.compat

from worker.ground.db import Database
from worker.ground.schema import upgrade_schema
from worker.jobs import table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Move, NewJob
from worker.media.download import DownloadLimits, download_video
from worker.media.examiner import get_examiner
from worker.media.hosts import MediaHosts, parse_media_hosts
from worker.media.layout import parse_layout
from worker.media.local_store import LocalStore
from worker.media.pinned import MediaClient
from worker.media.spool import Spool
from worker.stages.archive import ArchivePolicy, Keeper, archive_job
from worker.stages.fetch import Fetcher

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
LIMITS = DownloadLimits(HOUR, 2**40)

Part: TypeAlias = Literal["download", "publish", "whole"]
Act: TypeAlias = Callable[[str], object]


def measure_part(
    part: Part, threads: int, directory: Path, urls: Sequence[str]
) -> dict[str, float]:
    """Run it in a process of its own; `seconds` and `peak_mib`."""
    module = "benchmarks.harness.archiving"
    command = [sys.executable, "-m", module, part, str(threads), str(directory.absolute()), *urls]
    told: dict[str, float] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout  # noqa: S603 - our own words
    )
    return told


def build_download(directory: Path, hosts: MediaHosts) -> Act:
    """Onto the disk, hashed on the way, and nothing flushed."""
    client = MediaClient()

    def download(url: str) -> None:
        with Spool(directory).begin("video") as file:
            download_video(url, file, client=client, hosts=hosts, limits=LIMITS)

    return download


def build_publish(directory: Path, hosts: MediaHosts) -> Act:
    """The same, and flushed under a final name, with the directories that lead there."""
    client, store = MediaClient(), LocalStore(directory / "archive")

    def publish(url: str) -> None:
        with store.spool.begin("video") as file:
            download_video(url, file, client=client, hosts=hosts, limits=LIMITS)
            store.publish(file, f"2026/01/01/{uuid_utils.compat.uuid7()}.mp4", "video/mp4")

    return publish


def build_whole(directory: Path, hosts: MediaHosts, urls: Sequence[str]) -> Act:
    """From claim to record: also verified, with its poster and its sidecar."""
    database_url = f"sqlite:///{directory / 'jobs.db'}"
    upgrade_schema(database_url)
    db = Database(database_url)
    fetcher = Fetcher(ask_nobody, ask_nobody, MediaClient(), hosts, LIMITS, get_examiner())
    store = LocalStore(directory / "archive")
    keeper = Keeper(db, store, fetcher, parse_layout("{yyyy}/{mm}/{dd}/{job_id}.{ext}"))
    jobs = {url: insert_completed(db, url) for url in urls}

    def archive(url: str) -> None:
        job = archive_job(jobs[url], keeper=keeper, policy=ArchivePolicy("benchmark", HOUR))
        if job is None or job.state is not JobState.ARCHIVED:
            sys.exit(f"not archived: {job and (job.blocked_reason, job.error_code)}")

    return archive


def ask_nobody() -> NoReturn:
    raise AssertionError("fal was asked")


def insert_completed(db: Database, url: str) -> UUID:
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
        return table.apply_permitted(connection, job, JobEvent.RESULT_ARRIVED, move).id


def main(part: str, threads: int, directory: Path, urls: Sequence[str]) -> None:
    hosts = parse_media_hosts(urls[0].removeprefix("http://").partition("/")[0])
    match part:
        case "download":
            act = build_download(directory, hosts)
        case "publish":
            act = build_publish(directory, hosts)
        case _:
            act = build_whole(directory, hosts, urls)
    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(act, urls))
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
