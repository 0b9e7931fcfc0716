"""The whole end-to-end suite once more, with PgBouncer before PostgreSQL, in both of its modes."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import worker.ground.db
from tests.harness.pgbouncer import REASON_WHY_NOT, find_pgbouncer, run_pgbouncer
from tests.harness.processes import TWO_WORKERS
from tests.harness.together import call_together
from tests.system.conftest import prepare_scene
from tests.system.scene import Scene, run_scene
from tests.system.test_end_to_end import (
    test_many_jobs_at_once_are_each_paid_and_archived_once,
    test_producer_with_only_celery_gets_its_video_archived,
    test_python_producer_keeps_its_row_without_a_broker,
    test_shell_waits_for_the_archive_and_prints_every_state,
    test_video_that_is_not_there_fails_with_fals_own_reason,
)
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema

__all__ = [
    "test_many_jobs_at_once_are_each_paid_and_archived_once",
    "test_producer_with_only_celery_gets_its_video_archived",
    "test_python_producer_keeps_its_row_without_a_broker",
    "test_shell_waits_for_the_archive_and_prints_every_state",
    "test_video_that_is_not_there_fails_with_fals_own_reason",
]
pytestmark = [
    pytest.mark.skipif(find_pgbouncer() is None, reason=REASON_WHY_NOT),
    pytest.mark.timeout(240),
]


NAMED = ("search_path", "lock_timeout")


@pytest.fixture(scope="module", params=["session", "transaction"])
def pooled_url(request, postgres, tmp_path_factory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("pgbouncer", numbered=True)
    directory.parent.chmod(0o755)
    directory.parent.parent.chmod(0o755)
    name = postgres.create_database()
    with run_pgbouncer(postgres, directory, request.param) as port:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/{name}"
        upgrade_schema(url)
        yield url


@pytest.fixture(scope="module")
def pooled_scene(pooled_url, tmp_path_factory, clip) -> Iterator[Scene]:
    with run_scene(tmp_path_factory.mktemp("scene"), pooled_url, clip, TWO_WORKERS) as scene:
        yield scene


@pytest.fixture
def scene(request, pooled_scene) -> Scene:
    return prepare_scene(request, "pooled_scene")


@pytest.fixture
def sqlite_scene(request, pooled_scene) -> Scene:
    return prepare_scene(request, "pooled_scene")


def test_each_statement_is_bounded_and_in_utc(pooled_url, monkeypatch) -> None:
    monkeypatch.setattr(worker.ground.db, "STATEMENT_TIMEOUT_MS", 50)
    db = Database(pooled_url)
    for open_connection in (db.transaction, db.statement, db.reading):
        with open_connection() as connection:
            assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
        with pytest.raises(OperationalError, match="timeout"), open_connection() as connection:
            connection.execute(text("SELECT pg_sleep(5)"))
    db.close()


def test_nothing_is_left_behind_in_a_shared_connection(pooled_url) -> None:
    """Neither settings, which another program would inherit, nor prepared statements."""
    db = Database(pooled_url)

    def use() -> None:
        for number in range(20):
            with db.transaction() as connection:
                connection.execute(text("SELECT :number"), {"number": number})

    call_together(*[use] * 4)
    left = text(
        "SELECT current_setting('statement_timeout'), count(*) FROM pg_prepared_statements"
        " WHERE statement LIKE '%number%'"
    )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert tuple(connection.execute(left).one()) == ("0", 0)
    db.close()


def test_options_of_the_url_hold_in_each_transaction(pooled_url) -> None:
    db = Database(f"{pooled_url}?options=-csearch_path%3Dapp,public -c lock_timeout%3D7s")
    for _ in range(8):
        with db.transaction() as connection:
            shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in NAMED]
        assert shown == ["app,public", "7s"]
    db.close()


def test_shared_connections_carry_the_programs_name(pooled_url) -> None:
    db = Database(pooled_url, program="extend-video worker")
    with db.transaction() as connection:
        shown = connection.execute(text("SHOW application_name")).scalar_one()
    assert shown == "extend-video worker"
    db.close()
