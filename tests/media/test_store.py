import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreUnavailableError
from worker.media.store import LocalStore, Store, StoredObject, local_path, open_store

JOB = "019a9f6e-0000-7000-8000-000000000001"
CHUNKS = [b"first ", b"", b"second"]
BODY = b"".join(CHUNKS)

WRITE_AND_WAIT = """
import sys
from pathlib import Path
from worker.media.store import LocalStore
with LocalStore(Path(sys.argv[1])).create(sys.argv[2]) as writer:
    writer.write(b"half a video")
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "deep" / "archive")


def list_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def archive(store: Store, name: str = f"{JOB}.mp4", body: bytes = BODY) -> StoredObject:
    with store.create(JOB) as writer:
        writer.write(body)
        return writer.commit(name)


def write_and_fail(store: Store, error: Exception) -> None:
    with store.create(JOB) as writer:
        writer.write(BODY)
        raise error


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Let the kernel refuse larger files, as it does when a quota or a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_commit_whole_file_gives_uri_hash_and_count(store):
    with store.create(JOB) as writer:
        for chunk in CHUNKS:
            writer.write(chunk)
        stored = writer.commit(f"{JOB}.mp4")

    assert stored == StoredObject(
        uri=(store.root / f"{JOB}.mp4").as_uri(),
        sha256=hashlib.sha256(BODY).hexdigest(),
        bytes=len(BODY),
    )
    assert (store.root / f"{JOB}.mp4").read_bytes() == BODY
    assert list_files(store.root) == [f"{JOB}.mp4"]


def test_create_before_commit_shows_nothing_under_a_final_name(store):
    with store.create(JOB) as writer:
        writer.write(BODY)
        (unfinished,) = list_files(store.root)

    assert unfinished.startswith(f".partial/{JOB}.")


def test_create_left_without_commit_removes_the_file(store):
    with store.create(JOB) as writer:
        writer.write(BODY)

    assert list_files(store.root) == []


def test_create_left_by_error_removes_the_file_and_passes_it_on(store):
    with pytest.raises(OSError, match="of the caller"):
        write_and_fail(store, OSError("of the caller"))

    assert list_files(store.root) == []


def test_create_left_by_error_keeps_the_older_final_file(store):
    archive(store, body=b"older")

    with pytest.raises(KeyError):
        write_and_fail(store, KeyError())

    assert (store.root / f"{JOB}.mp4").read_bytes() == b"older"


def test_commit_twice_for_one_job_replaces_the_file(store):
    first = archive(store, body=b"first")
    second = archive(store, body=b"second")

    assert first.uri == second.uri
    assert (store.root / f"{JOB}.mp4").read_bytes() == b"second"
    assert list_files(store.root) == [f"{JOB}.mp4"]


def test_create_twice_at_once_keeps_both_writers_apart(store):
    with store.create(JOB) as one, store.create(JOB) as other:
        one.write(b"one")
        other.write(b"other")
        one.commit(f"{JOB}.mp4")
        other.commit(f"{JOB}.mp4")

    assert (store.root / f"{JOB}.mp4").read_bytes() == b"other"


def test_commit_again_on_the_same_writer_raises(store):
    with store.create(JOB) as writer:
        writer.write(BODY)
        writer.commit(f"{JOB}.mp4")
        with pytest.raises(ValueError, match="closed file"):
            writer.commit(f"{JOB}.mov")

    assert list_files(store.root) == [f"{JOB}.mp4"]


def test_commit_flushes_file_before_rename_and_directories_after(store, monkeypatch):
    archive(store)  # the directories stand from now on
    calls: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def record_sync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        calls.append(("sync", name.split(".")[0] or name))
        sync(descriptor)

    def record_rename(old, new):
        calls.append(("rename", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    archive(store)

    assert calls == [
        ("sync", JOB),
        ("rename", f"{JOB}.mp4"),
        ("sync", "archive"),
        ("sync", ".partial"),
    ]


def test_create_in_missing_directories_flushes_each_new_entry(store, tmp_path, monkeypatch):
    synced: list[Path] = []
    sync = os.fsync

    def record_sync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    with store.create(JOB):
        pass

    assert synced == [tmp_path, tmp_path / "deep", tmp_path / "deep" / "archive"]


def test_commit_file_mode_follows_the_umask(store):
    before = os.umask(0o027)
    try:
        archive(store)
    finally:
        os.umask(before)

    assert (store.root / f"{JOB}.mp4").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/x", ".partial", ".x", "a\0b", "a b", "x" * 101]
)
def test_commit_escaping_name_raises_and_stores_nothing(store, name):
    with pytest.raises(ValueError, match="cannot name a file"), store.create(JOB) as writer:
        writer.commit(name)

    assert list_files(store.root) == []


def test_create_escaping_label_raises(store):
    with pytest.raises(ValueError, match="cannot name a file"), store.create("../x"):
        pytest.fail("the context was entered")


@given(st.text(max_size=20))
def test_commit_any_name_stays_within_the_archive(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("archive")
    store = LocalStore(root / "inner")
    try:
        stored = archive(store, name=name)
    except ValueError:
        assert list_files(root) == []
    else:
        assert local_path(stored.uri) == root / "inner" / name


def test_create_killed_while_writing_leaves_only_a_partial(store):
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(store.root), JOB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)

    assert writer.returncode == -signal.SIGKILL
    (leftover,) = list_files(store.root)
    assert leftover.startswith(".partial/")
    assert store.remove_partials(timedelta(0)) == 1
    assert list_files(store.root) == []


def test_remove_partials_spares_fresh_and_foreign_files(store):
    archive(store)
    partials = store.root / ".partial"
    for name in ("old.part", "fresh.part", "old.txt"):
        (partials / name).touch()
    for name in ("old.part", "old.txt"):
        os.utime(partials / name, (0, 0))

    assert store.remove_partials(timedelta(hours=1)) == 1
    assert list_files(store.root) == [".partial/fresh.part", ".partial/old.txt", f"{JOB}.mp4"]


def test_remove_partials_without_archive_removes_nothing(store):
    assert store.remove_partials(timedelta(0)) == 0


def test_remove_partials_of_vanished_file_counts_nothing(store):
    with store.create(JOB):
        pass
    (store.root / ".partial" / "gone.part").symlink_to("nowhere")

    assert store.remove_partials(timedelta(0)) == 0


def test_remove_partials_of_irremovable_file_names_the_reason(store):
    (store.root / ".partial" / "directory.part").mkdir(parents=True)

    with pytest.raises(StoreUnavailableError, match="Is a directory"):
        store.remove_partials(timedelta(0))


def test_commit_after_its_partial_was_removed_is_unavailable(store):
    with store.create(JOB) as writer:
        store.remove_partials(timedelta(0))
        with pytest.raises(StoreUnavailableError, match="No such file"):
            writer.commit(f"{JOB}.mp4")

    assert list_files(store.root) == []


def test_write_beyond_the_space_left_names_the_reason_and_removes_the_file(store):
    with limit_file_size(100_000), pytest.raises(StoreUnavailableError) as failure:
        archive(store, body=bytes(100_001))

    assert str(failure.value) == "the archive cannot be written: File too large"
    assert list_files(store.root) == []


@pytest.mark.parametrize("place", ["archive", "archive/.partial"])
def test_create_with_a_file_in_place_of_the_directory_is_unavailable(tmp_path, place):
    blocker = tmp_path / place
    blocker.parent.mkdir(exist_ok=True)
    blocker.touch()

    with (
        pytest.raises(StoreUnavailableError, match=r"Not a directory|File exists") as failure,
        LocalStore(tmp_path / "archive").create(JOB),
    ):
        pytest.fail("the context was entered")

    assert str(tmp_path) not in str(failure.value)


def test_commit_over_a_directory_is_unavailable(store):
    (store.root / f"{JOB}.mp4").mkdir(parents=True)

    with pytest.raises(StoreUnavailableError, match="Is a directory"):
        archive(store)


@pytest.mark.parametrize("url", ["file:./archive", "file:archive", "FILE:./archive"])
def test_open_store_relative_url_is_below_the_working_directory(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)

    assert open_store(url) == LocalStore(tmp_path / "archive")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["file:", "file://"])
def test_open_store_absolute_url_gives_that_directory(tmp_path, prefix):
    stored = archive(open_store(f"{prefix}{tmp_path}/a%20b"))

    assert local_path(stored.uri) == tmp_path / "a b" / f"{JOB}.mp4"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/prefix", "s3: is not supported"),
        ("gs://bucket", "gs: is not supported"),
        ("az://container", "az: is not supported"),
        ("https://user:secret@host/x", "https: is not supported"),
        ("./archive", "a scheme is missing"),
        ("", "a scheme is missing"),
        ("file:", "needs a path"),
        ("file://", "needs a path"),
        ("file:/a%00b", "needs a path"),
        ("file://host/path", "no host"),
        ("file://./archive", "no host"),
        ("file:/path?x=1", "neither query nor fragment"),
        ("file:/path#x", "neither query nor fragment"),
    ],
)
def test_open_store_other_url_raises_and_says_what_is_supported(url, reason):
    with pytest.raises(ValueError, match=f"{reason}.*supports file:") as failure:
        open_store(url)

    assert "secret" not in str(failure.value)


def test_local_path_of_other_scheme_is_none():
    assert local_path("s3://bucket/x.mp4") is None


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_local_path_of_any_file_uri_gives_the_path_back(text):
    path = Path("/archive", text)

    assert local_path(path.as_uri()) == path
