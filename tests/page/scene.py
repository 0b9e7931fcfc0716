"""The receiver with its page, served over HTTP on a table of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from playwright.sync_api import Page
from werkzeug.serving import make_server

from tests.harness.brokers import take_messages
from tests.harness.jobs import insert_job
from tests.page.browser import TOKEN, log_in
from tests.receiver.scene import close_receiver, find_receiver
from webhook import create_app
from worker.broker.app import QUEUES
from worker.ground.db import Database
from worker.ground.settings import Settings, load_settings
from worker.jobs.values import Job


@dataclass(frozen=True)
class Site:
    """Where the page is, and the table and broker behind it."""

    app: Flask
    db: Database
    settings: Settings
    url: str = ""
    complaints: list[str] = field(default_factory=list)

    def add_job(self, prompt: str = "on it goes", *, age: float = 0, **columns: Any) -> Job:
        """A queued job that no sweep looks at while a test runs; `age` in minutes."""
        now = datetime.now(UTC) - timedelta(minutes=age)
        fields = {"prompt": prompt, "video_url": "https://example.com/a.mp4", "seed": 7}
        values = {"input": fields, "due_at": now + timedelta(days=1), **columns}
        return insert_job(self.db, now=now, **values)

    def take_doorbells(self) -> list[str]:
        return [
            message["headers"]["task"]
            for queue in QUEUES.values()
            for message in take_messages(self.settings.broker_url, queue)
        ]

    def open(self, page: Page, path: str = "/jobs") -> None:
        page.goto(f"{self.url}{path}")

    def log_in(self, page: Page) -> None:
        log_in(page, self.url)
        page.wait_for_url(f"{self.url}/jobs")


def build_site(database_url: str, db: Database, broker_url: str, **changes: Any) -> Site:
    given = {"database_url": database_url, "broker_url": broker_url, "monitor_token": TOKEN}
    settings = load_settings(**(given | changes))
    return Site(create_app(settings), db, settings)


def close_site(site: Site) -> None:
    close_receiver(find_receiver(site.app))


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    server = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Site(site.app, site.db, site.settings, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
