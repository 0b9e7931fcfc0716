"""Files as input, from every edge to the emulator's storage over HTTP, the job table between."""

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from celery.exceptions import Reject
from pydantic import SecretStr
from sqlalchemy import text

from tests.emulator.clips import make_clip
from tests.emulator.processes import Emulator, start_emulator
from tests.harness.bombs import build_gif
from tests.harness.brokers import find_closed_port
from tests.harness.commands import build_run
from tests.harness.logs import preserved_logging
from tests.harness.processes import EXTEND_VIDEO
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from worker import producer, runtime, tasks
from worker.fal.storage import StorageClient, UploadFile, UploadPolicy
from worker.ground.clock import Backoff
from worker.ground.db import Database
from worker.ground.errors import (
    IdempotencyConflictError,
    InvalidInputError,
    InvalidSettingsError,
    UploadUnavailableError,
)
from worker.jobs.uploads import Uploaded, find_upload, record_upload
from worker.jobs.values import Job
from worker.stages.enqueue import enqueue_job
from worker.stages.upload import FRESH_FOR, FilePolicy, make_job_request

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
KIB = 1024
QUICK = Backoff(timedelta(milliseconds=1), timedelta(milliseconds=5))
IN_PARTS = UploadPolicy(whole_bytes=100 * KIB, part_bytes=64 * KIB, pause=QUICK)
AT_ONCE = UploadPolicy(pause=QUICK)
PROMPT: dict[str, Any] = {"prompt": "on it goes"}
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> Iterator[Emulator]:
    with start_emulator(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "sample.mp4", frames=12)


@pytest.fixture
def clip(sample, tmp_path: Path) -> Path:
    """A video whose bytes no other test has: a box at its end that players pass over."""
    path = tmp_path / "my clip ü.mp4"
    extra = os.urandom(64)
    box = (8 + len(extra)).to_bytes(4, "big") + b"free" + extra
    path.write_bytes(sample.read_bytes() + box)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture whose bytes no other test has; what follows its end is passed over."""
    path = tmp_path / "end.png"
    path.write_bytes(PICTURE + os.urandom(16))
    return path


@pytest.fixture(autouse=True)
def no_leak(emulator) -> Iterator[None]:
    """Whatever a test does: no credential comes where it has no business, no fault stays."""
    emulator.order()
    yield
    emulator.order()
    assert emulator.client.get("/_emulator/leaks").json() == []


@pytest.fixture
def environment(monkeypatch, database_url, emulator) -> Iterator[None]:
    """A producer with a key, and a broker that is away: the sweep would ring later."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    monkeypatch.setenv("FAL_REST_URL", emulator.url)
    monkeypatch.setenv("FAL_CDN_URL", emulator.url)
    monkeypatch.setenv("FAL_KEY", "emulator-key")
    producer.get_runtime.forget()
    runtime.get_runtime.forget()
    with preserved_logging():
        yield
    for get_runtime in (producer.get_runtime, runtime.get_runtime):
        if get_runtime.is_made:
            get_runtime().db.close()
        get_runtime.forget()


def list_uploads(emulator: Emulator) -> list[dict[str, Any]]:
    return list(emulator.client.get("/_emulator/uploads").json())


def count_uploads(emulator: Emulator, content: bytes) -> int:
    """How often these bytes have come, by the name that their hash gives them."""
    name = hashlib.sha256(content).hexdigest()[:32]
    return sum(name in one["name"] for one in list_uploads(emulator))


def hash_served(url: str) -> str:
    return hashlib.sha256(httpx.get(url, trust_env=False).content).hexdigest()


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count_rows(db: Database) -> tuple[int, int]:
    with db.reading() as connection:
        count = "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM uploads)"
        jobs, uploads = connection.execute(text(count)).one()
    return int(jobs), int(uploads)


