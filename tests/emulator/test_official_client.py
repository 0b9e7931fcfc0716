"""fal's own Python client, unchanged but for its addresses, takes the emulator for fal."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fal_client
import fal_client.client
import pytest

from tests.emulator.processes import Emulator

APPLICATION = "fal-ai/ltx-2.3-22b/extend-video"


@pytest.fixture
def point_at(monkeypatch):
    """Call with an emulator to point the client at it; returns an input to submit."""
    monkeypatch.setenv("FAL_KEY", "emulator-key")

    def point_at(emulator: Emulator) -> dict[str, object]:
        for name in ("QUEUE_URL_FORMAT", "RUN_URL_FORMAT"):
            monkeypatch.setattr(fal_client.client, name, f"{emulator.url}/")
        for name in ("REST_URL", "CDN_URL"):
            monkeypatch.setattr(fal_client.client, name, emulator.url)
        fields = {"num_frames": 9, "num_context_frames": 5, "seed": 7}
        return {"prompt": "p", "video_url": emulator.sample_url, **fields}

    return point_at


@pytest.fixture
def client(point_at):
    client = fal_client.SyncClient()
    yield client
    client._client.close()


@asynccontextmanager
async def open_async_client() -> AsyncIterator[fal_client.AsyncClient]:
    client = fal_client.AsyncClient()
    yield client
    await (await client._client).aclose()


def test_sync_client_submits_follows_and_gets_result(emulator, point_at, client):
    handle = client.submit(APPLICATION, point_at(emulator))
    events = list(handle.iter_events(with_logs=True, interval=0.01))
    result = handle.get()
    assert isinstance(events[-1], fal_client.Completed)
    assert [log["level"] for log in events[-1].logs or ()] == ["INFO"] * 3
    assert events[-1].metrics["inference_time"] > 0
    assert result["video"]["num_frames"] == 28
    assert client.result(APPLICATION, handle.request_id) == result
    assert emulator.find(handle.request_id)["headers"]["user-agent"].startswith("fal-client/")


def test_sync_client_subscribes(emulator, point_at, client):
    updates: list[object] = []
    result = client.subscribe(
        APPLICATION, point_at(emulator), with_logs=True, on_queue_update=updates.append
    )
    assert result["seed"] == 7
    assert isinstance(updates[-1], fal_client.Completed)


def test_sync_client_sees_positions_and_cancels(busy, point_at, client):
    arguments = point_at(busy)
    first = client.submit(APPLICATION, arguments)
    second = client.submit(APPLICATION, arguments, priority="low")
    status = client.status(APPLICATION, second.request_id, with_logs=True)
    assert isinstance(status, fal_client.Queued)
    assert status.position == 1
    client.cancel(APPLICATION, first.request_id)
    cancelled = client.status(APPLICATION, first.request_id)
    assert isinstance(cancelled, fal_client.Completed)
    assert cancelled.error_type == "client_cancelled"


def test_sync_client_sees_running_request(busy, point_at, client):
    point_at(busy)
    running = busy.list_requests()[0]["request_id"]
    assert isinstance(client.status(APPLICATION, running), fal_client.InProgress)


def test_sync_client_raises_on_refused_input(emulator, point_at, client):
    arguments = {**point_at(emulator), "num_frames": 1}
    handle = client.submit(APPLICATION, arguments)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 422


def test_sync_client_sends_webhook_and_start_timeout(emulator, point_at, client, receiver):
    handle = client.submit(
        APPLICATION, point_at(emulator), webhook_url=f"{receiver.url}/a?b=c", start_timeout=30
    )
    assert receiver.take().path == "/a?b=c"
    assert emulator.find(handle.request_id)["headers"]["x-fal-request-timeout"] == "30.0"


def test_async_client_submits_follows_and_gets_result(emulator, point_at):
    async def scenario() -> tuple[list[fal_client.Status], dict[str, Any]]:
        async with open_async_client() as client:
            handle = await client.submit(APPLICATION, point_at(emulator))
            events = [one async for one in handle.iter_events(with_logs=True, interval=0.01)]
            return events, await handle.get()

    events, result = asyncio.run(scenario())
    assert isinstance(events[-1], fal_client.Completed)
    assert result["video"]["num_frames"] == 28


def test_async_client_subscribes_and_cancels(emulator, busy, point_at):
    async def scenario() -> dict[str, Any]:
        async with open_async_client() as client:
            handle = await client.submit(APPLICATION, point_at(busy))
            await handle.cancel()
            assert isinstance(await handle.status(), fal_client.Completed)
            return dict(await client.subscribe(APPLICATION, point_at(emulator)))

    assert asyncio.run(scenario())["seed"] == 7
