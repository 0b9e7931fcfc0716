"""What it takes to point fal's own Python client at an emulator."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fal_client

APPLICATION = "fal-ai/ltx-2.3-22b/extend-video"
ADDRESSES = {"QUEUE_URL_FORMAT": "/", "RUN_URL_FORMAT": "/", "REST_URL": "", "CDN_URL": ""}
"""The client's constants, and what each wants after the emulator's address."""


@asynccontextmanager
async def open_async_client() -> AsyncIterator[fal_client.AsyncClient]:
    client = fal_client.AsyncClient()
    try:
        yield client
    finally:
        await (await client._client).aclose()
