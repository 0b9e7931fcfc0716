"""A worker's archive step: real videos, a real disk, and whatever else a test puts in its place."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from tests.emulator.clips import make_clip
from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, build_result, make_job
from worker.fal.platform import PlatformClient
from worker.fal.requests import RequestClient
from worker.ground.db import Database
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.download import DownloadLimits
from worker.media.examiner import Examiner, get_examiner
from worker.media.hosts import parse_media_hosts
from worker.media.layout import parse_layout
from worker.media.local_store import LocalStore
from worker.media.pinned import MediaClient
from worker.media.store import Store
from worker.stages.archive import ArchivePolicy, Keeper, archive_job
from worker.stages.fetch import Fetcher

FRAMES, WIDTH, HEIGHT, RATE = 24, 64, 48, 12
LIMITS = DownloadLimits(timedelta(seconds=30), 10 * 1024 * 1024)
IMPATIENT = MediaClient(sleep=lambda _: None)


@cache
def make_video(ending: str = "mp4", *, has_audio: bool = True) -> bytes:
    """A small real video, the same bytes each time."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"clip.{ending}"
        make_clip(path, frames=FRAMES, size=(WIDTH, HEIGHT), rate=RATE, has_audio=has_audio)
        return path.read_bytes()


def state_video(url: str, **stated: Any) -> dict[str, Any]:
    """A result that states what `make_video` is."""
    result = build_result(url)
    facts = {"num_frames": FRAMES, "width": WIDTH, "height": HEIGHT, "fps": float(RATE)}
    result["video"] |= {**facts, "file_size": len(make_video()), **stated}
    return result


def make_completed(db: Database, url: str, **stated: Any) -> Job:
    return make_job(db, JobState.COMPLETED, result=state_video(url, **stated))


def never() -> Any:
    raise AssertionError("fal was asked")


@dataclass(frozen=True)
class Archiver:
    """Archives jobs; `with_` changes what a test is about."""

    db: Database
    store: Store
    hosts: str
    layout: str = "{job_id}.{ext}"
    limits: DownloadLimits = LIMITS
    client: MediaClient = IMPATIENT
    open_requests: Callable[[], RequestClient] = never
    open_signer: Callable[[], PlatformClient] = never
    max_downloads: int = 32
    examiner: Examiner = field(default_factory=get_examiner)

    def with_(self, **changes: Any) -> "Archiver":
        return replace(self, **changes)

    def build_keeper(self, clock: FakeClock | None = None) -> Keeper:
        hosts = parse_media_hosts(self.hosts)
        fetcher = Fetcher(
            self.open_requests,
            self.open_signer,
            self.client,
            hosts,
            self.limits,
            self.examiner,
        )
        return Keeper(
            self.db,
            self.store,
            fetcher,
            parse_layout(self.layout),
            clock=clock or FakeClock(),
        )

    def __call__(
        self,
        job: Job,
        *,
        clock: FakeClock | None = None,
        worker: str = "tester:1",
        lease: timedelta = LEASE,
    ) -> Job | None:
        policy = ArchivePolicy(worker, lease, self.max_downloads)
        return archive_job(job.id, keeper=self.build_keeper(clock), policy=policy)


def archive_locally(db: Database, root: Path, hosts: str) -> Archiver:
    return Archiver(db, LocalStore(root), hosts)


def list_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
