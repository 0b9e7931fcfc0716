"""Videos that take too much, thrown at a worker of 512 MiB that has other work to do."""

import base64
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from tests.harness.bombs import build_gif, make_many_frames
from tests.harness.processes import TWO_WORKERS, Part
from tests.harness.waiting import wait_until
from tests.system.conftest import YARDS
from tests.system.rows import ENDED
from tests.system.scene import Scene, run_scene

NORMAL, SECONDS = 200, 600.0
READY = ("--render", "fake", "--concurrency", "20")
LIMIT = 512 * 1024 * 1024
CASES = Path(__file__).parents[2] / "media" / "cases"
MEMORY_V1, MEMORY_V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def scene(tmp_path, request, clip) -> Iterator[Scene]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    changes = {"LEASE_SECONDS": "20"}
    with run_scene(
        tmp_path, url, clip, TWO_WORKERS, changes=changes, emulator_options=READY
    ) as scene:
        request.node.stash.setdefault(YARDS, []).append(scene.deployment.yard)
        for name in scene.deployment.workers:
            scene.deployment.yard.parts[name].wait_for_log(" ready.", 60)
        yield scene


@contextmanager
def bounding_memory(part: Part) -> Iterator[bool]:
    """Put the worker and its children into a group of LIMIT bytes; whether that was possible."""
    name = f"extend-video-{part.process.pid}"
    group = (MEMORY_V1 if MEMORY_V1.is_dir() else MEMORY_V2) / name
    limit = group / ("memory.limit_in_bytes" if MEMORY_V1.is_dir() else "memory.max")
    try:
        group.mkdir()
        limit.write_text(str(LIMIT))
        for one in [psutil.Process(part.process.pid), *psutil.Process(part.process.pid).children()]:
            (group / "cgroup.procs").write_text(str(one.pid))
    except OSError:
        yield False
    else:
        yield True
    finally:
        if group.is_dir():
            for pid in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()


def enqueue_all(scene: Scene, count: int) -> list[UUID]:
    return [scene.enqueue() for _ in range(count)]


def wait_for_archived(scene: Scene, ids: list[UUID]) -> float:
    """When the last of them was archived, by this process's clock."""

    def is_done() -> bool:
        rows = scene.table.select("SELECT id FROM jobs WHERE state = 'archived'")
        return set(ids) <= {UUID(str(row["id"])) for row in rows}

    wait_until(is_done, SECONDS)
    return time.monotonic()


def lay_bombs(scene: Scene, directory: Path) -> list[str]:
    """Their URLs: all cases, pictures of a gigabyte, and a video of hours that tells of 1 s."""
    files = directory / "emulator" / "files"
    for path in [one for one in CASES.iterdir() if one.suffix in {".mp4", ".webm"}]:
        (files / path.name).write_bytes(path.read_bytes())
    (files / "wide.gif").write_bytes(build_gif())
    (files / "large.gif").write_bytes(build_gif(8_192, 8_192))
    make_many_frames(files / "many.webm")
    base = scene.emulator.sample_url.replace(scene.emulator.url, scene.relay.url)
    names = sorted(one.name for one in files.iterdir() if one.name != "sample.mp4")
    # The worst come more than once.
    names += ["wide.gif", "large.gif"] * 4
    return [base.replace("sample.mp4", name) for name in names]


def test_bombs_beside_normal_jobs_end_no_process_and_take_at_most_twice_the_time(
    scene, tmp_path, capsys
) -> None:
    archiver, submitter = scene.deployment.archiver, scene.deployment.submitter
    urls = lay_bombs(scene, tmp_path)
    wait_for_archived(scene, enqueue_all(scene, 10))
    began = time.monotonic()
    usual = wait_for_archived(scene, enqueue_all(scene, NORMAL)) - began

    with bounding_memory(archiver) as is_bound, bounding_memory(submitter):
        scene.emulator.order(
            *(
                {
                    "point": "output",
                    "kind": "odd_fields",
                    "merge": {"video": {"url": url}},
                    "match": {"prompt": f"bomb {number}."},
                }
                for number, url in enumerate(urls)
            )
        )
        began = time.monotonic()
        thrown = [scene.enqueue(prompt=f"bomb {number}. {began}") for number in range(len(urls))]
        bomb = base64.b64encode(build_gif()).decode()
        for _ in range(10):
            scene.send("enqueue", **scene.build_fields(video_url=f"data:video/gif;base64,{bomb}"))
        beside = wait_for_archived(scene, enqueue_all(scene, NORMAL)) - began
        wait_for_archived(scene, thrown)
        all_in = time.monotonic() - began
        memory = {
            part.name: psutil.Process(part.process.pid).memory_info().rss >> 20
            for part in (archiver, submitter)
        }

    rows = scene.table.select("SELECT state, archive_warnings, fence FROM jobs")
    undecoded = [row for row in rows if "undecoded" in str(row["archive_warnings"])]
    told = [
        f"{NORMAL} jobs: {usual:.1f} s alone, {beside:.1f} s beside {len(urls)} bombs",
        f"all in {all_in:.1f} s, {len(undecoded)} undecoded",
        f"MiB: {memory}, within a group of 512: {is_bound}",
    ]
    with capsys.disabled():
        print("\n", "; ".join(told), sep="")  # noqa: T201 - the figures are what the part is for
    assert archiver.is_running
    assert submitter.is_running
    assert "archive_claim_expired" not in str(scene.table.select("SELECT reason FROM events"))
    assert submitter.read_log().count("16000 x 16000 pixels; at most") >= 10
    assert all(row["state"] in ENDED for row in rows)
    assert len(undecoded) == sum(url.endswith(("wide.gif", "large.gif")) for url in urls)
    assert beside <= 2 * usual
    if not is_bound:
        pytest.skip(f"NOT RUN: no memory group can be made here (user {os.getuid()})")
