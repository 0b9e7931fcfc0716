"""Keys, broker or database away: fal is told to come again, and nothing is lost."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flask import Flask
from sqlalchemy import text

import worker.ground.db
from tests.harness.brokers import find_closed_port, open_black_hole
from tests.harness.jobs import read_job
from tests.harness.servers import Postgres
from tests.harness.waiting import wait_until
from tests.harness.web import send_body, send_json
from tests.harness.webhooks import KEY, OTHER_KEY, build_delivery, write_jwks
from tests.receiver.scene import LEASE, Scene, refuse, take_as_hint
from webhook.fal import register_routes
from worker.fal.webhooks import KeyCache, WebhookVerifier
from worker.jobs.states import JobState
from worker.stages.sweep import sweep_jobs


@dataclass
class Ticker:
    """A clock of seconds that moves by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def open_hand_wound_scene(scene: Scene, ticker: Ticker) -> Scene:
    """The same receiver with keys whose clock the test moves."""
    cache = KeyCache(scene.keys.url, httpx.Client(), clock=ticker)
    receiver = replace(scene.receiver, verifier=WebhookVerifier(cache))
    app = Flask("webhook")
    register_routes(app, receiver)
    return Scene(app.test_client(), receiver, scene.db, scene.keys, scene.settings)


@pytest.fixture
def ticker() -> Ticker:
    return Ticker()


@pytest.fixture
def wound(scene, ticker) -> Iterator[Scene]:
    opened = open_hand_wound_scene(scene, ticker)
    yield opened
    opened.receiver.verifier._keys._client.close()  # it has no other owner


def test_receive_many_fetches_keys_once(wound, job) -> None:
    for _ in range(5):
        wound.post(build_delivery())

    assert len(wound.keys.asked) == 1


def test_receive_forgeries_refetch_keys_at_most_once_a_minute(wound, ticker, job) -> None:
    wound.post(build_delivery())
    for _ in range(180):
        ticker.now += 1
        assert wound.post(build_delivery(key=OTHER_KEY)).status_code == 401

    assert len(wound.keys.asked) <= 1 + 3


def test_receive_after_key_rotation_records(wound, ticker, job) -> None:
    wound.post(build_delivery(b"{}"))
    wound.keys.answer = send_json(write_jwks(OTHER_KEY))
    ticker.now += 61

    assert wound.post(build_delivery(key=OTHER_KEY)).get_json() == {"verdict": "recorded"}
    assert wound.post(build_delivery(b"{ }", key=KEY)).status_code == 401


def test_receive_garbage_fetches_no_keys(wound, job) -> None:
    for delivery in (
        build_delivery().without_header("Signature"),
        build_delivery().with_header("Timestamp", "x"),
    ):
        assert wound.post(delivery).status_code == 401
    assert wound.keys.asked == []


def test_receive_without_keys_takes_hint_until_they_are_back(wound, ticker, job) -> None:
    good, wound.keys.answer = wound.keys.answer, send_body(b"", 500)
    take_as_hint(wound, build_delivery(), job, due_now=True)

    wound.keys.answer = good
    ticker.now += 6
    assert wound.post(build_delivery()).get_json() == {"verdict": "recorded"}


def test_receive_without_keys_answers_503_to_what_cannot_be_read(wound, job) -> None:
    """Genuine or not: fal sends it again, and by then the keys may be back."""
    wound.keys.answer = send_body(b"", 500)
    refuse(wound, build_delivery(b"{"), 503, "keys_unavailable")


def test_receive_without_keys_answers_401_to_unknown_token(wound, job) -> None:
    wound.keys.answer = send_body(b"", 500)
    refuse(wound, build_delivery(token="another-token"), 401, "invalid_signature")


def test_receive_forgery_without_keys_is_believed_nothing(wound, job) -> None:
    """Nobody can tell it from a genuine one, so fal is asked, and only fal."""
    wound.keys.answer = send_body(b"", 500)
    take_as_hint(wound, build_delivery(key=OTHER_KEY), job, due_now=True)


