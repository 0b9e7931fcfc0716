"""The spool: a partial lives as long as its process, whatever ends that."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.harness.disk import limit_file_size, list_files
from tests.harness.together import call_together
from worker.ground.errors import StoreUnavailableError
from worker.media.spool import Spool

JOB = "019a9f6e-0000-7000-8000-000000000001"
BODY = b"half a video"

WRITE_AND_WAIT = """
import sys
from pathlib import Path
from worker.media.spool import Spool
with Spool(Path(sys.argv[1])).begin(sys.argv[2]) as file:
    file.write(b"half a video")
    print(file.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "deep" / "spool")


@contextmanager
def run_writer(spool: Spool) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process that has half of a file in the spool, until it is ended."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(spool.directory), JOB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        try:
            yield writer, Path(os.fsdecode(writer.stdout.readline().strip()))
        finally:
            writer.kill()


def test_file_is_counted_hashed_and_readable_while_it_is_written(spool):
    with spool.begin(JOB) as file:
        for chunk in (b"first ", b"", b"second"):
            file.write(chunk)

        assert file.path.read_bytes() == b"first second"
        assert file.bytes == 12
        assert file.sha256() == hashlib.sha256(b"first second").hexdigest()
        assert file.path.name.startswith(f"{JOB}.")
        assert list_files(spool.directory) == [file.path.name]


def test_file_goes_on_after_its_hash_was_asked_for(spool):
    with spool.begin(JOB) as file:
        file.write(b"a")
        file.sha256()
        file.write(b"b")
        assert file.sha256() == hashlib.sha256(b"ab").hexdigest()


def test_restarted_file_holds_only_what_came_after(spool):
    with spool.begin(JOB) as file:
        file.write(b"a long beginning")
        file.restart()
        assert (file.path.read_bytes(), file.bytes) == (b"", 0)
        file.write(b"short")

        assert (file.path.read_bytes(), file.bytes) == (b"short", 5)
        assert file.sha256() == hashlib.sha256(b"short").hexdigest()


def write_and_fail(spool: Spool, error: Exception) -> None:
    with spool.begin(JOB) as file:
        file.write(BODY)
        raise error


def test_context_left_removes_the_file(spool):
    with spool.begin(JOB) as file:
        file.write(BODY)

    assert list_files(spool.directory) == []


def test_context_left_by_error_removes_the_file_and_passes_it_on(spool):
    with pytest.raises(OSError, match="of the caller"):
        write_and_fail(spool, OSError("of the caller"))

    assert list_files(spool.directory) == []


def test_file_written_after_the_context_is_refused(spool):
    with spool.begin(JOB) as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        file.write(BODY)


def test_two_files_of_one_label_are_kept_apart(spool):
    with spool.begin(JOB) as one, spool.begin(JOB) as other:
        one.write(b"one")
        other.write(b"other")

        assert (one.path.read_bytes(), other.path.read_bytes()) == (b"one", b"other")


@pytest.mark.parametrize("label", ["", "../x", "/etc/x", ".x", "a\0b", "x" * 101])
def test_label_that_could_escape_is_refused(spool, label):
    with pytest.raises(ValueError, match="cannot mark a file"), spool.begin(label):
        pytest.fail("the context was entered")


def test_begin_in_missing_directories_flushes_each_new_entry(spool, tmp_path, monkeypatch):
    synced: list[Path] = []
    sync = os.fsync

    def record_sync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    with spool.begin(JOB):
        pass

    assert synced == [tmp_path, tmp_path / "deep"]


def test_spool_in_relative_directory_stays_there_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Spool(Path("spool")).begin(JOB) as file:
        monkeypatch.chdir("/")
        assert file.path.parent == tmp_path / "spool"
    assert list_files(tmp_path) == []


# ------------------------------------------------------------------ whose partial it is


def test_partial_of_killed_process_is_removed_by_the_next_look(spool):
    with run_writer(spool) as (writer, partial):
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(20) == -signal.SIGKILL
        assert partial.read_bytes() == BODY

        assert spool.remove_partials() == 1

    assert list_files(spool.directory) == []


