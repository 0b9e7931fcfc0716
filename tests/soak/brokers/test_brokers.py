"""Redis behind TLS, Redis that sentinels watch over, and Redis that takes nothing for a while."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGKILL
from uuid import UUID

import pytest
import redis

from tests.harness.brokers import find_closed_port
from tests.harness.poison import ENTRIES
from tests.harness.processes import CELERY, EXTEND_VIDEO, ONE_WORKER, THREADS, Yard
from tests.harness.servers import Broker, run_broker
from tests.harness.tls import Certificate, make_certificate, run_tls_end
from tests.harness.waiting import wait_until
from tests.system.rows import open_table
from tests.system.scene import run_scene
from worker.broker.dispatch import Dispatcher
from worker.cli.daemons import find_redis
from worker.ground.settings import load_settings
from worker.jobs.states import Doorbell, Step

MASTER = "videos"
REPLICA = ("--replicaof", "127.0.0.1")
FAILOVER_SECONDS = 60
TROUBLE_SECONDS = 20
ANYBODY = UUID(int=1)


@pytest.fixture
def broker() -> Iterator[Broker]:
    with run_broker() as broker:
        yield broker


@pytest.fixture
def certificate(tmp_path) -> Certificate:
    return make_certificate(tmp_path, "127.0.0.1")


def ping(**settings: str) -> bool:
    with closing(Dispatcher(load_settings(**settings))) as dispatcher:
        return dispatcher.ping()


# ------------------------------------------------------------------ TLS


def test_job_goes_from_wish_to_archive_over_tls(tmp_path, broker, certificate, clip, sqlite_url):
    with run_tls_end(broker.socket, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        ca_file = str(certificate.certificate)
        changes = {"BROKER_CA_FILE": ca_file}
        tls = {"broker_use_ssl": {"ssl_cert_reqs": "required", "ssl_ca_certs": ca_file}}
        directory = tmp_path / "scene"
        directory.mkdir()
        with run_scene(
            directory,
            sqlite_url,
            clip,
            ONE_WORKER,
            broker_url=url,
            changes=changes,
            producer_options=tls,
        ) as scene:
            job = scene.table.wait_for_end(scene.enqueue())
            assert len(scene.list_submissions(job)) == 1


def test_broker_with_a_certificate_of_nobody_known_is_not_spoken_to(broker, certificate):
    """Without options kombu would take any certificate."""
    with run_tls_end(broker.socket, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        assert ping(broker_url=url, broker_ca_file=str(certificate.certificate))
        assert not ping(broker_url=url)


def test_broker_with_a_certificate_for_another_host_is_not_spoken_to(tmp_path, broker):
    other = make_certificate(tmp_path, "broker.example.com")
    with run_tls_end(broker.socket, other) as port:
        ca_file = str(other.certificate)
        assert not ping(broker_url=f"rediss://127.0.0.1:{port}/0", broker_ca_file=ca_file)


# ------------------------------------------------------------------ Sentinel


@contextmanager
def run_server(directory: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Redis or a sentinel on a port of loopback."""
    port = find_closed_port()
    command = [find_redis(), *options, "--port", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--dir", str(directory)], stdout=subprocess.DEVNULL, cwd=directory
    )
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client))
        yield port, process
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def run_sentinel(directory: Path, master_port: int) -> Iterator[int]:
    """Watches over one master, and alone decides that it is down."""
    config = directory / "sentinel.conf"
    config.write_text(
        f"sentinel monitor {MASTER} 127.0.0.1 {master_port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\n"
        f"sentinel failover-timeout {MASTER} 5000\n"
    )
    with run_server(directory, str(config), "--sentinel") as (port, _):
        yield port


def find_master(sentinel: redis.Redis) -> int:
    address = sentinel.sentinel_get_master_addr_by_name(MASTER)
    assert isinstance(address, tuple)
    return address[1]


def knows_replica(sentinel: redis.Redis) -> bool:
    known = sentinel.sentinel_master(MASTER)
    return isinstance(known, dict) and bool(known["num-slaves"])