def test_receive_while_keys_cannot_be_renewed_uses_old_ones(wound, ticker, job) -> None:
    wound.post(build_delivery(b"{}"))
    wound.keys.answer = send_body(b"", 500)
    ticker.now += timedelta(hours=25).total_seconds()

    assert wound.post(build_delivery()).status_code == 200


def test_receive_without_broker_still_answers_in_time_and_sweep_heals(open_scene, job) -> None:
    with open_black_hole() as hole:
        scene = open_scene(broker_url=hole.redis_url)
        started = time.monotonic()
        answer = scene.post(build_delivery())
        elapsed = time.monotonic() - started

    assert (answer.status_code, answer.get_json()) == (200, {"verdict": "recorded"})
    assert elapsed < 1.5
    later = datetime.now(UTC) + 2 * LEASE
    (doorbell,) = sweep_jobs(db=scene.db, lease=LEASE, clock=lambda: later).doorbells
    assert (doorbell.step.value, doorbell.job_id) == ("archive", job.id)


def test_receive_publishes_only_what_is_committed(open_scene, job) -> None:
    seen: list[JobState] = []
    with open_black_hole() as hole:
        scene = open_scene(broker_url=hole.redis_url)
        hole.on_connect = lambda: seen.append(read_job(scene.db, job.id).state)
        scene.post(build_delivery())
        wait_until(lambda: seen)

    assert seen[0] is JobState.COMPLETED


@contextmanager
def database_away(database_url: str, postgres: Postgres) -> Iterator[None]:
    """SQLite: another writer holds the file. PostgreSQL: it ends all sessions and takes none."""
    if database_url.startswith("sqlite"):
        writer = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            writer.close()
        return
    name = database_url.partition("@/")[2].partition("?")[0]
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    end_sessions(postgres, name)
    try:
        yield
    finally:
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def end_sessions(postgres: Postgres, name: str) -> None:
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )


@pytest.mark.both_databases
def test_receive_without_database_answers_503_and_later_records(
    open_scene, job, database_url, postgres, monkeypatch
) -> None:
    monkeypatch.setattr(worker.ground.db, "BUSY_TIMEOUT_MS", 50)
    scene = open_scene()
    scene.post(build_delivery(b"{}"))
    with database_away(database_url, postgres):
        answer = scene.post(build_delivery())
        forged = scene.post(build_delivery(key=OTHER_KEY))

    assert (answer.status_code, answer.get_json()["error"]) == (503, "database_unavailable")
    assert forged.status_code == 401, "a forgery costs no look at the table"
    assert "select" not in answer.text.lower()
    assert scene.post(build_delivery()).get_json() == {"verdict": "recorded"}


def test_receive_where_no_database_listens_answers_503_and_logs_no_password(
    open_scene, capsys
) -> None:
    address = f"postgresql+psycopg://u:the-password@127.0.0.1:{find_closed_port()}/x"
    scene = open_scene(database_url=address)
    answer = scene.post(build_delivery())
    assert (answer.status_code, answer.get_json()["error"]) == (503, "database_unavailable")
    assert scene.client.get("/readyz").status_code == 503
    logged = capsys.readouterr().err
    assert "database_unavailable" in logged
    assert "Traceback" not in logged
    assert "the-password" not in logged


@pytest.mark.both_databases
def test_receive_while_row_is_locked_too_long_answers_503(open_scene, job, db, monkeypatch) -> None:
    monkeypatch.setattr(worker.ground.db, "STATEMENT_TIMEOUT_MS", 100)
    monkeypatch.setattr(worker.ground.db, "BUSY_TIMEOUT_MS", 100)
    scene = open_scene()
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET fence = fence"))
        answer = scene.post(build_delivery())

    assert (answer.status_code, answer.get_json()["error"]) == (503, "database_unavailable")
    assert scene.count("deliveries") == 0
    assert scene.post(build_delivery()).get_json() == {"verdict": "recorded"}
