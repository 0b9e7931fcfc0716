from collections.abc import Iterator
from pathlib import Path

import fal_client
import httpx
import pytest

from tests.emulator.clips import make_clip
from tests.emulator.official import ADDRESSES
from tests.emulator.processes import Emulator, start_emulator
from tests.emulator.receiver import Receiver, start_receiver


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """Two seconds, 24 frames of 128x96, with sound."""
    return make_clip(tmp_path_factory.mktemp("sample") / "sample.mp4")


@pytest.fixture(scope="session")
def directory(tmp_path_factory, sample) -> Path:
    return lay_out(tmp_path_factory.mktemp("emulator"), sample)


@pytest.fixture(scope="session")
def emulator(directory) -> Iterator[Emulator]:
    """One that answers as fast as it can, shared by all tests."""
    with start_emulator(directory, "--webhook-retry-seconds", "0.05") as emulator:
        yield emulator


@pytest.fixture(scope="session")
def occupied(tmp_path_factory, sample) -> Iterator[Emulator]:
    options = ("--render", "fake", "--concurrency", "1", "--run-seconds", "3600")
    webhooks = ("--webhook-retry-seconds", "0", "--webhook-concurrency", "2")
    directory = lay_out(tmp_path_factory.mktemp("busy"), sample)
    with start_emulator(directory, *options, *webhooks) as emulator:
        emulator.wait_for_status(emulator.submit(), "IN_PROGRESS")
        yield emulator


@pytest.fixture
def busy(occupied) -> Iterator[Emulator]:
    """One whose only runner is taken by a request that does not end; nobody waits behind it.

    It repeats webhooks without a pause, and posts two at once.
    """
    yield occupied
    for request in occupied.list_requests():
        if request["status"] == "IN_QUEUE":
            occupied.cancel(request["request_id"])


@pytest.fixture(scope="session")
def quick(tmp_path_factory, sample) -> Iterator[Emulator]:
    directory = lay_out(tmp_path_factory.mktemp("quick"), sample)
    options = ("--render", "fake", "--webhook-retry-seconds", "0.05", "--concurrency", "4")
    with start_emulator(directory, *options) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def unhurried(tmp_path_factory, sample) -> Iterator[Emulator]:
    """One that lets each request wait and run a while, and forgets long results at once."""
    directory = lay_out(tmp_path_factory.mktemp("unhurried"), sample)
    options = ("--render", "fake", "--concurrency", "1", "--large-result-seconds", "0")
    times = ("--queue-seconds", "0.2", "--run-seconds", "0.3", "--keep-alive-seconds", "0.05")
    with start_emulator(directory, *options, *times) as emulator:
        yield emulator


@pytest.fixture
def faulty(quick) -> Iterator[Emulator]:
    """One that renders nothing, and goes wrong as the test orders; shared, but in good order."""
    yield quick
    quick.client.delete("/_emulator/faults")
    quick.client.delete("/_emulator/hooks")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with start_receiver() as receiver:
        yield receiver


@pytest.fixture
def point_at(monkeypatch):
    """Call with an emulator to point fal's Python client at it; returns an input to submit."""
    monkeypatch.setenv("FAL_KEY", "emulator-key")

    def point_at(emulator: Emulator) -> dict[str, object]:
        for name, tail in ADDRESSES.items():
            monkeypatch.setattr(fal_client.client, name, f"{emulator.url}{tail}")
        fields = {"num_frames": 9, "num_context_frames": 5, "seed": 7}
        return {"prompt": "p", "video_url": emulator.sample_url, **fields}

    return point_at


@pytest.fixture
def client(point_at, monkeypatch):
    """Fal's synchronous client; what it leaves open is closed."""
    opened: list[httpx.Client] = []
    genuine = fal_client.SyncClient._get_cdn_client

    def get_cdn_client(self: fal_client.SyncClient) -> httpx.Client:
        opened.append(genuine(self))
        return opened[-1]

    monkeypatch.setattr(fal_client.SyncClient, "_get_cdn_client", get_cdn_client)
    client = fal_client.SyncClient()
    yield client
    for one in (client._client, *opened):
        one.close()


def lay_out(directory: Path, sample: Path) -> Path:
    """Makes the sample /files/sample.mp4 of an emulator with that directory."""
    files = directory / "files"
    files.mkdir(parents=True)
    (files / "sample.mp4").write_bytes(sample.read_bytes())
    return directory
