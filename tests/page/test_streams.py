"""Archived videos and webhooks share a receiver's threads: players must not take all of them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from sqlalchemy import text

from tests.harness.jobs import make_job
from tests.harness.processes import run_yard
from tests.harness.waiting import wait_until
from tests.page.browser import TOKEN
from tests.receiver.test_process import run_gunicorn
from webhook.page.files import MOST_AT_ONCE
from worker.jobs.states import JobState

LARGE = 64 * 1024 * 1024


@pytest.fixture
def address(db, tmp_path) -> str:
    """Of an archived video that is larger than what a connection takes unread."""
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / "a.mp4"
    with path.open("wb") as file:
        file.truncate(LARGE)
    job = make_job(db, JobState.ARCHIVED)
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET archive_uri = :uri"), {"uri": path.as_uri()})
    return f"/jobs/{job.id}/video"


@contextmanager
def open_unread(client: httpx.Client, address: str, cookie: str) -> Iterator[None]:
    """Ask for the video, and read no more than the answer's first line."""
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80)) as connection:
        asked = f"GET {address} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nCookie: {cookie}\r\n\r\n"
        connection.sendall(asked.encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield


@pytest.mark.slow  # starts gunicorn
def test_players_that_stand_still_leave_threads_for_webhooks(
    tmp_path, database_url, redis_url, address
) -> None:
    settings = {
        "DATABASE_URL": database_url,
        "BROKER_URL": redis_url,
        "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
        "MONITOR_TOKEN": TOKEN,
    }
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--threads 8") as client:
        client.post("/jobs/login", data={"secret": TOKEN})
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        with ExitStack() as players:
            for _ in range(MOST_AT_ONCE):
                players.enter_context(open_unread(client, address, cookie))
            refused = [client.get(address) for _ in range(8)]
            assert {answer.status_code for answer in refused} == {503}
            assert {answer.headers["Retry-After"] for answer in refused} == {"5"}
            assert client.post("/webhooks/fal/nobody", content=b"{}").status_code == 401
            assert client.get("/jobs").status_code == 200
        wait_until(lambda: client.head(address).status_code == 200)
