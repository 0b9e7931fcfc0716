"""The stages against a fal that answers as a test says; its server and clients serve all tests."""

import base64
import json
from collections.abc import Callable, Iterator

import pytest

from tests.harness.brokers import take_messages
from tests.harness.fal import ScriptedFal, run_fal
from tests.harness.stages import Bench, Clients, open_clients
from worker import producer


@pytest.fixture(scope="session")
def scripted_fal() -> Iterator[ScriptedFal]:
    with run_fal() as fal:
        yield fal


@pytest.fixture(scope="session")
def scripted_clients(scripted_fal) -> Iterator[Clients]:
    with open_clients(scripted_fal.url) as clients:
        yield clients


@pytest.fixture
def desk(scripted_fal: ScriptedFal) -> ScriptedFal:
    """One that accepts everything, runs it for ever, and lists nothing, until a test orders it."""
    scripted_fal.reset()
    return scripted_fal


@pytest.fixture
def bench(db, desk, scripted_clients) -> Bench:
    return Bench(db, *scripted_clients)


@pytest.fixture
def producing(monkeypatch, database_url, redis_url) -> Iterator[None]:
    """What a producer has: a table and a broker, no key."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    take_messages(redis_url, "extend_video.submit")
    producer.get_runtime.cache_clear()
    yield
    if producer.get_runtime.cache_info().currsize:
        runtime = producer.get_runtime()
        runtime.db.close()
        runtime.dispatcher.close()
    producer.get_runtime.cache_clear()


@pytest.fixture
def read_doorbells(redis_url) -> Callable[[], list[str]]:
    """The job ids rung for since it was last asked."""
    return lambda: [
        json.loads(base64.b64decode(message["body"]))[0][0]
        for message in take_messages(redis_url, "extend_video.submit")
    ]
