"""fal's own asynchronous Python client, unchanged but for its addresses and sizes."""

import asyncio
from typing import Any

import fal_client
import fal_client.client
import pytest

from tests.emulator.official import APPLICATION, open_async_client
from tests.emulator.uploading import find_upload, get

CHUNK_BYTES = 256 * 1024
CONTENT = bytes(range(256)) * 3 * 1024 + b"end"
"""Three parts and a little more."""


def test_async_client_subscribes_and_cancels(emulator, busy, point_at):
    async def scenario() -> dict[str, Any]:
        async with open_async_client() as client:
            handle = await client.submit(APPLICATION, point_at(busy))
            await handle.cancel()
            assert isinstance(await handle.status(), fal_client.Completed)
            return dict(await client.subscribe(APPLICATION, point_at(emulator)))

    assert asyncio.run(scenario())["seed"] == 7


def test_async_client_sees_positions_logs_and_cancels(busy, point_at):
    async def scenario() -> tuple[fal_client.Status, fal_client.Status]:
        async with open_async_client() as client:
            first = await client.submit(APPLICATION, point_at(busy))
            second = await client.submit(APPLICATION, point_at(busy), priority="low")
            before = await client.status(APPLICATION, second.request_id, with_logs=True)
            await client.cancel(APPLICATION, second.request_id)
            await first.cancel()
            return before, await client.status(APPLICATION, second.request_id)

    before, after = asyncio.run(scenario())
    assert isinstance(before, fal_client.Queued)
    assert before.position == 1
    assert isinstance(after, fal_client.Completed)
    assert after.error_type == "client_cancelled"


def test_async_client_raises_on_refused_input(quick, point_at):
    async def scenario() -> None:
        async with open_async_client() as client:
            handle = await client.submit(APPLICATION, {**point_at(quick), "num_frames": 1})
            await client.result(APPLICATION, handle.request_id)

    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        asyncio.run(scenario())
    assert caught.value.status_code == 422
    assert caught.value.response.json()["detail"][0]["type"] == "greater_than_equal"


def test_async_client_submits_again_after_a_lost_reply(faulty, point_at):
    async def scenario() -> None:
        async with open_async_client() as client:
            await client.submit(APPLICATION, arguments)

    arguments = {**point_at(faulty), "prompt": "paid twice by fal's async client"}
    faulty.order({"point": "submit", "kind": "execute_then_drop", "times": 1})
    asyncio.run(scenario())
    ledger = faulty.client.get("/_emulator/ledger").json()["by_input"]
    [entry] = [one for one in ledger if one["prompt"] == arguments["prompt"]]
    assert entry["submissions"] == 2


# ------------------------------------------------------------------ uploads


@pytest.fixture
def small_parts(monkeypatch):
    """Whatever is longer than a part goes up in parts."""
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", CHUNK_BYTES)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", CHUNK_BYTES)


@pytest.fixture
def upload_both(point_at, quick, tmp_path):
    """Uploads the content from memory and from a file; the URLs."""

    async def upload_both() -> list[str]:
        path = tmp_path / "my clip.mp4"
        path.write_bytes(CONTENT)
        async with open_async_client() as client:
            first = await client.upload(CONTENT, "video/mp4", "clip.mp4")
            return [first, await client.upload_file(path)]

    point_at(quick)
    return upload_both


def test_async_client_uploads_bytes_and_a_file(quick, upload_both):
    urls = asyncio.run(upload_both())
    assert [get(url).content for url in urls] == [CONTENT] * 2
    assert [find_upload(quick, url)["multipart"] for url in urls] == [False] * 2


def test_async_client_uploads_in_parts(quick, small_parts, upload_both):
    urls = asyncio.run(upload_both())
    assert [get(url).content for url in urls] == [CONTENT] * 2
    assert [find_upload(quick, url)["parts"] for url in urls] == [4, 4]


def test_async_client_extends_what_it_uploaded(emulator, point_at, sample):
    async def scenario() -> dict[str, Any]:
        async with open_async_client() as client:
            url = await client.upload_file(sample)
            arguments = {**point_at(emulator), "video_url": url}
            return dict(await client.subscribe(APPLICATION, arguments))

    point_at(emulator)
    assert asyncio.run(scenario())["video"]["num_frames"] == 28