def test_partial_of_living_process_stays_until_it_is_killed(spool):
    with run_writer(spool) as (writer, partial):
        assert spool.remove_partials() == 0
        assert partial.read_bytes() == BODY
        writer.kill()
        writer.wait(20)
        assert spool.remove_partials() == 1


def test_partial_of_stopped_process_stays(spool):
    """However long it has been silent."""
    with run_writer(spool) as (writer, partial):
        writer.send_signal(signal.SIGSTOP)
        os.utime(partial, (0, 0))
        assert spool.remove_partials() == 0
        assert partial.exists()


def test_partial_of_this_process_stays_and_can_be_written(spool):
    with spool.begin(JOB) as file:
        assert spool.remove_partials() == 0
        file.write(BODY)
        assert file.path.read_bytes() == BODY


def test_remove_partials_leaves_what_is_no_partial(spool):
    spool.directory.mkdir(parents=True)
    for name in ("left.part", "note.txt"):
        (spool.directory / name).touch()

    assert spool.remove_partials() == 1
    assert list_files(spool.directory) == ["note.txt"]


def test_remove_partials_without_a_spool_removes_nothing(spool):
    assert spool.remove_partials() == 0
    assert not spool.directory.exists()


def test_remove_partials_of_vanished_file_counts_nothing(spool):
    spool.directory.mkdir(parents=True)
    (spool.directory / "gone.part").symlink_to("nowhere")

    assert spool.remove_partials() == 0


def test_partial_that_cannot_be_removed_keeps_no_other(spool):
    (spool.directory / "a.part").mkdir(parents=True)
    (spool.directory / "b.part").touch()

    with pytest.raises(StoreUnavailableError, match="cannot be removed: Is a directory"):
        spool.remove_partials()
    assert list_files(spool.directory) == []


def test_remove_partials_by_several_at_once_counts_each_once(spool):
    spool.directory.mkdir(parents=True)
    for number in range(50):
        (spool.directory / f"{number}.part").touch()

    assert sum(call_together(*[spool.remove_partials] * 4)) == 50
    assert list_files(spool.directory) == []


def test_partial_removed_before_its_lock_is_begun_anew(spool, monkeypatch):
    """The one moment in which a new partial looks as if nobody wrote it."""
    lock = fcntl.flock
    removed: list[object] = []

    def lock_late(descriptor, operation):
        if not removed and operation == fcntl.LOCK_EX:
            removed.append("now")
            removed.append(spool.remove_partials())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with spool.begin(JOB) as file:
        file.write(BODY)
        assert file.path.read_bytes() == BODY
        assert spool.remove_partials() == 0
    assert removed == ["now", 1]


def test_writers_and_removers_at_once_lose_no_living_file(spool):
    stop = Event()
    lost: list[Path] = []

    def write_many() -> None:
        for _ in range(50):
            with spool.begin(JOB) as file:
                file.write(BODY)
                if not file.path.exists():
                    lost.append(file.path)
        stop.set()

    def remove_many() -> None:
        while not stop.is_set():
            spool.remove_partials()

    threads = [Thread(target=work) for work in (write_many, remove_many, remove_many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert lost == []
    assert list_files(spool.directory) == []


# ------------------------------------------------------------------ what the disk says


def test_write_beyond_the_space_left_names_the_reason_and_leaves_nothing(spool):
    with (
        limit_file_size(100_000),
        pytest.raises(StoreUnavailableError) as failure,
        spool.begin(JOB) as file,
    ):
        file.write(bytes(100_001))

    assert str(failure.value) == "the spool cannot be written: File too large"
    assert list_files(spool.directory) == []


def test_begin_with_a_file_in_place_of_the_directory_is_unavailable(spool, tmp_path):
    (tmp_path / "deep").touch()

    with (
        pytest.raises(StoreUnavailableError, match=r"Not a directory|File exists") as failure,
        spool.begin(JOB),
    ):
        pytest.fail("the context was entered")

    assert str(tmp_path) not in str(failure.value)


def test_file_system_without_locks_is_named_and_keeps_no_file(spool, monkeypatch):
    def refuse(_descriptor, _operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(StoreUnavailableError, match="cannot be written: No locks available"),
        spool.begin(JOB),
    ):
        pytest.fail("the context was entered")
    assert list_files(spool.directory) == []
