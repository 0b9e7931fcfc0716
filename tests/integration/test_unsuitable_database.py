"""PostgreSQL databases that this project refuses to work on, or waits for."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import InternalError
from typing_extensions import override

from tests.harness.jobs import REQUEST_ID, make_job
from tests.harness.logs import preserved_logging
from tests.harness.servers import Postgres
from tests.harness.stages import Bench
from webhook import create_app
from worker import tasks
from worker.fal.submit import Accepted, QueueClient, SubmitReply
from worker.ground.db import AWAY, Database
from worker.ground.errors import UnsuitableDatabaseError
from worker.ground.schema import check_schema, upgrade_schema
from worker.ground.settings import load_settings
from worker.jobs import table
from worker.jobs.states import JobState
from worker.stages import submit

ROOT = Path(__file__).parents[2]
MIGRATE = "import sys; sys.argv = ['extend-video', 'migrate']; from worker.cli import main; main()"


@pytest.fixture(scope="module", params=["LATIN1", "SQL_ASCII"])
def encoding(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def odd_url(postgres: Postgres, encoding) -> Iterator[str]:
    """The URL of an empty database of another encoding."""
    name = f"odd_{encoding.lower()}"
    how = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    postgres.execute(f"CREATE DATABASE {name} {how}")
    yield postgres.url_of(name)
    postgres.drop_database(name)


def test_database_of_another_encoding_is_refused_by_name(odd_url, encoding) -> None:
    reason = f"the encoding of database odd_{encoding.lower()} is {encoding}, .* ENCODING 'UTF8'"
    with pytest.raises(UnsuitableDatabaseError, match=reason):
        upgrade_schema(odd_url)
    with closing(Database(odd_url)) as db, pytest.raises(UnsuitableDatabaseError, match=reason):
        check_schema(db)


def test_worker_and_receiver_do_not_start_on_it(odd_url, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DATABASE_URL", odd_url)
    monkeypatch.setenv("FAL_KEY", "k")
    monkeypatch.setenv("WEBHOOK_BASE_URL", "https://hooks.test")
    with pytest.raises(SystemExit, match="unsuitable_database: the encoding"):
        tasks.check_worker()
    with preserved_logging(), pytest.raises(SystemExit) as ended:
        create_app(load_settings())
    assert ended.value.code == 4
    assert capsys.readouterr().err.startswith("unsuitable_database: the encoding")


@pytest.mark.slow  # two processes start
def test_commands_that_migrate_say_so_in_a_line(odd_url, encoding) -> None:
    variables = {**os.environ, "DATABASE_URL": odd_url}
    for command in (["-c", MIGRATE], ["-m", "alembic", "upgrade", "head"]):
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        told = ended.stderr + ended.stdout
        assert ended.returncode != 0
        assert f"is {encoding}, which cannot store every text" in " ".join(told.split()), told
        assert "Traceback" not in told


def test_encoding_of_the_environment_does_not_matter(postgres_url, monkeypatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with closing(Database(postgres_url)) as db, db.reading() as connection:
        assert connection.execute(text("SELECT 'Ω 夢'")).scalar_one() == "Ω 夢"


@contextmanager
def made_read_only(postgres: Postgres, url: str) -> Iterator[Callable[[], None]]:
    """New connections cannot write, until the block ends or calls what it is given."""
    name = url.partition("@/")[2].partition("?")[0]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    def undo() -> None:
        postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    try:
        yield undo
    finally:
        undo()


def test_write_to_a_read_only_database_is_tried_again_on_a_new_connection(
    postgres, postgres_url
) -> None:
    """As after a failover: the primary is elsewhere, and old connections lead to a replica."""
    with closing(Database(postgres_url)) as db:
        job = make_job(db, JobState.ARCHIVING)
    with (
        made_read_only(postgres, postgres_url) as undo,
        closing(Database(postgres_url)) as db,
    ):
        with pytest.raises(InternalError) as caught, db.transaction() as connection:
            table.extend_claim(connection, job, job.enqueued_at)
        assert isinstance(caught.value, AWAY)
        undo()
        with db.transaction() as connection:
            assert table.extend_claim(connection, job, job.enqueued_at)


def test_paid_reply_is_kept_until_the_database_can_be_written_again(
    postgres, postgres_url, desk, scripted_clients, monkeypatch
) -> None:
    missed: list[str] = []
    with closing(Database(postgres_url)) as db, ExitStack() as stack:

        class Queue(QueueClient):
            """The database becomes read-only while fal accepts the request."""

            @override
            def submit(self, *_: object, **__: object) -> SubmitReply:
                db.engine.dispose()
                undo.append(stack.enter_context(made_read_only(postgres, postgres_url)))
                return Accepted(REQUEST_ID, None, None, None)

        class Log:
            def info(self, *_: object, **__: object) -> None:
                pass

            def warning(self, event: str, **_: object) -> None:
                missed.append(event)
                undo.pop()()

        undo: list[Callable[[], None]] = []
        monkeypatch.setattr(submit, "log", Log())
        monkeypatch.setattr(submit, "RECORD_PAUSE", timedelta())
        _, *others = scripted_clients
        bench = Bench(db, Queue("http://127.0.0.1:9", SecretStr("k")), *others)
        moved = bench.submit(bench.insert())
    assert moved is not None
    assert (moved.state, moved.fal_request_id) == (JobState.SUBMITTED, REQUEST_ID)
    assert missed == ["reply_not_recorded"]
