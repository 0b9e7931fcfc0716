"""An archive in S3: the real daemons speak to a real S3 API over HTTP."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness.processes import ONE_WORKER
from tests.harness.s3 import S3
from tests.harness.waiting import wait_until
from tests.system.conftest import prepare_scene
from tests.system.relay import Point
from tests.system.rows import Row
from tests.system.scene import Scene, run_scene

BUCKET, PREFIX = "extend-video", "videos/of ours"


@pytest.fixture(scope="module")
def shared_s3_scene(tmp_path_factory, clip, s3_server: S3) -> Iterator[Scene]:
    """One worker with processes of its own: what it forks must be able to speak to S3."""
    directory = tmp_path_factory.mktemp("s3")
    s3_server.client.put(f"/{BUCKET}").raise_for_status()
    changes = {**s3_server.variables, "ARCHIVE_URL": f"s3://{BUCKET}/{PREFIX}"}
    url = f"sqlite:///{directory / 'jobs.db'}"
    with run_scene(directory, url, clip, ONE_WORKER, changes=changes) as scene:
        yield scene


@pytest.fixture
def scene(request) -> Scene:
    return prepare_scene(request, "shared_s3_scene")


def list_spooled(scene: Scene) -> list[Path]:
    return list((scene.deployment.yard.directory / "spool").glob("*"))


def fetch(s3: S3, job: Row) -> httpx.Response:
    """The object that the row names, by a client that is not ours."""
    bucket, _, key = job["archive_uri"].removeprefix("s3://").partition("/")
    return s3.get(bucket, key).raise_for_status()


def test_video_is_archived_in_s3_and_its_row_says_where(scene, s3_server):
    job = scene.table.wait_for_end(scene.enqueue())

    day = f"{job['enqueued_at']:%Y/%m/%d}"
    assert job["archive_uri"] == f"s3://{BUCKET}/{PREFIX}/{day}/{job['id']}.mp4"
    kept = fetch(s3_server, job)
    assert hashlib.sha256(kept.content).hexdigest() == job["archive_sha256"]
    assert len(kept.content) == job["archive_bytes"] == job["result"]["video"]["file_size"]
    assert kept.headers["content-type"] == "video/mp4"
    assert kept.headers["x-amz-meta-sha256"] == job["archive_sha256"]
    assert list_spooled(scene) == []
    assert len(scene.list_submissions(job)) == 1


def test_doctor_looks_at_objects_in_s3(scene, s3_server):
    job = scene.table.wait_for_end(scene.enqueue())
    sound = scene.deployment.run("doctor", "--all")
    assert sound.returncode == 0, sound.stdout

    bucket, _, key = job["archive_uri"].removeprefix("s3://").partition("/")
    s3_server.client.delete(f"/{bucket}/{key}").raise_for_status()
    found = scene.deployment.run("doctor", "--all")
    assert found.returncode == 1
    assert str(job["id"]) in found.stdout


def test_download_of_a_killed_worker_leaves_no_spooled_file(scene, s3_server):
    with scene.relay.holding(Point.MID_DOWNLOAD) as hold:
        job_id = scene.enqueue()
        hold.wait_until_reached()
        wait_until(lambda: any(path.stat().st_size for path in list_spooled(scene)))
        scene.deployment.archiver.kill()
    assert len(list_spooled(scene)) == 1
    scene.deployment.start_workers()

    job = scene.table.wait_for_end(job_id)
    assert hashlib.sha256(fetch(s3_server, job).content).hexdigest() == job["archive_sha256"]
    wait_until(lambda: list_spooled(scene) == [])
