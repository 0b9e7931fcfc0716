"""The stages against a fal that answers as a test says; its server and clients serve all tests."""

import base64
import json
from collections.abc import Callable, Iterator

import pytest

from tests.emulator.processes import Emulator, start_emulator
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


@pytest.fixture(scope="session")
def shared_emulator(tmp_path_factory) -> Iterator[Emulator]:
    directory = tmp_path_factory.mktemp("fal")
    with start_emulator(directory, "--render", "fake", "--concurrency", "8") as emulator:
        yield emulator


@pytest.fixture
def emulator(shared_emulator: Emulator) -> Iterator[Emulator]:
    """One that answers at once, and goes wrong as the test orders."""
    yield shared_emulator
    shared_emulator.client.delete("/_emulator/faults")


@pytest.fixture(scope="session")
def shared_busy_emulator(tmp_path_factory) -> Iterator[Emulator]:
    options = ("--render", "fake", "--concurrency", "1", "--run-seconds", "3600")
    with start_emulator(tmp_path_factory.mktemp("busy"), *options) as emulator:
        emulator.wait_for_status(emulator.submit(), "IN_PROGRESS")
        yield emulator


@pytest.fixture
def busy_emulator(shared_busy_emulator: Emulator) -> Iterator[Emulator]:
    """One whose only runner is taken by a request that does not end; nobody waits behind it."""
    yield shared_busy_emulator
    shared_busy_emulator.client.delete("/_emulator/faults")
    for request in shared_busy_emulator.list_requests():
        if request["status"] == "IN_QUEUE":
            shared_busy_emulator.cancel(request["request_id"])


@pytest.fixture
def producing(monkeypatch, database_url, redis_url) -> Iterator[None]:
    """What a producer has: a table and a broker, no key."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    take_messages(redis_url, "extend_video.submit")
    producer.get_runtime.forget()
    yield
    if producer.get_runtime.is_made:
        runtime = producer.get_runtime()
        runtime.db.close()
        runtime.dispatcher.close()
    producer.get_runtime.forget()


@pytest.fixture
def read_doorbells(redis_url) -> Callable[[], list[str]]:
    """The job ids rung for since it was last asked."""
    return lambda: [
        json.loads(base64.b64decode(message["body"]))[0][0]
        for message in take_messages(redis_url, "extend_video.submit")
    ]
