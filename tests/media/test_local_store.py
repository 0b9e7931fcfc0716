"""The archive on local disk: what only a disk can get wrong; the rest is conformance."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.disk import limit_file_size, list_files
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from worker.ground.errors import StoreUnavailableError
from worker.media.layout import StoredObject
from worker.media.local_store import LocalStore, local_path
from worker.media.store import Store

JOB = "019a9f6e-0000-7000-8000-000000000001"
NAME = f"2026/03/01/{JOB}.mp4"
BODY = b"first second"
TYPE = "video/mp4"

CREATE_FOREVER = """
import sys
import tempfile
from pathlib import Path
from worker.media.local_store import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("begins", flush=True)
for number in range(1_000_000):
    store.create(f"{number % 10}/{number}.json", b"{" + b"x" * 100_000 + b"}", "application/json")
    store.put("again.json", b"{" + b"x" * 100_000 + b"}", "application/json")
"""

WRITE_WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from worker.ground.errors import StoreUnavailableError
from worker.media.local_store import LocalStore
store = LocalStore(Path(sys.argv[1]))
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
name = sys.argv[2]
def publish():
    with store.spool.begin("job") as file:
        file.write(b"x")
        store.publish(file, name, "video/mp4")
for call in (publish, store.create, store.put):
    try:
        call() if call is publish else call(name, b"x", "application/json")
    except StoreUnavailableError as error:
        print(error)
"""


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "deep" / "archive")


def publish(store: Store, name: str = NAME, body: bytes = BODY) -> StoredObject:
    with store.spool.begin(JOB) as file:
        file.write(body)
        return store.publish(file, name, TYPE)


def test_published_file_is_the_very_one_that_was_written(store):
    with store.spool.begin(JOB) as file:
        file.write(BODY)
        inode = file.path.stat().st_ino
        stored = store.publish(file, NAME, TYPE)

    final = store.root / NAME
    assert stored == StoredObject(final.as_uri(), hashlib.sha256(BODY).hexdigest(), len(BODY))
    assert final.stat().st_ino == inode, "a rename is no copy"
    assert list_files(store.root) == [NAME]


def test_unpublished_file_keeps_the_older_object(store):
    publish(store, body=b"older")
    with store.spool.begin(JOB) as file:
        file.write(BODY)

    assert (store.root / NAME).read_bytes() == b"older"


def test_published_file_cannot_be_written_any_more(store):
    with store.spool.begin(JOB) as file:
        file.write(BODY)
        store.publish(file, NAME, TYPE)
        with pytest.raises(ValueError, match="closed file"):
            file.write(b"more")
        with pytest.raises(ValueError, match="closed file"):
            store.publish(file, "other.mp4", TYPE)

    assert list_files(store.root) == [NAME]


def record_disk(monkeypatch, root: Path) -> list[tuple[str, str]]:
    """Each flush and each new name, in order, relative to the archive's parent."""
    calls: list[tuple[str, str]] = []
    sync, rename, link = os.fsync, os.replace, os.link

    def tell(path: object) -> str:
        shown = Path(str(path)).relative_to(root.parent).as_posix()
        return "partial" if shown.endswith(".part") else shown

    def record_sync(descriptor):
        calls.append(("sync", tell(Path(f"/proc/self/fd/{descriptor}").readlink())))
        sync(descriptor)

    def record_rename(old, new):
        calls.append(("rename", tell(new)))
        rename(old, new)

    def record_link(old, new):
        calls.append(("link", tell(new)))
        link(old, new)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    monkeypatch.setattr(os, "link", record_link)
    return calls


def test_publish_flushes_file_before_rename_and_every_directory_after(store, monkeypatch):
    publish(store, "2026/03/other.mp4")  # these directories stand from now on
    calls = record_disk(monkeypatch, store.root)
    publish(store)

    assert calls == [
        ("sync", "partial"),
        ("sync", "archive/2026/03"),  # which has a new directory
        ("rename", f"archive/{NAME}"),
        ("sync", "archive/2026/03/01"),
        ("sync", "archive/2026/03"),
        ("sync", "archive/2026"),
        ("sync", "archive"),
        ("sync", "archive/.partial"),
    ]


def test_create_flushes_file_before_link_and_every_directory_after(store, monkeypatch):
    publish(store, "2026/video.mp4")
    calls = record_disk(monkeypatch, store.root)
    assert store.create("2026/video.json", b"{}", "application/json")

    assert calls == [
        ("sync", "partial"),
        ("link", "archive/2026/video.json"),
        ("sync", "archive/2026"),
        ("sync", "archive"),
    ]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o640), (0o077, 0o600)])
def test_new_file_is_for_owner_and_group_or_fewer_by_the_umask(store, umask, mode):
    before = os.umask(umask)
    try:
        publish(store)
        store.create("one.json", b"{}", "application/json")
    finally:
        os.umask(before)

    modes = {(store.root / name).stat().st_mode & 0o777 for name in (NAME, "one.json")}
    assert modes == {mode}


def wait_for_growth(root: Path) -> None:
    before = len(list_files(root))
    wait_until(lambda: len(list_files(root)) > before)


def test_process_killed_at_any_time_leaves_whole_objects_and_partials_only(store):
    whole = 100_002
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", CREATE_FOREVER, str(store.root)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begins\n"
            wait_for_growth(store.root)
            writer.kill()
        assert writer.returncode == -signal.SIGKILL

        store.spool.remove_partials()
        assert not any(name.startswith(".partial") for name in list_files(store.root))
        assert {found.bytes for found in store.list()} <= {whole}


