"""Whether a worker can archive, before anything is paid for."""

import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError
from structlog.testing import capture_logs

from worker.ground.errors import ForeignArchiveError, StoreUnavailableError
from worker.ground.settings import Settings, load_settings
from worker.lifecycle import archive_probe
from worker.lifecycle.archive_probe import (
    PROBE,
    UNDECIDED,
    ArchiveProbe,
    check_archive_access,
    run_probe,
    try_to_write,
)
from worker.media.local_store import LocalStore


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of this process, and of one that it starts."""
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    return load_settings()


def test_probe_of_an_archive_that_can_be_written_leaves_nothing(tmp_path) -> None:
    store = LocalStore(tmp_path / "archive")
    try_to_write(store)
    assert [*store.list()] == []


def test_archive_that_may_not_be_deleted_from_can_be_written(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailableError("403")

    monkeypatch.setattr(LocalStore, "delete", refuse)
    store = LocalStore(tmp_path / "archive")
    try_to_write(store)
    assert [one.name for one in store.list()] == [PROBE]


def test_archive_that_cannot_be_written_is_told(settings, tmp_path) -> None:
    (tmp_path / "archive").touch()
    with pytest.raises(StoreUnavailableError, match="the spool cannot be written"):
        check_archive_access(settings)


def test_disk_with_less_free_than_the_least_is_nearly_full(settings) -> None:
    scarce = settings.model_copy(update={"archive_min_free_bytes": 1024**5})
    with pytest.raises(StoreUnavailableError, match="the disk is nearly full"):
        check_archive_access(scarce)


def test_directory_that_is_not_the_archive_is_told_and_not_written_to(settings, tmp_path) -> None:
    check_archive_access(settings)
    (tmp_path / "archive").rename(tmp_path / "away")
    with pytest.raises(ForeignArchiveError, match="volume is not mounted"):
        check_archive_access(settings)
    assert not (tmp_path / "archive").exists()
    (tmp_path / "away").rename(tmp_path / "archive")
    check_archive_access(settings)


def test_archive_is_written_to_while_the_database_is_away(settings, tmp_path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database at all")
    with pytest.raises(SQLAlchemyError):
        check_archive_access(settings)
    shutil.rmtree(tmp_path / "archive")
    (tmp_path / "archive").touch()
    with pytest.raises(StoreUnavailableError):
        check_archive_access(settings)


def test_process_that_asks_gives_the_reason(settings, tmp_path) -> None:
    assert run_probe("read-only") is None
    (tmp_path / "archive" / ".archive-id").write_text("another")
    assert "has the mark another" in str(run_probe())


@pytest.mark.parametrize(
    "code", [UNDECIDED, -signal.SIGKILL], ids=["database away", "process killed"]
)
def test_what_says_nothing_of_the_archive_changes_nothing(monkeypatch, code) -> None:
    ended = subprocess.CompletedProcess[bytes]([], code, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    assert (run_probe("read-only"), run_probe()) == ("read-only", None)


def test_archive_that_hangs_is_told_in_time() -> None:
    assert run_probe(limit=0.01) == "the archive does not answer within 0.01 s"


@pytest.mark.parametrize(
    ("said", "events"),
    [
        (["full", "full", None], ["archive_fault", "archive_back"]),
        ([None, "full"], ["archive_fault"]),
    ],
)
def test_trouble_is_logged_once_and_so_is_its_end(monkeypatch, said, events) -> None:
    answers: list[str | None] = list(said)
    ending = threading.Event()
    probe = ArchiveProbe(ending)

    def ask(_before: str | None) -> str | None:
        if len(answers) == 1:
            ending.set()
        return answers.pop(0)

    monkeypatch.setattr(archive_probe, "run_probe", ask)
    monkeypatch.setattr(archive_probe, "FAULTY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(archive_probe, "OK_PAUSE_SECONDS", 0.0)
    with capture_logs() as logs:
        probe._run()
    assert [one["event"] for one in logs] == events
    assert probe.fault == said[-1]
