"""Webhooks: signed, repeated until somebody answers, every POST on record."""

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import aiohttp

from emulator.faults import Fault, Faults
from emulator.hooks import Hooks
from emulator.letters import SPOILERS, Letter, spoil_letter, write_letter
from emulator.records import Delivery, FalRequest
from emulator.signing import KeyRing

logger = logging.getLogger(__name__)

RETRIES = 10
FIRST_TIMEOUT = timedelta(seconds=15)
LATER_TIMEOUT = timedelta(seconds=120)


class Courier:
    """Posts the completion of a request to its webhook URL, at most `concurrency` at once.

    Timeouts, network errors, 4xx and 5xx are tried again, each wait twice the one before; a
    redirect is never followed and ends the matter, as at fal (docs: Webhooks).
    """

    def __init__(
        self, keys: KeyRing, faults: Faults, hooks: Hooks, *, retry: timedelta, concurrency: int
    ) -> None:
        self._keys = keys
        self._faults = faults
        self._hooks = hooks
        self._retry = retry
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency))
        self._free_hands = asyncio.Semaphore(concurrency)
        self._overtaken: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def dispatch(self, request: FalRequest) -> None:
        """Start delivering, in the background."""
        task = asyncio.create_task(self._serve(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _serve(self, request: FalRequest) -> None:
        try:
            if request.webhook_url is not None and request.outcome is not None:
                letter = write_letter(request, request.outcome)
                fault = self._faults.take("webhook", request)
                await self._send(request, request.webhook_url, letter, fault)
        finally:
            request.announced.set()

    async def _send(
        self, request: FalRequest, url: str, letter: Letter, fault: Fault | None
    ) -> None:
        """Deliver the letter as the fault wants: never, often, later, or spoiled."""
        kind = fault.kind if fault else None
        options = fault.options if fault else {}
        if kind == "lost":
            logger.info("webhook %s lost by order", request.request_id)
            return
        if fault is not None and kind in SPOILERS:
            await self._deliver(request, url, spoil_letter(letter, fault))
            if not options["also"]:
                return
        if kind == "delay":
            await asyncio.sleep(options["seconds"])
        if kind == "reorder":
            await self._wait_to_be_overtaken(options["seconds"])
        copies = options["count"] if kind == "repeat" else 1
        await asyncio.gather(*(self._deliver(request, url, letter) for _ in range(copies)))

    async def _wait_to_be_overtaken(self, seconds: float) -> None:
        """Who comes while another waits does not wait, so that in the end pairs are swapped."""
        if self._overtaken is not None:
            return
        overtaken = self._overtaken = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await overtaken.wait()
        except TimeoutError:
            self._overtaken = None

    async def _deliver(self, request: FalRequest, url: str, letter: Letter) -> None:
        answer_within = FIRST_TIMEOUT
        for attempt in range(RETRIES + 1):
            delivery = await self._post(request, url, letter, answer_within)
            if attempt == 0:
                self._let_overtaken_go()
            answer = delivery.status_code or delivery.error
            logger.info("webhook %s attempt %d: %s", request.request_id, attempt + 1, answer)
            if not letter.is_persistent or not is_worth_repeating(delivery):
                return
            answer_within = LATER_TIMEOUT
            await asyncio.sleep(self._retry.total_seconds() * 2**attempt)

    def _let_overtaken_go(self) -> None:
        if self._overtaken is not None:
            self._overtaken.set()
            self._overtaken = None

    async def _post(
        self, request: FalRequest, url: str, letter: Letter, answer_within: timedelta
    ) -> Delivery:
        await self._hooks.reach("webhook_sending", request)
        async with self._free_hands:
            delivery = await self._post_now(request, url, letter, answer_within)
        request.deliveries.append(delivery)
        request.announced.set()
        await self._hooks.reach("webhook_sent", request)
        return delivery

    async def _post_now(
        self, request: FalRequest, url: str, letter: Letter, answer_within: timedelta
    ) -> Delivery:
        at = datetime.now(UTC)
        signer = replace(self._keys.signer, user_id=request.account)
        seal = letter.seal(signer, request.request_id, letter.body)
        headers = {"Content-Type": "application/json", **seal}
        limit = aiohttp.ClientTimeout(total=answer_within.total_seconds())
        post = self._session.post(
            url, data=letter.body, headers=headers, allow_redirects=False, timeout=limit
        )
        try:
            async with post as response:
                return Delivery(at, response.status, fault=letter.fault)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Delivery(at, None, f"{type(error).__name__}: {error}", letter.fault)


def is_worth_repeating(delivery: Delivery) -> bool:
    return delivery.status_code is None or delivery.status_code >= 400  # noqa: PLR2004 - 4xx, 5xx
