"""What an enqueue message comes to: until its row is there, it is all there is of a wish."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.exceptions import Reject
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from worker import tasks
from worker.ground.settings import load_settings
from worker.runtime import Runtime

WHOLE = {"FAL_KEY": "k", "WEBHOOK_BASE_URL": "https://hooks.test"}
WISH = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4", "idempotency_key": "a"}


@pytest.fixture
def fail_with(monkeypatch):
    """Let the database answer the next wish with an error."""

    def prepare(error: Exception) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(tasks, "enqueue_job", refuse)
        monkeypatch.setattr(tasks, "DATABASE_PAUSE_SECONDS", 0)
        settings = load_settings()
        runtime = SimpleNamespace(
            db=None, settings=settings, make_job_request=Runtime(settings).make_job_request
        )
        monkeypatch.setattr(tasks, "get_runtime", lambda: runtime)

    return prepare


def is_given_back(rejection: Reject) -> bool:
    return bool(vars(rejection)["requeue"])


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("INSERT", {}, Exception("server closed the connection")),
        PoolTimeoutError("QueuePool limit reached"),
    ],
)
def test_enqueue_while_the_database_is_away_gives_the_message_back(fail_with, error) -> None:
    fail_with(error)
    with pytest.raises(Reject) as caught:
        tasks.enqueue(**WISH)
    assert is_given_back(caught.value)


def test_enqueue_of_values_that_no_database_takes_drops_the_message(fail_with) -> None:
    fail_with(DataError("INSERT", {}, Exception("invalid input")))
    with pytest.raises(Reject) as caught:
        tasks.enqueue(**WISH)
    assert not is_given_back(caught.value)


def test_enqueue_of_a_bad_wish_drops_the_message_naming_the_field(fail_with) -> None:
    fail_with(AssertionError("the database must not be asked"))
    with pytest.raises(Reject, match="num_frames") as caught:
        tasks.enqueue(**WISH, num_frames=1)
    assert not is_given_back(caught.value)


def test_message_without_an_id_is_refused_for_as_a_key_it_would_be_shared(fail_with) -> None:
    fail_with(AssertionError("the database must not be asked"))
    keyless = {name: value for name, value in WISH.items() if name != "idempotency_key"}
    with pytest.raises(Reject, match="id=") as caught:
        tasks.enqueue(**keyless)
    assert not is_given_back(caught.value)


@pytest.fixture
def left(monkeypatch, tmp_path: Path, sqlite_url) -> Path:
    """A partial that a killed process has left in the spool of an archive elsewhere."""
    variables = {"DATABASE_URL": sqlite_url, "ARCHIVE_URL": "s3://bucket", **WHOLE}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "spool" / "left.part"
    path.parent.mkdir()
    path.touch()
    return path


def test_worker_that_starts_clears_its_spool(left) -> None:
    tasks.check_worker()
    assert not left.exists()


def test_process_that_stands_in_for_a_killed_one_clears_the_spool(left) -> None:
    tasks.forget_runtime()
    tasks.get_runtime.forget()
    assert not left.exists()


def test_spool_that_cannot_be_cleared_ends_no_worker(left) -> None:
    left.unlink()
    left.mkdir()
    tasks.check_worker()
    assert left.exists()
