"""The receiver as operators run it: gunicorn, started by the contract's command."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import httpx
import pytest

from tests.harness.brokers import take_messages
from tests.harness.jobs import TOKEN, make_job, read_job
from tests.harness.processes import BIN, Yard, run_yard
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from tests.harness.webhooks import build_delivery
from tests.receiver.scene import ARCHIVE_QUEUE, LIMIT
from worker.jobs.states import JobState


@contextmanager
def run_gunicorn(yard: Yard, settings: dict[str, str], *options: str) -> Iterator[httpx.Client]:
    """The contract's command as it stands; options by gunicorn's own variable."""
    given = {"GUNICORN_CMD_ARGS": " ".join(("--bind 127.0.0.1:0 --no-control-socket", *options))}
    part = yard.start("gunicorn", [str(BIN / "gunicorn"), "webhook:create_app()"], settings | given)
    part.wait_for_log("Booting worker")
    address = part.read_log().partition("Listening at: ")[2].split()[0]
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        wait_until(lambda: client.get("/healthz").status_code == 200)
        yield client
    assert part.end() == 0


@pytest.mark.slow  # starts gunicorn
def test_gunicorn_receives_records_refuses_what_is_too_large_and_drains(
    tmp_path, database_url, db, keys, redis_url
) -> None:
    take_messages(redis_url, ARCHIVE_QUEUE)
    job = make_job(db, JobState.SUBMITTED, now=datetime.now(UTC))
    settings = {
        "DATABASE_URL": database_url,
        "BROKER_URL": redis_url,
        "FAL_JWKS_URL": keys.url,
        "WEBHOOK_MAX_BYTES": str(LIMIT),
    }
    delivery, large = build_delivery(), build_delivery(b"x" * (LIMIT + 1))
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--threads 8") as client:
        answers = call_together(
            *[lambda: client.post(delivery.path, content=delivery.body, headers=delivery.headers)]
            * 6
        )
        small_chunks = [bytes([byte]) for byte in delivery.body]
        again = client.post(delivery.path, content=iter(small_chunks), headers=delivery.headers)
        announced = client.post(large.path, content=large.body, headers=large.headers)
        # A chunked body announces no length; it is neither read on nor cut and called forged.
        chunked = client.post(large.path, content=iter([large.body]), headers=large.headers)
        log = yard.parts["gunicorn"].read_log()

    verdicts = sorted(answer.json()["verdict"] for answer in answers)
    assert verdicts == ["duplicate"] * 5 + ["recorded"]
    assert (again.status_code, again.json()) == (200, {"verdict": "duplicate"})
    assert (announced.status_code, chunked.status_code) == (413, 413)
    assert read_job(db, job.id).state is JobState.COMPLETED
    assert len(take_messages(redis_url, ARCHIVE_QUEUE)) == 1
    assert "Traceback" not in log
    assert TOKEN not in log, "a token in a log is a token in many hands"


def drip(address: tuple[str, int], start: bytes) -> float:
    """Send a request byte by byte until the receiver ends it; how many seconds that took."""
    began = time.monotonic()
    with socket.create_connection(address, timeout=0.1) as connection:
        connection.sendall(start)
        while time.monotonic() - began < 30:
            with suppress(TimeoutError):
                try:
                    connection.sendall(b"x")
                    if not connection.recv(1000):
                        break
                except ConnectionError:
                    break
    return time.monotonic() - began


@pytest.mark.slow  # starts gunicorn, and requests run into their deadline
def test_requests_that_drip_in_are_cut_off_and_others_are_answered(
    tmp_path, database_url, redis_url
) -> None:
    settings = {
        "DATABASE_URL": database_url,
        "BROKER_URL": redis_url,
        "WEBHOOK_READ_SECONDS": "1",
    }
    heads = b"POST /webhooks/fal/x HTTP/1.1\r\nHost: x\r\nX-Drip: "
    bodies = b"POST /webhooks/fal/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--threads 8") as client:
        address = (str(client.base_url.host), client.base_url.port or 0)
        drips = [lambda: drip(address, heads)] * 4 + [lambda: drip(address, bodies)] * 4
        *held, answered = call_together(*drips, lambda: client.get("/healthz").status_code)
        log = yard.parts["gunicorn"].read_log()

    assert answered == 200
    assert max(held) < 10
    assert log.count("slow_request_cut") == 8
    assert "Traceback" not in log