def build_data_uri(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# ------------------------------------------------------------------ the client


def refuse_all(_url: str) -> bool:
    """Only the emulator's own addresses are used."""
    return False


def send(emulator: Emulator, path: Path, policy: UploadPolicy, key: str = "emulator-key") -> str:
    client = StorageClient(emulator.url, emulator.url, SecretStr(key), policy, may_use=refuse_all)
    try:
        return client.upload(UploadFile(path, path.stat().st_size, "video/mp4", "a.mp4"))
    finally:
        client.close()


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    path = tmp_path / "long.bin"
    path.write_bytes(os.urandom(1024 * KIB + 1))
    return path


@pytest.mark.parametrize(("policy", "parts"), [(AT_ONCE, 1), (IN_PARTS, 17)])
def test_uploaded_file_is_served_as_it_was(emulator, long_file, policy, parts) -> None:
    url = send(emulator, long_file, policy)
    assert hash_served(url) == hash_file(long_file)
    upload = list_uploads(emulator)[-1]
    assert (upload["parts"], upload["bytes"]) == (parts, 1024 * KIB + 1)
    assert upload["content_type"] == "video/mp4"
    assert upload["lifecycle"]["expiration_duration_seconds"] is None


@pytest.mark.parametrize(
    ("fault", "policy"),
    [
        ({"point": "upload", "kind": "drop", "times": 2}, AT_ONCE),
        ({"point": "upload_part", "kind": "status", "code": 503, "times": 4}, IN_PARTS),
        ({"point": "upload_complete", "kind": "drop", "times": 2}, IN_PARTS),
    ],
)
def test_upload_survives_faults(emulator, long_file, fault, policy) -> None:
    emulator.order(fault)
    url = send(emulator, long_file, policy)
    assert hash_served(url) == hash_file(long_file)
    assert emulator.count_fired() == [fault["times"]]


def test_fault_that_stays_ends_the_upload(emulator, long_file) -> None:
    emulator.order({"point": "upload_part", "kind": "status", "code": 503})
    with pytest.raises(UploadUnavailableError, match="HTTP 503"):
        send(emulator, long_file, IN_PARTS)


def test_wrong_key_is_told_as_trouble_with_the_account(emulator, long_file) -> None:
    with pytest.raises(UploadUnavailableError, match="fal refuses the account"):
        send(emulator, long_file, AT_ONCE, key="of-somebody-else")


# ------------------------------------------------------------------ the table of uploads


def build_uploaded(url: str, at: datetime = NOW) -> Uploaded:
    return Uploaded("ab" * 32, 2**40, "video/mp4", url, at)


@pytest.mark.both_databases
def test_fresh_upload_is_kept_against_a_later_one(db) -> None:
    with db.transaction() as connection:
        first = record_upload(connection, build_uploaded("https://a"), NOW - FRESH_FOR)
        second = record_upload(connection, build_uploaded("https://b"), NOW - FRESH_FOR)
        assert first == second == find_upload(connection, "ab" * 32)
        assert find_upload(connection, "cd" * 32) is None
    assert first == build_uploaded("https://a")


@pytest.mark.both_databases
def test_stale_upload_gives_way(db) -> None:
    later = NOW + timedelta(seconds=1)
    with db.transaction() as connection:
        record_upload(connection, build_uploaded("https://a"), NOW - FRESH_FOR)
        kept = record_upload(connection, build_uploaded("https://b", later), later)
        assert kept == find_upload(connection, "ab" * 32) == build_uploaded("https://b", later)


# ------------------------------------------------------------------ the stage

Enqueue = Callable[..., Job]


@pytest.fixture
def wish_and_enqueue(db, emulator) -> Enqueue:
    """From fields to the job's row, at a time of one's choice."""

    def open_storage() -> AbstractContextManager[StorageClient]:
        key = SecretStr("emulator-key")
        return closing(StorageClient(emulator.url, emulator.url, key, AT_ONCE, may_use=refuse_all))

    def enqueue(fields: Mapping[str, object], now: datetime = NOW) -> Job:
        job_request = make_job_request(
            {**PROMPT, **fields},
            (),
            db=db,
            open_storage=open_storage,
            policy=FilePolicy(16 * KIB, 1024 * KIB),
            clock=lambda: now,
        )
        lease = timedelta(seconds=60)
        return enqueue_job(
            job_request, db=db, endpoint="a/b", dispatch_timeout=lease, clock=lambda: now
        ).job

    return enqueue


def test_file_becomes_a_url_in_the_jobs_input(wish_and_enqueue, clip, picture, db) -> None:
    job = wish_and_enqueue({"video_url": clip, "end_image_url": picture})
    assert hash_served(job.input["video_url"]) == hash_file(clip)
    assert hash_served(job.input["end_image_url"]) == hash_file(picture)
    assert job.input["video_url"].endswith(f"{hash_file(clip)[:32]}.mp4")
    assert job.input["end_image_url"].endswith(f"{hash_file(picture)[:32]}.png")
    assert isinstance(job.input["seed"], int)
    assert count_rows(db) == (1, 2)


def test_same_bytes_are_uploaded_once_whatever_they_come_as(
    wish_and_enqueue, clip, emulator, db
) -> None:
    content = clip.read_bytes()
    given = [clip, content, io.BytesIO(content), bytearray(content), build_data_uri(clip)]
    jobs = [wish_and_enqueue({"video_url": one}) for one in given]
    with clip.open("rb") as file:
        jobs.append(wish_and_enqueue({"video_url": file}))
    assert len({job.input["video_url"] for job in jobs}) == 1
    assert count_uploads(emulator, content) == 1
    assert count_rows(db) == (6, 1)


@pytest.mark.parametrize(
    ("name", "later"), [("idempotency_key", timedelta(days=30)), ("job_id", timedelta())]
)
def test_same_key_with_the_same_file_is_the_same_job(
    wish_and_enqueue, clip, emulator, name, later
) -> None:
    fields = {"video_url": clip, name: str(uuid4())}
    first = wish_and_enqueue(fields)
    second = wish_and_enqueue(fields, NOW + later)
    assert first == second
    assert count_uploads(emulator, clip.read_bytes()) == 1


def test_same_key_with_another_file_is_a_conflict(wish_and_enqueue, clip) -> None:
    fields = {"video_url": clip, "idempotency_key": "k"}
    wish_and_enqueue(fields)
    clip.write_bytes(clip.read_bytes() + b"\0\0\0\x08free")
    with pytest.raises(IdempotencyConflictError):
        wish_and_enqueue(fields)


def test_stale_upload_is_not_used_for_another_job(wish_and_enqueue, clip, emulator) -> None:
    fields = {"video_url": clip}
    urls = {
        wish_and_enqueue(fields, now).input["video_url"]
        for now in (NOW, NOW + FRESH_FOR, NOW + FRESH_FOR + timedelta(seconds=1))
    }
    assert len(urls) == 2
    assert count_uploads(emulator, clip.read_bytes()) == 2


def test_upload_that_fal_has_no_more_is_made_again(wish_and_enqueue, clip, emulator, db) -> None:
    first = wish_and_enqueue({"video_url": clip}).input["video_url"]
    (emulator.directory / httpx.URL(first).path.removeprefix("/")).unlink()
    second = wish_and_enqueue({"video_url": clip}).input["video_url"]
    assert first != second
    assert hash_served(second) == hash_file(clip)
    assert wish_and_enqueue({"video_url": clip}).input["video_url"] == second
    assert count_rows(db) == (3, 1)


def test_small_data_uri_goes_inline(wish_and_enqueue, tmp_path, sample, db) -> None:
    small = make_clip(tmp_path / "small.mp4", frames=2, size=(32, 32), has_audio=False)
    assert small.stat().st_size < 16 * KIB < sample.stat().st_size
    uri = build_data_uri(small)
    assert wish_and_enqueue({"video_url": uri}).input["video_url"] == uri
    assert count_rows(db) == (1, 0)


def test_url_is_passed_on_and_not_fetched(wish_and_enqueue, db) -> None:
    url = "http://127.0.0.1:9/never.mp4"
    job = wish_and_enqueue({"video_url": url, "end_image_url": url})
    assert (job.input["video_url"], job.input["end_image_url"]) == (url, url)
    assert count_rows(db) == (1, 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"no video", "video_url=<8 bytes>: not a readable video"),
        (bytes(1024 * KIB + 1), "MAX_UPLOAD_BYTES allows 1 to 1048576"),
        (
            lambda: io.BytesIO(bytes(1024 * KIB + 1)),
            "video_url=<BytesIO>: it has more than 1048576 bytes",
        ),
        (
            Path("missing.mp4"),
            "video_url=missing.mp4: it cannot be read: No such file or directory",
        ),
        ("file:///etc/passwd", "never as text"),
        ("data:video/mp4;base64,AAA", "is base64"),
        (f"data:video/mp4;base64,{'A' * 1_398_108}", "at most 1048576 bytes"),
        (7, "a data URI in base64"),
        (build_gif(), "its picture has 16000 x 16000 pixels; at most"),
        (
            f"data:video/gif;base64,{base64.b64encode(build_gif()).decode()}",
            "its picture has 16000 x 16000 pixels; at most",
        ),
    ],
)
def test_refused_file_is_told_with_all_else_and_leaves_nothing(
    wish_and_enqueue, picture, emulator, db, value, reason
) -> None:
    before = len(list_uploads(emulator))
    given = value() if callable(value) else value
    fields = {"video_url": given, "end_image_url": picture, "num_frames": 1}
    with pytest.raises(InvalidInputError) as caught:
        wish_and_enqueue(fields)
    assert {one.field for one in caught.value.violations} == {"video_url", "num_frames"}
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert len(list_uploads(emulator)) == before
    assert count_rows(db) == (0, 0)


