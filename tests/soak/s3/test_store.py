"""S3 over HTTP, as moto serves it: what every archive does, and what only S3 can get wrong."""

import signal
import subprocess
import sys

import pytest

from tests.harness.disk import list_files
from tests.harness.s3 import S3
from tests.harness.waiting import wait_until
from tests.harness.web import ScriptedHandler, send_body
from tests.media import test_object_store, test_store_conformance
from tests.media.test_object_store import JOB, LARGE, NAME, run_script
from tests.media.test_store_conformance import BODY, JSON, list_names, publish, read
from worker.media import object_store
from worker.media.object_store import LEAST_PART_BYTES, PARTS_AT_ONCE
from worker.media.spool import Spool
from worker.media.store import Store, open_store

# The tests of every archive run here on `store` as well.
globals().update(
    {name: one for name, one in vars(test_store_conformance).items() if "test_" in name}
)
test_object_deleted_while_it_is_read_is_missing = (
    test_object_store.test_object_deleted_while_it_is_read_is_missing
)
test_object_replaced_while_it_is_read_is_noticed = (
    test_object_store.test_object_replaced_while_it_is_read_is_noticed
)


@pytest.fixture(params=["", "/videos/of ours"])
def store(request, s3: S3, tmp_path) -> Store:
    return open_store(f"s3://{s3.make_bucket()}{request.param}", tmp_path / "spool")


@pytest.fixture
def small_reads(store: Store, monkeypatch) -> Store:
    monkeypatch.setattr(object_store, "READ_BYTES", 3)
    return store


def test_list_goes_beyond_one_page(store):
    names = [f"{number:04}.json" for number in range(1010)]  # S3 tells of 1000 at a time
    for name in names:
        store.put(name, b"", JSON)
    assert list_names(store) == names


def test_archive_opened_anew_finds_what_was_published(s3, tmp_path):
    url = f"s3://{s3.make_bucket()}/videos"
    stored = publish(open_store(url, tmp_path / "spool"))
    again = open_store(url, tmp_path / "spool")
    assert again.find_name(stored.uri) == NAME
    assert read(again) == BODY


def test_object_has_its_type_and_hash(s3, tmp_path) -> None:
    bucket = s3.make_bucket()
    store = open_store(f"s3://{bucket}/videos", tmp_path / "spool")
    for size in (3, LARGE):
        with store.spool.begin(JOB) as file:
            file.write(bytes(size))
            stored = store.publish(file, NAME, "video/mp4")
        assert stored.uri == f"s3://{bucket}/videos/{NAME}"
        head = s3.client.head(f"/{bucket}/videos/{NAME}")
        assert head.headers["content-type"] == "video/mp4"
        assert head.headers["x-amz-meta-sha256"] == stored.sha256
        assert head.headers["content-length"] == str(size)


PUBLISH_LARGE = """
import os, sys
from pathlib import Path
from worker.media.store import open_store
store = open_store(sys.argv[1], Path(sys.argv[2]))
def read_peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
store.put("warm", b"", "video/mp4")
with store.spool.begin("large") as file:
    for _ in range(int(sys.argv[3])):
        file.write(bytes(1 << 20))
    before = read_peak()
    store.publish(file, "large.mp4", "video/mp4")
    print(read_peak() - before)
"""


def test_publishing_takes_memory_for_a_few_parts_only(server, tmp_path) -> None:
    opened = (
        b"<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>"
    )
    completed = b'<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>'

    def swallow(handler: ScriptedHandler) -> None:
        is_opening = handler.command == "POST" and "uploadId" not in handler.asked.query
        body = (opened if is_opening else completed) if handler.command == "POST" else b""
        server.asked.clear()
        send_body(body, 200, ETag='"1"')(handler)

    server.answer = swallow
    printed = run_script(PUBLISH_LARGE, "s3://bucket", str(tmp_path / "spool"), "200")
    assert int(printed) < (PARTS_AT_ONCE + 4) * LEAST_PART_BYTES


PUBLISH_FOREVER = """
import sys
from pathlib import Path
from worker.media.store import open_store
store = open_store(sys.argv[1], Path(sys.argv[2]))
with store.spool.begin("large") as file:
    file.write(bytes(60 << 20))
    print("begins", flush=True)
    store.publish(file, "large.mp4", "video/mp4")
    print("ended", flush=True)
"""


def test_process_killed_while_it_publishes_leaves_no_object(s3: S3, tmp_path) -> None:
    bucket, spool = s3.make_bucket(), Spool(tmp_path / "spool")
    command = [sys.executable, "-c", PUBLISH_FOREVER, f"s3://{bucket}", str(spool.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begins\n"
        wait_until(lambda: "<UploadId>" in s3.get(bucket, "", uploads="").text)
        writer.kill()
        assert writer.stdout.read() == b""
    assert writer.returncode == -signal.SIGKILL

    assert list(open_store(f"s3://{bucket}", spool.directory).list()) == []
    assert len(list_files(spool.directory)) == 1
    assert spool.remove_partials() == 1
    assert list_files(spool.directory) == []
