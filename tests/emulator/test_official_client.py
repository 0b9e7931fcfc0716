"""fal's own Python client, unchanged but for its addresses, takes the emulator for fal."""

import asyncio
from typing import Any

import fal_client
import pytest

from tests.emulator.official import APPLICATION, open_async_client
from tests.emulator.processes import wait_until


def test_sync_client_submits_follows_and_gets_result(emulator, point_at, client):
    handle = client.submit(APPLICATION, point_at(emulator))
    events = list(handle.iter_events(with_logs=True, interval=0.01))
    result = handle.get()
    assert isinstance(events[-1], fal_client.Completed)
    assert {log["level"] for log in events[-1].logs or ()} == {"INFO", "DEBUG", "STDERR"}
    assert events[-1].metrics["inference_time"] > 0
    assert result["video"]["num_frames"] == 28
    assert client.result(APPLICATION, handle.request_id) == result
    assert emulator.find(handle.request_id)["headers"]["user-agent"].startswith("fal-client/")


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


def test_sync_client_that_times_out_cancels(busy, point_at, client):
    with pytest.raises(fal_client.FalClientTimeoutError) as caught:
        client.subscribe(APPLICATION, point_at(busy), client_timeout=1.1)
    request_id = caught.value.request_id
    assert request_id is not None
    wait_until(lambda: busy.find(request_id)["cancel_requested"])
    assert busy.find(request_id)["headers"]["x-fal-request-timeout"] == "1.1"


def test_sync_client_is_refused_without_a_key(quick, point_at):
    client = fal_client.SyncClient(key="wrong")
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.submit(APPLICATION, point_at(quick))
    client._client.close()
    assert caught.value.status_code == 401


def test_sync_client_submits_again_after_a_lost_reply(faulty, point_at, client):
    arguments = {**point_at(faulty), "prompt": "paid twice by fal's client"}
    faulty.order({"point": "submit", "kind": "execute_then_ingress", "times": 1})
    client.submit(APPLICATION, arguments)
    ledger = faulty.client.get("/_emulator/ledger").json()["by_input"]
    [entry] = [one for one in ledger if one["prompt"] == arguments["prompt"]]
    assert entry["submissions"] == 2


def test_sync_client_takes_a_result_in_sync_mode(quick, point_at, client):
    result = client.subscribe(APPLICATION, {**point_at(quick), "sync_mode": True})
    assert result["video"]["url"].startswith("data:video/mp4;base64,")