def test_picture_is_refused_as_video_and_video_as_picture(wish_and_enqueue, clip, picture) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wish_and_enqueue({"video_url": picture, "end_image_url": clip})
    reasons = [one.allowed for one in caught.value.violations]
    assert "not a readable video" in reasons[0]
    assert "neither PNG, JPEG, WebP nor GIF" in reasons[1]


def test_failed_upload_leaves_no_row(wish_and_enqueue, clip, emulator, db) -> None:
    emulator.order({"point": "upload", "kind": "status", "code": 503})
    with pytest.raises(UploadUnavailableError):
        wish_and_enqueue({"video_url": clip})
    assert count_rows(db) == (0, 0)


def test_file_changed_meanwhile_is_refused(wish_and_enqueue, clip, emulator, db) -> None:
    emulator.arm({"point": "upload_received", "times": 1})

    def change() -> None:
        [held] = emulator.wait_for_held()
        os.utime(clip, ns=(1, 1))
        emulator.release(held)

    def enqueue() -> None:
        with pytest.raises(InvalidInputError, match="it was changed while it was uploaded"):
            wish_and_enqueue({"video_url": clip})

    call_together(enqueue, change)
    assert count_rows(db) == (0, 0)


# ------------------------------------------------------------------ Python


def test_producer_uploads_and_tells_its_progress(environment, clip, picture) -> None:
    told: list[tuple[int, int]] = []
    job = producer.enqueue(
        **PROMPT,
        video_url=clip,
        end_image_url=picture.read_bytes(),
        on_progress=lambda sent, total: told.append((sent, total)),
    )
    total = clip.stat().st_size + picture.stat().st_size
    assert told == sorted(told)
    assert (told[-1], {one for _, one in told}) == ((total, total), {total})
    assert hash_served(job.input["video_url"]) == hash_file(clip)


