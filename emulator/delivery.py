"""Webhooks: signed, repeated until somebody answers, every POST on record."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import aiohttp

from emulator.records import Delivery, FalRequest, Outcome
from emulator.signing import Signer

logger = logging.getLogger(__name__)

RETRIES = 10
FIRST_TIMEOUT = timedelta(seconds=15)
LATER_TIMEOUT = timedelta(seconds=120)


class Courier:
    """Posts the completion of a request to its webhook URL.

    Timeouts, network errors, 4xx and 5xx are tried again, each wait twice the one before; a
    redirect is never followed and ends the matter, as at fal (docs: Webhooks).
    """

    def __init__(self, session: aiohttp.ClientSession, signer: Signer, retry: timedelta) -> None:
        self._session = session
        self._signer = signer
        self._retry = retry
        self._tasks: set[asyncio.Task[None]] = set()

    def dispatch(self, request: FalRequest) -> None:
        """Start delivering, in the background."""
        if request.webhook_url is None or request.outcome is None:
            return
        body = json.dumps(compose_webhook(request, request.outcome)).encode()
        task = asyncio.create_task(self._deliver(request, request.webhook_url, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, request: FalRequest, url: str, body: bytes) -> None:
        patience = FIRST_TIMEOUT
        for attempt in range(RETRIES + 1):
            delivery = await self._post(request, url, body, patience)
            request.deliveries.append(delivery)
            answer = delivery.status_code or delivery.error
            logger.info("webhook %s attempt %d: %s", request.request_id, attempt + 1, answer)
            if not is_worth_repeating(delivery):
                return
            patience = LATER_TIMEOUT
            await asyncio.sleep(self._retry.total_seconds() * 2**attempt)

    async def _post(
        self, request: FalRequest, url: str, body: bytes, patience: timedelta
    ) -> Delivery:
        at = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            **self._signer.sign(request.request_id, body),
        }
        limit = aiohttp.ClientTimeout(total=patience.total_seconds())
        post = self._session.post(
            url, data=body, headers=headers, allow_redirects=False, timeout=limit
        )
        try:
            async with post as response:
                return Delivery(at, response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Delivery(at, None, f"{type(error).__name__}: {error}")


def compose_webhook(request: FalRequest, outcome: Outcome) -> dict[str, object]:
    body: dict[str, object] = {
        "request_id": request.request_id,
        "gateway_request_id": request.request_id,
        "status": "OK",
        "payload": outcome.body,
    }
    if outcome.error is not None:
        body |= {"status": "ERROR", "error": f"Invalid status code: {outcome.status_code}"}
    return body


def is_worth_repeating(delivery: Delivery) -> bool:
    return delivery.status_code is None or delivery.status_code >= 400  # noqa: PLR2004 - 4xx, 5xx
