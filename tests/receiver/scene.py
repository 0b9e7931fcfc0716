"""A receiver in this process, with all it works with."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from tests.harness.brokers import take_messages
from tests.harness.jobs import read_attempts, read_job
from tests.harness.web import ScriptedServer
from tests.harness.webhooks import SignedDelivery
from webhook.fal import Receiver
from worker.broker.app import QUEUES
from worker.ground.db import Database
from worker.ground.settings import Settings
from worker.jobs import deliveries
from worker.jobs.values import Job

ARCHIVE_QUEUE = "extend_video.archive"
LEASE = timedelta(seconds=60)
LIMIT = 64 * 1024


@dataclass(frozen=True)
class Scene:
    """A receiver, the table it writes, the keys it fetches and the broker it rings at."""

    client: FlaskClient
    receiver: Receiver
    db: Database
    keys: ScriptedServer
    settings: Settings

    def post(self, delivery: SignedDelivery, **options: Any) -> TestResponse:
        return self.client.post(
            delivery.path, data=delivery.body, headers=dict(delivery.headers), **options
        )

    def take_doorbells(self) -> list[str]:
        """Which tasks were rung for, on whatever queue."""
        self.receiver.dispatcher.flush()
        return [
            message["headers"]["task"]
            for queue in QUEUES.values()
            for message in take_messages(self.settings.broker_url, queue)
        ]

    def read_table(self) -> list[tuple[Any, ...]]:
        """All that a delivery could change, as plain SQL sees it from outside."""
        with self.db.reading() as connection:
            return [
                tuple(row)
                for query in (
                    "jobs ORDER BY id",
                    "attempts",
                    "deliveries ORDER BY id",
                    "events",
                    "gates",
                )
                for row in connection.execute(text(f"SELECT * FROM {query}"))
            ]

    def count(self, table: str) -> int:
        with self.db.reading() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def find_receiver(app: Flask) -> Receiver:
    """What the application has made for itself, to be closed after the test."""
    receiver = getattr(app.view_functions["webhook.receive"], "__self__", None)
    assert isinstance(receiver, Receiver)
    return receiver


def close_receiver(receiver: Receiver) -> None:
    receiver.db.close()
    receiver.dispatcher.close()
    receiver.verifier._keys._client.close()  # it has no other owner


def take_as_hint(scene: Scene, delivery: SignedDelivery, job: Job, *, due_now: bool) -> None:
    """The answer is 202; the delivery is kept, fal is asked, and nothing it says is believed."""
    began = datetime.now(UTC)
    events = scene.count("events")
    answer = scene.post(delivery)
    assert (answer.status_code, answer.get_json()) == (202, {"verdict": "hint"}), answer.get_json()
    after = read_job(scene.db, job.id)
    assert after == replace(job, due_at=after.due_at)
    if due_now:
        assert after.due_at is not None
        assert began <= after.due_at <= datetime.now(UTC)
    else:
        assert after.due_at == job.due_at
    assert scene.count("events") == events
    assert {one.fal_request_id for one in read_attempts(scene.db, job.id)} == {None}
    with scene.db.reading() as connection:
        kept = deliveries.list_deliveries(connection, job.id)
    assert [(one.verdict, one.body) for one in kept] == [("hint", delivery.body)]
    assert scene.take_doorbells() == ["extend_video.reconcile"]


def refuse(scene: Scene, delivery: SignedDelivery, status: int, code: str) -> None:
    """The answer is this, and nothing at all has been written."""
    before = scene.read_table()
    answer = scene.post(delivery)
    assert (answer.status_code, answer.get_json()["error"]) == (status, code), answer.get_json()
    assert scene.read_table() == before
    assert scene.take_doorbells() == []
