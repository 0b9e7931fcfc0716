"""Databases and brokers for every test: real, private to the run, gone after it."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest
import structlog

from tests.harness.s3 import S3, run_s3
from tests.harness.servers import Postgres, SharedDatabase, run_postgres, run_redis
from tests.harness.time_limit import TimeLimit
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema

# How long an example takes says more of the machine's load than of the code.
hypothesis.settings.register_profile("test", deadline=None, max_examples=25)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

OUR_VARIABLES = (
    *("FAL_", "DATABASE_URL", "BROKER_", "WEBHOOK_", "ARCHIVE_", "SPOOL_DIR", "LOG_"),
    *("MONITOR_", "TOKEN_", "TRUSTED_", "AWS_", "GOOGLE_", "AZURE_"),
)
OUR_SUFFIXES = ("_SECONDS", "_POLICY")


@pytest.hookimpl(trylast=True)  # after pytest has registered its reporter
def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the suite in the background has it, and all it starts, ignore SIGINT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(TimeLimit(reporter), "time-limit")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """SQLite, and PostgreSQL too where the mark `both_databases` says that SQL decides.

    PostgreSQL alone where it is about locks of rows.
    """
    if "database_url" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_databases") is not None
        names = ["sqlite", "postgresql"] if both else ["sqlite"]
        if metafunc.definition.get_closest_marker("only_postgresql") is not None:
            names = ["postgresql"]
        metafunc.parametrize("database_url", names, indirect=True, scope="function")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path) -> None:
    """No setting and no `.env` of the machine reaches a test: least of all a real key."""
    for name in list(os.environ):
        if name.startswith(OUR_VARIABLES) or name.endswith(OUR_SUFFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def clean_log_context() -> Iterator[None]:
    """The job that one test's steps bound to their log lines is not named in another's."""
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """A migrated database that tests get copies of."""
    name = postgres.create_database()
    upgrade_schema(postgres.url_of(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "jobs.db"
    upgrade_schema(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template, tmp_path) -> str:
    """The URL of a fresh, migrated SQLite job table."""
    path = shutil.copyfile(sqlite_template, tmp_path / "jobs.db")
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def shared_database(postgres, postgres_template) -> Iterator[SharedDatabase]:
    with closing(SharedDatabase(postgres, postgres_template)) as database:
        yield database


@pytest.fixture
def postgres_url(shared_database) -> Iterator[str]:
    """The URL of an empty, migrated PostgreSQL job table."""
    yield shared_database.url
    shared_database.empty()


@pytest.fixture
def database_url(request) -> str:
    """The URL of an empty, migrated job table; see `pytest_generate_tests`."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def db(database_url) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with run_redis() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with run_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch) -> S3:
    """A real S3 API, and the environment that leads to it."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return s3_server
