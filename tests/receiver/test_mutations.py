"""Deliveries spoilt in every way, by thousands: none changes or breaks anything.

Each has a seed of its own, which a failure prints: `Mutator(LIMIT).draw(seed)` makes it again.
"""

import logging
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import text
from typing_extensions import override
from werkzeug.test import run_wsgi_app

from tests.harness.broken_http import break_http
from tests.harness.jobs import REQUEST_ID, TOKEN, make_job, read_attempts
from tests.harness.mutations import OTHER_REQUEST_ID, OTHER_TOKEN, Mutator
from tests.harness.posts import Post
from tests.harness.processes import run_yard
from tests.harness.webhooks import USER_ID, SignedDelivery
from tests.receiver.scene import LIMIT, Scene
from tests.receiver.test_process import run_gunicorn
from worker.jobs import attempts
from worker.jobs.states import JobState
from worker.jobs.values import Outcome, Settlement

DELIVERIES = int(os.environ.get("FUZZ_DELIVERIES", "2000"))
# A fresh signature is good for five minutes; reading the tables costs as much as many deliveries.
ROUND = 1000
SENT = DELIVERIES // 10
# Silence answers what is no HTTP, 100 whoever asks whether to go on.
ANSWERS = frozenset(
    {b"none", b"100", b"400", b"401", b"404", b"405", b"413", b"414", b"417", b"431", b"503"}
)
REFUSALS = frozenset({400, 401, 404, 405, 413, 503})


class Confessions(logging.Handler):
    """What no log may show: tracebacks, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.exc_info or "Traceback" in said or TOKEN in said or OTHER_TOKEN in said:
            self.heard.append(said)


@pytest.fixture
def confessions(scene) -> Iterator[Confessions]:
    """Listens to everything that the receiver logs."""
    handler = Confessions()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def two_jobs(scene) -> None:
    """Two jobs at fal, each with the request that its deliveries name."""
    for token, request_id in ((OTHER_TOKEN, OTHER_REQUEST_ID), (TOKEN, REQUEST_ID)):
        now = datetime.now(UTC)
        job = make_job(scene.db, JobState.SUBMITTED, now=now)
        (attempt,) = read_attempts(scene.db, job.id)
        with scene.db.transaction() as connection:
            settled = Settlement(Outcome.ACCEPTED, now, 200, request_id)
            attempts.record_outcome(connection, attempt.id, settled)
            connection.execute(
                text("UPDATE attempts SET token_hash = :hash WHERE fal_request_id = :id"),
                {"hash": attempts.hash_token(token), "id": request_id},
            )


def hand_over(app: Flask, post: Post) -> tuple[int, str | None]:
    """The answer's code and type; what the application raises is raised here."""
    environ = post.to_environ()
    _, status, headers = run_wsgi_app(app.wsgi_app, environ, buffered=True)
    assert environ["wsgi.errors"].getvalue() == ""
    return int(status[:3]), headers.get("Content-Type")


@pytest.mark.slow  # a thousand deliveries
@pytest.mark.parametrize("part", range(DELIVERIES // ROUND))
def test_receive_spoilt_deliveries_changes_nothing(scene, two_jobs, confessions, part) -> None:
    answers: Counter[int] = Counter()
    before = scene.read_table()
    mutator = Mutator(LIMIT)
    for number in range(ROUND):
        seed = f"{part}-{number}"
        status, content_type = hand_over(scene.client.application, mutator.draw(seed))
        assert status in REFUSALS, f"seed {seed!r}: {status}"
        assert content_type == "application/json", f"seed {seed!r}"
        assert confessions.heard == [], f"seed {seed!r}"
        answers[status] += 1
    assert scene.read_table() == before, f"one of the seeds {part}-0 and following"
    published = scene.take_doorbells()
    # What is too large to be read, under a known token, has fal asked; nothing else does.
    assert set(published) <= {"extend_video.reconcile"}
    assert len(published) <= answers[413]
    assert set(answers) >= {400, 401, 404, 405}, answers
    check_genuine_is_recorded(scene)


def pair() -> tuple[SignedDelivery, SignedDelivery]:
    """The genuine deliveries of the two jobs, signed just now."""
    mutator = Mutator(LIMIT)
    return mutator.delivery, mutator.other


def check_genuine_is_recorded(scene: Scene) -> None:
    """Else all of them were refused for nothing."""
    for delivery in pair():
        assert scene.post(delivery).get_json() == {"verdict": "recorded"}


# ------------------------------------------------------------------ over a socket


def exchange(place: tuple[str, int], raw: bytes) -> bytes:
    """What comes back until the server closes; nothing if it closes at once."""
    received = bytearray()
    with socket.create_connection(place, timeout=30) as connection, suppress(ConnectionError):
        connection.sendall(raw)
        with suppress(OSError):  # the server has closed already
            connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)


@pytest.mark.slow  # starts gunicorn
@pytest.mark.timeout(900)
def test_gunicorn_survives_spoilt_deliveries_and_broken_http(
    tmp_path, scene, two_jobs, keys, redis_url
) -> None:
    """What no WSGI server should let through, it does not; what it lets through is refused."""
    settings = {
        "DATABASE_URL": scene.settings.database_url,
        "BROKER_URL": redis_url,
        "FAL_JWKS_URL": keys.url,
        "FAL_USER_ID": USER_ID,
        "WEBHOOK_MAX_BYTES": str(LIMIT),
    }
    before = scene.read_table()
    answers: Counter[bytes] = Counter()
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--threads 8") as client:
        place = (client.base_url.host, int(client.base_url.port or 0))
        mutator = Mutator(LIMIT)
        for number in range(SENT):
            if number % ROUND == 0:
                mutator = Mutator(LIMIT)
            seed = f"socket-{number}"
            raw, rng = mutator.draw(seed).to_bytes(), random.Random(seed)
            answer = exchange(place, break_http(rng, raw) if rng.random() < 0.5 else raw)
            statuses = re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", answer) or [b"none"]
            assert set(statuses) <= ANSWERS, f"seed {seed!r}: {answer[:200]!r}"
            answers.update(statuses)
        assert client.get("/healthz").status_code == 200
        log = yard.parts["gunicorn"].read_log()
        assert scene.read_table() == before
        post_genuine = [
            client.post(one.path, content=one.body, headers=one.headers) for one in pair()
        ]

    assert [one.json() for one in post_genuine] == [{"verdict": "recorded"}] * 2
    assert set(answers) >= {b"400", b"401", b"404", b"405"}, answers
    assert "Traceback" not in log
    # gunicorn quotes a line that is no request; ours are JSON.
    assert [line for line in log.splitlines() if line.startswith("{") and TOKEN in line] == []