def test_producer_without_a_key_is_told_so(environment, monkeypatch, clip, db) -> None:
    monkeypatch.delenv("FAL_KEY")
    with pytest.raises(InvalidSettingsError, match=r"FAL_KEY=\(not set\)"):
        producer.enqueue(**PROMPT, video_url=clip)
    assert count_rows(db) == (0, 0)
    producer.enqueue(**PROMPT, video_url="https://example.com/a.mp4")
    assert count_rows(db) == (1, 0), "a URL needs no key"


# ------------------------------------------------------------------ the shell


@pytest.fixture
def run(environment, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    run_command = build_run(monkeypatch, capsys)

    def run_enqueue(*arguments: str) -> tuple[int, str, str]:
        ended = run_command("enqueue", "--prompt", "on it goes", *arguments)
        return ended.code, ended.out, ended.err

    return run_enqueue


def read_input(db: Database, job_id: str) -> dict[str, Any]:
    with db.reading() as connection:
        [row] = connection.execute(text("SELECT input FROM jobs"))
    assert job_id
    return dict(json.loads(row.input))


def test_shell_takes_paths_and_file_urls(run, db, clip, picture) -> None:
    code, out, err = run("--video", clip.as_uri(), "--end-image", picture.name)
    assert code == 0, err
    stored = read_input(db, out.strip())
    assert hash_served(stored["video_url"]) == hash_file(clip)
    assert hash_served(stored["end_image_url"]) == hash_file(picture)
    assert "uploading: 0." in err


def test_shell_is_silent_for_programs(run, db, clip) -> None:
    code, out, err = run("--video", str(clip), "--json")
    assert code == 0
    assert "uploaded" not in out + err
    assert read_input(db, json.loads(out)["id"])["video_url"].startswith("http://")


def test_shell_tells_what_is_wrong_with_each_file(run, db) -> None:
    Path("notes.txt").write_text("no video at all")
    code, out, err = run("--video", "missing.mp4", "--end-image", "notes.txt")
    assert (code, out) == (2, "")
    assert "video_url=missing.mp4: it cannot be read: No such file or directory" in err
    assert "end_image_url=notes.txt: not a readable image" in err
    assert count_rows(db) == (0, 0)


def test_shell_without_a_key_is_told_so(run, monkeypatch, clip) -> None:
    monkeypatch.delenv("FAL_KEY")
    code, _, err = run("--video", str(clip))
    assert code == 2
    assert "FAL_KEY=(not set): must be set" in err


def test_shell_tells_of_an_upload_that_failed(run, monkeypatch, clip) -> None:
    monkeypatch.setenv("FAL_KEY", "of-somebody-else")
    code, _, err = run("--video", str(clip))
    assert code == 1
    assert err.startswith("upload_unavailable: requesting an upload URL: fal refuses the account")


@pytest.mark.slow  # a shell of its own starts, uploads and is interrupted
def test_shell_interrupted_while_uploading_ends_and_writes_nothing(
    environment, emulator, clip, db
) -> None:
    emulator.arm({"point": "upload_received", "times": 2})
    command = [EXTEND_VIDEO, "enqueue", "--prompt", "on it goes", "--video", str(clip)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        [asked] = emulator.wait_for_held()
        emulator.release(asked)
        wait_until(lambda: [one for one in emulator.wait_for_held() if one["id"] != asked["id"]])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        [sent] = emulator.wait_for_held()
        emulator.release(sent)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert out == ""
    assert count_rows(db) == (0, 0)


# ------------------------------------------------------------------ Celery


def test_message_with_a_large_data_uri_is_uploaded_once(
    environment, monkeypatch, emulator, clip, db
) -> None:
    monkeypatch.setenv("DATA_URI_MAX_BYTES", "1000")
    for _ in range(2):
        tasks.enqueue(**PROMPT, video_url=build_data_uri(clip), idempotency_key="k")
    assert hash_served(read_input(db, "the only")["video_url"]) == hash_file(clip)
    assert count_uploads(emulator, clip.read_bytes()) == 1
    assert count_rows(db) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("video_url", "a.mp4"), ("end_image_url", "file:///srv/a.mp4")]
)
def test_message_with_a_path_is_refused(environment, db, name, value) -> None:
    fields = {
        **PROMPT,
        "video_url": "https://example.com/a.mp4",
        "idempotency_key": "k",
        name: value,
    }
    with pytest.raises(Reject, match=f"{name}=.*never in a message") as caught:
        tasks.enqueue(**fields)
    assert not vars(caught.value)["requeue"]
    assert count_rows(db) == (0, 0)


def test_message_comes_back_while_fal_takes_no_upload(
    environment, monkeypatch, emulator, clip, db
) -> None:
    monkeypatch.setenv("DATA_URI_MAX_BYTES", "1000")
    monkeypatch.setenv("FAL_KEY", "of-somebody-else")
    monkeypatch.setattr(tasks, "UPLOAD_PAUSE_SECONDS", 0)
    with pytest.raises(Reject) as caught:
        tasks.enqueue(**PROMPT, video_url=build_data_uri(clip), idempotency_key="k")
    assert vars(caught.value)["requeue"]
    assert count_rows(db) == (0, 0)