def test_worker_follows_the_sentinels_to_the_next_master(yard: Yard, sqlite_url):
    settings = {
        "DATABASE_URL": sqlite_url,
        "FAL_KEY": "key",
        "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
        "BROKER_SENTINEL_MASTER": MASTER,
    }
    with (
        run_server(yard.directory, "--save", "") as (first, first_process),
        run_server(yard.directory, "--save", "", *REPLICA, str(first)) as (second, _),
        run_sentinel(yard.directory, first) as watching,
        redis.Redis(port=watching) as sentinel,
    ):
        wait_until(lambda: knows_replica(sentinel), FAILOVER_SECONDS)
        url = f"sentinel://127.0.0.1:{find_closed_port()}/0;sentinel://127.0.0.1:{watching}/0"
        settings["BROKER_URL"] = url
        worker = yard.start("worker", [*CELERY, "worker", *THREADS], settings)
        beat = yard.start("beat", [*CELERY, "beat"], {**settings, "SWEEP_SECONDS": "1"})
        worker.wait_for_log(" ready.")
        first_process.kill()
        wait_until(lambda: find_master(sentinel) == second, FAILOVER_SECONDS)

        marks = (f"after-the-failover-{number}" for number in range(1000))
        named = {"broker_url": url, "broker_sentinel_master": MASTER}
        with closing(Dispatcher(load_settings(**named))) as dispatcher:
            app = dispatcher._app

            def rings_and_is_heard() -> bool:
                mark = next(marks)
                app.send_task("extend_video.submit", args=[mark])
                return "after-the-failover-" in worker.read_log()

            wait_until(lambda: dispatcher.publish(Doorbell(Step.CANCEL, ANYBODY)), FAILOVER_SECONDS)
            wait_until(rings_and_is_heard, FAILOVER_SECONDS)
        with redis.Redis(port=second) as master:
            # Beat rings there, and the worker takes it.
            wait_until(lambda: beat.is_running and has_swept(sqlite_url), FAILOVER_SECONDS)
            assert master.llen("extend_video.sweep") <= 1
        assert worker.is_running


def has_swept(database_url: str) -> bool:
    with open_table(database_url) as table:
        return bool(table.select("SELECT name FROM tallies WHERE name = 'sweep'"))


def test_sentinels_that_watch_no_such_master_are_a_broker_that_is_away(tmp_path):
    with run_server(tmp_path, "--save", "") as (port, _), run_sentinel(tmp_path, port) as watching:
        url = f"sentinel://127.0.0.1:{watching}/0"
        assert ping(broker_url=url, broker_sentinel_master=MASTER)
        assert not ping(broker_url=url, broker_sentinel_master="another")


# ------------------------------------------------------------------ troubles that pass


@pytest.fixture
def settings(tmp_path, broker, sqlite_url) -> dict[str, str]:
    return {
        "DATABASE_URL": sqlite_url,
        "BROKER_URL": broker.url,
        "FAL_KEY": "key",
        "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
        "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
        "SWEEP_SECONDS": "1",
        # Redis ends first, and then there is nothing to wait for.
        "DRAIN_SECONDS": "3",
    }


def turn_read_only(broker: Broker) -> None:
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.replicaof("127.0.0.1", "1")


def turn_back(broker: Broker) -> None:
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("begin", "end"),
    [(turn_read_only, turn_back), (lambda one: one.end(SIGKILL), Broker.start)],
    ids=["read-only", "killed"],
)
def test_up_outlasts_a_broker_in_trouble_with_a_line_for_each_daemon(
    yard, broker, settings, begin, end
):
    up = yard.start("up", [EXTEND_VIDEO, "up", "--port", "0"], settings)
    wait_until(lambda: up.read_log().count(" ready.") == 2)
    begin(broker)
    wait_until(lambda: up.read_log().count("broker_unavailable") >= 3, 60)
    # A time in which each daemon tries again a dozen times.
    wait_until(lambda: up.read_log().count("sweep_missing") >= 1, 60)
    time.sleep(TROUBLE_SECONDS)
    end(broker)
    wait_until(lambda: up.read_log().count("broker_back") >= 3, 60)

    # Of each worker two threads speak to the broker: its loop, and the one that counts.
    assert up.read_log().count("broker_unavailable") <= 5
    assert "Traceback" not in up.read_log()
    assert "daemon_ended" not in up.read_log()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        client.lpush("extend_video", ENTRIES["no id"])
        up.wait_for_log("enqueue_refused", 60)
        assert up.is_running
