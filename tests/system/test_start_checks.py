"""Daemons that cannot do their work say so at their start, in a line, and end."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.harness.processes import BIN, CELERY, EXTEND_VIDEO, Yard, bind_listener
from tests.harness.servers import run_cluster_node

WORKER = [*CELERY, "worker", "-P", "threads"]
BEAT = [*CELERY, "beat"]
RECEIVER = [str(BIN / "gunicorn"), "--bind", "127.0.0.1:0", "--no-control-socket"]
RECEIVER += ["webhook:create_app()"]
pytestmark = pytest.mark.slow  # each starts a daemon
NOBODY = "redis+socket:///nowhere/redis.sock"


@pytest.fixture
def settings(tmp_path, sqlite_url):
    """Enough for a worker to start, but for a broker."""
    return {
        "DATABASE_URL": sqlite_url,
        "BROKER_URL": NOBODY,
        "FAL_KEY": "some-key",
        "WEBHOOK_BASE_URL": "https://hooks.example.com",
        "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
    }


def refuse_to_start(yard: Yard, command: Sequence[str], settings: Mapping[str, str]) -> str:
    """What the daemon has said before it ended with an error."""
    ended = yard.run(command, settings)
    printed = ended.stdout + ended.stderr
    assert ended.returncode not in {0, None}, printed
    assert "Traceback" not in printed
    return printed


def test_worker_without_a_job_table_names_the_command_that_makes_it(yard, settings, tmp_path):
    empty = f"sqlite:///{tmp_path / 'empty.db'}"

    assert "extend-video migrate" in refuse_to_start(
        yard, WORKER, {**settings, "DATABASE_URL": empty}
    )


def test_worker_names_each_setting_it_lacks(yard, settings):
    lacking = {**settings, "FAL_KEY": "", "WEBHOOK_BASE_URL": ""}

    printed = refuse_to_start(yard, WORKER, lacking)

    assert "FAL_KEY" in printed
    assert "WEBHOOK_BASE_URL" in printed


def test_worker_without_its_database_says_so(yard, settings):
    with bind_listener() as listener:
        host, port = listener.getsockname()
    away = f"postgresql+psycopg://user:top-secret@{host}:{port}/jobs"

    printed = refuse_to_start(yard, WORKER, {**settings, "DATABASE_URL": away})

    assert "database_unavailable" in printed
    assert "top-secret" not in printed


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LEASE_SECONDS", "1h"),
        ("FAL_MEDIA_HOSTS", "https://fal.media"),
    ],
)
def test_worker_names_a_wrong_setting_with_its_value(yard, settings, variable, value):
    printed = refuse_to_start(yard, WORKER, {**settings, variable: value})

    assert variable in printed
    assert value in printed


@pytest.mark.parametrize("command", [BEAT, RECEIVER], ids=["beat", "receiver"])
def test_daemon_names_a_wrong_setting_with_its_value(yard, settings, command):
    printed = refuse_to_start(yard, command, {**settings, "SWEEP_SECONDS": "often"})

    assert "SWEEP_SECONDS=often" in printed


def test_shell_names_a_wrong_setting_as_wrong_usage(yard, settings):
    ended = yard.run([EXTEND_VIDEO, "up"], {**settings, "POLL_SECONDS": "0"})

    assert ended.returncode == 2
    assert "POLL_SECONDS=0" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_migrate_twice_leaves_the_table_as_it_is(yard, settings, tmp_path):
    fresh = {**settings, "DATABASE_URL": f"sqlite:///{tmp_path / 'fresh.db'}"}
    read = "SELECT sql FROM sqlite_master ORDER BY name"
    schemas = []
    for _ in range(2):
        assert yard.run([EXTEND_VIDEO, "migrate"], fresh).returncode == 0
        with sqlite3.connect(tmp_path / "fresh.db") as connection:
            schemas.append(connection.execute(read).fetchall())
        connection.close()

    assert schemas[0] == schemas[1] != []


@pytest.fixture
def cluster_url() -> Iterator[str]:
    with run_cluster_node() as url:
        yield url


@pytest.mark.parametrize("command", [WORKER, BEAT], ids=["worker", "beat"])
def test_daemon_refuses_a_redis_cluster_by_name(yard, settings, cluster_url, command):
    printed = refuse_to_start(yard, command, {**settings, "BROKER_URL": cluster_url})

    assert "invalid_settings: BROKER_URL=" in printed
    assert "Redis Cluster" in printed
