"""Workers say that they are at work, and end if they are not, whatever Celery believes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import BIN, CELERY, EXTEND_VIDEO, Part, Yard
from tests.harness.servers import Broker, run_broker
from tests.harness.waiting import wait_until
from tests.system.rows import open_table
from worker.broker.app import QUEUES, SWEEP, create_app
from worker.ground.settings import load_settings

WEDGED = 70
WEDGE = Path(__file__).parents[2] / "harness" / "wedge.py"
POOLS = pytest.mark.parametrize("pool", ["threads", "prefork"])


@pytest.fixture
def broker() -> Iterator[Broker]:
    with run_broker() as broker:
        yield broker


@pytest.fixture
def settings(broker, sqlite_url) -> dict[str, str]:
    return {
        "DATABASE_URL": sqlite_url,
        "BROKER_URL": broker.url,
        "FAL_KEY": "emulator-key",
        "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
        "WATCHDOG_SECONDS": "1",
        "DRAIN_SECONDS": "1",
        "SWEEP_SECONDS": "1",
    }


def start_worker(yard: Yard, settings: dict[str, str], pool: str) -> Part:
    """One that a file in the yard's directory wedges."""
    command = [str(BIN / "python"), str(WEDGE), str(yard.directory), "-A", "worker", "worker"]
    options = ["-n", "w@h", "-P", pool, "-c", "2"]
    part = yard.start("worker", [*command, *options], settings)
    part.wait_for_log(" ready.", 60)
    return part


def publish_sweep(settings: dict[str, str]) -> None:
    app = create_app(load_settings(broker_url=settings["BROKER_URL"]))
    app.send_task(SWEEP)
    app.close()


def test_worker_starts_without_looking_for_others(yard, settings) -> None:
    log = start_worker(yard, settings, "threads").read_log()
    assert "Connected to" in log
    assert "mingle" not in log


@POOLS
def test_worker_whose_loop_stands_still_ends_for_its_supervisor(yard, settings, pool) -> None:
    part = start_worker(yard, settings, pool)
    (yard.directory / "stuck").touch()
    assert part.wait(90) == WEDGED
    facts = [json.loads(line) for line in part.read_log().splitlines() if line.startswith("{")]
    (told,) = [fact for fact in facts if fact["event"] == "worker_wedged"]
    assert "has been blocked" in told["reason"]


def test_worker_that_takes_no_messages_ends_for_its_supervisor(yard, settings) -> None:
    part = start_worker(yard, settings, "threads")
    (yard.directory / "deaf").touch()
    # Redis pushes one into the connection, where it rests unread.
    for _ in range(3):
        publish_sweep(settings)
    assert part.wait(90) == WEDGED
    assert "it has consumed none for" in part.read_log()


def test_worker_whose_broker_is_silent_stays_and_works_on_afterwards(
    yard, settings, broker, sqlite_url
) -> None:
    """A restart would not mend it."""
    # Only at this level is it said at each look.
    part = start_worker(yard, {**settings, "LOG_LEVEL": "debug"}, "threads")
    with broker.standing_still():
        part.wait_for_log("broker_unavailable", 60)
        wait_until(lambda: part.read_log().count("broker_unavailable") > 4, 90)
    assert part.is_running
    publish_sweep(settings)
    with open_table(sqlite_url) as table:
        wait_until(lambda: table.select("SELECT name FROM tallies WHERE name = 'sweep'"), 60)
    assert "worker_wedged" not in part.read_log()


@POOLS
def test_status_tells_of_a_worker_at_work_and_of_none_after_its_end(yard, settings, pool) -> None:
    def ask() -> dict[str, object]:
        ended = yard.run([EXTEND_VIDEO, "status", "--json"], settings)
        told = json.loads(ended.stdout)
        assert ended.returncode == (0 if told["ok"] else 1)
        assert isinstance(told, dict)
        return told

    assert "no worker has been seen within the last minute" in str(ask()["problems"])
    part = start_worker(yard, settings, pool)
    yard.start("beat", [*CELERY, "beat"], settings)
    wait_until(lambda: ask()["ok"], 90)
    told = ask()
    [worker] = [one for one in told["workers"] if one["name"] == "w@h"]  # type: ignore[attr-defined]
    assert sorted(worker["queues"]) == sorted(QUEUES.values())
    wait_until(lambda: "sweep" in str(ask()["workers"]), 60)
    assert told["queues"] is not None
    people = yard.run([EXTEND_VIDEO, "status"], settings)
    assert people.returncode == 0
    assert people.stdout.startswith("ok\n")
    assert re.search(r"w@h \([0-9]+\)  seen ", people.stdout)
    assert part.end() == 0
    assert ask()["workers"] == []
