"""The receiver's surroundings, private to each test."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.harness.brokers import take_messages
from tests.harness.jobs import make_job
from tests.harness.logs import preserved_logging
from tests.harness.web import ScriptedServer, run_server, send_json
from tests.harness.webhooks import KEY, USER_ID, write_jwks
from tests.receiver.scene import LIMIT, Scene, close_receiver, find_receiver
from webhook import create_app
from webhook.fal import Receiver
from worker.broker.app import QUEUES
from worker.ground.settings import load_settings
from worker.jobs.states import JobState
from worker.jobs.values import Job


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


@pytest.fixture
def keys() -> Iterator[ScriptedServer]:
    with run_server(send_json(write_jwks(KEY))) as server:
        yield server


@pytest.fixture
def open_scene(database_url, db, keys, redis_url) -> Iterator[Callable[..., Scene]]:
    """Builds receivers on the same table; settings as keywords."""
    opened: list[Receiver] = []

    def build(**changed: Any) -> Scene:
        settings = load_settings(
            **{
                "database_url": database_url,
                "broker_url": redis_url,
                "fal_jwks_url": keys.url,
                "fal_user_id": USER_ID,
                "webhook_max_bytes": LIMIT,
                **changed,
            }
        )
        app = create_app(settings)
        opened.append(find_receiver(app))
        return Scene(app.test_client(), opened[-1], db, keys, settings)

    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    yield build
    for receiver in opened:
        close_receiver(receiver)


@pytest.fixture
def scene(open_scene) -> Scene:
    built = open_scene()
    assert isinstance(built, Scene)
    return built


@pytest.fixture
def job(db) -> Job:
    return make_job(db, JobState.SUBMITTED, now=datetime.now(UTC))
