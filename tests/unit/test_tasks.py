"""What an enqueue message comes to: until its row is there, it is all there is of a wish."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.exceptions import Reject
from sqlalchemy import delete, func, select
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from worker import producer, tasks
from worker.ground.db import Database
from worker.ground.settings import load_settings
from worker.jobs.job_requests import StoredRequest, list_refused
from worker.jobs.models import JobRequestRow
from worker.runtime import Runtime, get_runtime

WHOLE = {"FAL_KEY": "k", "WEBHOOK_BASE_URL": "https://hooks.test"}
WISH = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4", "idempotency_key": "a"}


@pytest.fixture
def db(sqlite_url) -> Iterator[Database]:
    with closing(Database(sqlite_url)) as database:
        yield database


@pytest.fixture
def fail_with(monkeypatch, db):
    """Let the database answer the next wish with an error."""

    def prepare(error: Exception) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(producer, "enqueue_job", refuse)
        monkeypatch.setattr(tasks, "DATABASE_PAUSE_SECONDS", 0)
        settings = load_settings()
        runtime = SimpleNamespace(
            db=db, settings=settings, make_job_request=Runtime(settings).make_job_request
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


def list_kept(db) -> list[StoredRequest]:
    with db.reading() as connection:
        return list_refused(connection, 10)


def test_enqueue_of_values_that_no_database_takes_drops_the_message(fail_with, db) -> None:
    fail_with(DataError("INSERT", {}, Exception("invalid input")))
    with pytest.raises(Reject) as caught:
        tasks.enqueue(**WISH)
    assert not is_given_back(caught.value)
    assert [one.error_code for one in list_kept(db)] == ["enqueue_impossible"]


def test_enqueue_of_a_bad_wish_keeps_it_as_refused_naming_the_field(fail_with, db) -> None:
    fail_with(AssertionError("no job must be made"))
    with pytest.raises(Reject, match="num_frames") as caught:
        tasks.enqueue(**WISH, num_frames=1, tenant="studio")
    assert not is_given_back(caught.value)
    [kept] = list_kept(db)
    assert (kept.state, kept.door, kept.tenant) == ("refused", "celery", "studio")
    assert kept.fields == {**WISH, "num_frames": 1, "tenant": "studio"}
    [error] = kept.errors or []
    assert (error["field"], error["code"]) == ("num_frames", "invalid_input")
    assert "greater than or equal to 9" in error["message"]


def test_refusal_that_cannot_be_kept_gives_the_message_back(fail_with, monkeypatch) -> None:
    fail_with(AssertionError("no job must be made"))

    def be_away(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(tasks, "keep_refusal", be_away)
    with pytest.raises(Reject) as caught:
        tasks.enqueue(**WISH, num_frames=1)
    assert is_given_back(caught.value)


def test_message_without_an_id_is_refused_for_as_a_key_it_would_be_shared(fail_with, db) -> None:
    fail_with(AssertionError("no job must be made"))
    keyless = {name: value for name, value in WISH.items() if name != "idempotency_key"}
    with pytest.raises(Reject, match="id=") as caught:
        tasks.enqueue(**keyless)
    assert not is_given_back(caught.value)
    assert [one.message_id for one in list_kept(db)] == [None]


@pytest.fixture
def deliver(fail_with, db):
    """Deliver one message to the task, as often as a test says."""

    def run(job_request=WISH, *, redelivered: bool = True, error: Exception | None = None) -> bool:
        """Whether it is given back; raises whatever ends the worker."""
        if error is not None:
            fail_with(error)
        request = {"id": "m1", "delivery_info": {"redelivered": redelivered}}
        tasks.enqueue.push_request(**request)
        try:
            tasks.enqueue.run(**job_request)
        except Reject as rejection:
            return is_given_back(rejection)
        finally:
            tasks.enqueue.pop_request()
        raise AssertionError("it was taken")

    return run


class KilledError(BaseException):
    """Stands for the end of the process."""


INLINE = {**WISH, "video_url": "data:video/mp4;base64,AAAA"}


@pytest.mark.parametrize(
    ("job_request", "redelivered"), [(INLINE, False), (WISH, True)], ids=["inline", "redelivered"]
)
def test_message_that_was_the_end_of_three_workers_is_refused(
    deliver, db, monkeypatch, job_request, redelivered
) -> None:
    deliver({**WISH, "idempotency_key": "other"}, error=DataError("", {}, Exception()))
    with db.transaction() as connection:
        connection.execute(delete(JobRequestRow))

    def be_killed(*_: object, **__: object) -> None:
        raise KilledError

    monkeypatch.setattr(vars(tasks)["get_runtime"](), "make_job_request", be_killed)
    for _ in range(3):
        with pytest.raises(KilledError):
            deliver(job_request, redelivered=redelivered)
        assert list_kept(db) == []
    assert deliver(job_request, redelivered=redelivered) is False
    [kept] = list_kept(db)
    assert (kept.error_code, kept.message_id, kept.claims) == ("workers_lost", "m1", 4)
    assert "3 workers have ended" in (kept.errors or [])[0]["message"]
    # What comes of it once more is dropped as it is.
    assert deliver(job_request) is False
    assert list_kept(db) == [kept]


def test_plain_message_is_not_counted(deliver, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "claim_request", None)
    monkeypatch.setattr(tasks, "release_request", None)
    away = OperationalError("", {}, Exception("away"))
    assert deliver(redelivered=False, error=away) is True


def test_end_of_a_worker_while_it_uploads_is_not_counted(deliver, db, monkeypatch) -> None:
    deliver(error=OperationalError("", {}, Exception("away")))

    def be_killed(*_: object, on_checked: Callable[[], object], **__: object) -> None:
        on_checked()
        raise KilledError

    monkeypatch.setattr(vars(tasks)["get_runtime"](), "make_job_request", be_killed)
    for _ in range(5):
        with pytest.raises(KilledError):
            deliver(INLINE)
    assert list_kept(db) == []


def test_message_that_is_given_back_in_good_order_is_never_refused_for_it(deliver, db) -> None:
    for _ in range(5):
        assert deliver(error=OperationalError("", {}, Exception("away"))) is True
    with db.reading() as connection:
        assert connection.execute(select(func.count(JobRequestRow.id))).scalar_one() == 0


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
    get_runtime.forget()
    assert not left.exists()


def test_spool_that_cannot_be_cleared_ends_no_worker(left) -> None:
    left.unlink()
    left.mkdir()
    tasks.check_worker()
    assert left.exists()