def test_object_without_its_spool_file_cannot_be_published(store):
    with store.spool.begin(JOB) as file:
        file.path.unlink()
        with pytest.raises(StoreUnavailableError, match="No such file"):
            store.publish(file, NAME, TYPE)

    assert list_files(store.root) == []


def test_small_object_beyond_the_space_left_leaves_nothing(store):
    for write in (store.create, store.put):
        with limit_file_size(1000), pytest.raises(StoreUnavailableError, match="File too large"):
            write("one.json", bytes(1001), "application/json")

    assert list_files(store.root) == []
    assert store.create("one.json", b"{}", "application/json")


@pytest.mark.parametrize(
    ("place", "name"),
    [("archive", "2027/a.mp4"), ("archive/.partial", "2026/a.mp4"), ("archive/2026", "2026/a.mp4")],
)
def test_directory_that_may_not_be_written_is_told_and_stays_as_it_was(place, name):
    """For root no permission holds: the process gives its rights up before it writes."""
    with (
        tempfile.TemporaryDirectory() as directory
    ):  # others may look into it, as not into pytest's
        root = Path(directory) / "archive"
        for part in (root / ".partial", root / "2026"):
            part.mkdir(parents=True)
        for part in (Path(directory), root, root / ".partial", root / "2026"):
            part.chmod(0o777)
        (Path(directory) / place).chmod(0o555)
        ended = subprocess.run(
            [sys.executable, "-c", WRITE_WITHOUT_RIGHTS, str(root), name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        what = "spool" if place.endswith(".partial") else "archive"
        assert ended.stdout.splitlines() == [f"the {what} cannot be written: Permission denied"] * 3
        assert list_files(root) == []


def test_publish_over_a_directory_is_unavailable(store):
    publish(store)
    with pytest.raises(StoreUnavailableError, match="Is a directory"):
        publish(store, "2026/03")

    assert list_files(store.root) == [NAME]


def test_file_in_place_of_a_directory_is_unavailable_not_taken(store):
    publish(store, "2026")
    with pytest.raises(StoreUnavailableError, match=r"File exists|Not a directory"):
        store.create("2026/one.json", b"{}", "application/json")
    assert (store.stat("2026/one.json"), store.delete("2026/one.json")) == (None, False)


def test_directory_is_no_object(store):
    publish(store)
    assert (store.stat("2026"), store.delete("2026")) == (None, False)
    assert list_files(store.root) == [NAME]


def test_deletion_removes_directories_left_empty_and_no_others(store):
    publish(store)
    publish(store, "2026/03/02/other.mp4")
    assert store.delete(NAME)
    assert sorted(path.name for path in (store.root / "2026/03").iterdir()) == ["02"]
    assert store.delete("2026/03/02/other.mp4")
    assert sorted(path.name for path in store.root.iterdir()) == [".partial"]


def test_publish_and_delete_in_one_directory_at_once_never_fail(store):
    def publish_many(thread: int) -> None:
        for number in range(50):
            name = f"2026/03/{thread}-{number}.mp4"
            publish(store, name)
            assert store.stat(name) is not None
            assert store.delete(name)

    call_together(*[partial(publish_many, thread) for thread in range(4)])
    assert list_files(store.root) == []
    assert [path.name for path in store.root.iterdir()] == [".partial"]


def test_list_leaves_out_what_is_hidden_or_no_file(store):
    publish(store)
    (store.root / ".DS_Store").touch()
    (store.root / "2026" / ".hidden").mkdir()
    (store.root / "2026" / ".hidden" / "x").touch()
    (store.root / "2026" / "dangling").symlink_to("nowhere")
    (store.root / "2026" / "around").symlink_to(store.root)
    os.mkfifo(store.root / "pipe")
    with store.spool.begin(JOB) as file:
        file.write(BODY)
        assert [found.name for found in store.list()] == [NAME]


def test_flat_file_of_older_versions_keeps_its_name(store):
    """As version 0.1 archived: `{job_id}.mp4` in the root."""
    store.root.mkdir(parents=True)
    (store.root / f"{JOB}.mp4").write_bytes(BODY)
    name = store.find_name((store.root / f"{JOB}.mp4").as_uri())

    assert name == f"{JOB}.mp4"
    assert b"".join(store.read(name)) == BODY


@pytest.mark.parametrize(
    "uri",
    [
        "file:///elsewhere/a.mp4",
        "file://host/archive/a.mp4",
        "file:///a%00b",
        "file:///archive",
        "file:///archive/../etc/passwd",
        "file:///archive/a/%2E%2E/%2E%2E/etc/passwd",
        "file:///archive/.partial/a.part",
        "file:///archive2/a.mp4",
        "s3://archive/a.mp4",
        "/archive/a.mp4",
    ],
)
def test_uri_of_another_place_has_no_name(uri):
    assert LocalStore(Path("/archive")).find_name(uri) is None


def test_local_path_of_other_scheme_is_none():
    assert local_path("s3://bucket/x.mp4") is None


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_local_path_of_any_file_uri_gives_the_path_back(text):
    path = Path("/archive", text)

    assert local_path(path.as_uri()) == path


@given(st.text(max_size=20))
def test_object_of_any_name_stays_within_the_archive(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("archive")
    store = LocalStore(root / "inner")
    try:
        stored = publish(store, name)
    except ValueError:
        assert list_files(root) == []
    else:
        assert local_path(stored.uri) == root / "inner" / name
        assert store.find_name(stored.uri) == name
