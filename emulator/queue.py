"""The waiting line: who is next, who is running, and every way a request can end.

    IN_QUEUE ──► IN_PROGRESS ──► COMPLETED      run, whatever the model said
        └──────────────────────► COMPLETED      cancelled, or not started in time

Everything happens on the event loop, so a method without `await` is atomic.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum

from emulator.records import FalRequest, Outcome, Status

logger = logging.getLogger(__name__)

LARGE_BYTES = 10_000
"""From this size on a result is known for a shorter time."""
STORED_TIME = timedelta(days=30)

Run = Callable[[FalRequest], Awaitable[Outcome]]


class CancelAnswer(Enum):
    """fal's words and codes for the answer to a cancellation (docs: Queue, cancel)."""

    CANCELLATION_REQUESTED = 202
    ALREADY_COMPLETED = 400


class Queue:
    """At most `concurrency` runs at once; each waits at least `queue_time` before it starts.

    A result is known for `result_time` after completion, or for `large_result_time` if it is long;
    for a month if it was to be stored (docs: Queue, result).
    """

    def __init__(
        self,
        *,
        concurrency: int,
        queue_time: timedelta,
        run: Run,
        on_completed: Callable[[FalRequest], None],
        result_time: timedelta = timedelta(hours=1),
        large_result_time: timedelta = timedelta(minutes=6),
    ) -> None:
        self._concurrency = concurrency
        self._queue_time = queue_time
        self._run = run
        self._on_completed = on_completed
        self._result_time = result_time
        self._large_result_time = large_result_time
        self._requests: dict[str, FalRequest] = {}
        self._by_file: dict[str, FalRequest] = {}
        self._waiting: list[FalRequest] = []
        self._ripe: set[str] = set()
        self._running: dict[asyncio.Future[Outcome], FalRequest] = {}

    @property
    def requests(self) -> tuple[FalRequest, ...]:
        """All requests, oldest first."""
        return tuple(self._requests.values())

    @property
    def concurrency(self) -> int:
        return self._concurrency

    @property
    def running(self) -> tuple[FalRequest, ...]:
        """Longest first."""
        return tuple(self._running.values())

    @property
    def waiting(self) -> tuple[FalRequest, ...]:
        """In the order in which they will be started."""
        return tuple(self._waiting)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def find(self, request_id: str) -> FalRequest | None:
        return self._requests.get(request_id)

    def find_by_file(self, name: str) -> FalRequest | None:
        """The request whose result the CDN serves under this name."""
        return self._by_file.get(name)

    def renew_file(self, request: FalRequest, name: str) -> None:
        """Let the result name its video by another URL."""
        outcome = request.outcome
        if outcome is None or not isinstance(video := outcome.body.get("video"), Mapping):
            return
        url = f"{request.origin}/files/{name}"
        body = {**outcome.body, "video": {**video, "url": url}}
        request.outcome = replace(outcome, body=body, file=name)
        self._by_file[name] = request

    def count_ahead(self, request: FalRequest) -> int:
        """How many waiting requests will be started before this one."""
        return self._waiting.index(request)

    def submit(self, request: FalRequest) -> None:
        """Put the request in line: normal priority goes before all of low priority."""
        self._requests[request.request_id] = request
        place = len(self._waiting)
        if not request.is_low_priority:
            place = sum(not other.is_low_priority for other in self._waiting)
        self._waiting.insert(place, request)
        loop = asyncio.get_running_loop()
        wait = max(self._queue_time, request.least_wait)
        loop.call_later(wait.total_seconds(), self._ripen, request)
        if request.start_timeout is not None:
            loop.call_later(request.start_timeout.total_seconds(), self._expire, request)
        logger.info("queued %s", request.request_id)

    def cancel(self, request: FalRequest) -> CancelAnswer:
        """Remove a waiting request. A running one is asked to stop, and is free not to."""
        if request.status is Status.COMPLETED:
            return CancelAnswer.ALREADY_COMPLETED
        request.is_cancel_requested = True
        logger.info("cancel requested %s", request.request_id)
        if request in self._waiting:
            self._waiting.remove(request)
            message = "Request was cancelled by the client"
            self._complete(request, Outcome.from_platform(499, "client_cancelled", message))
        return CancelAnswer.CANCELLATION_REQUESTED

    def erase(self, request: FalRequest) -> None:
        """Forget the request, as seen from outside."""
        request.is_erased = True
        logger.info("erased %s", request.request_id)

    async def close(self) -> None:
        """Abandon what waits and what runs; nothing is completed any more."""
        self._waiting.clear()
        tasks = list(self._running)
        for task in tasks:
            task.remove_done_callback(self._finish)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ripen(self, request: FalRequest) -> None:
        self._ripe.add(request.request_id)
        self._start_ripe()

    def _start_ripe(self) -> None:
        while len(self._running) < self._concurrency:
            ripe = (one for one in self._waiting if one.request_id in self._ripe)
            request = next(ripe, None)
            if request is None:
                return
            self._start(request)

    def _start(self, request: FalRequest) -> None:
        self._waiting.remove(request)
        self._ripe.discard(request.request_id)
        request.status = Status.IN_PROGRESS
        request.started_at = datetime.now(UTC)
        logger.info("started %s", request.request_id)
        task = asyncio.ensure_future(self._run(request))
        self._running[task] = request
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Future[Outcome]) -> None:
        request = self._running.pop(task)
        if error := task.exception():
            logger.error("run of %s broke", request.request_id, exc_info=error)
            message = "Internal server error"
            self._complete(request, Outcome.from_platform(500, "internal_error", message))
        else:
            self._complete(request, task.result())
        self._start_ripe()

    def _expire(self, request: FalRequest) -> None:
        """A request not started within the caller's own limit ends as 504 (docs: Queue)."""
        if request not in self._waiting:
            return
        self._waiting.remove(request)
        message = "Request was not started within its start timeout"
        caller = {"X-Fal-Request-Timeout-Type": "user"}
        self._complete(request, Outcome.from_platform(504, "request_timeout", message, **caller))

    def _complete(self, request: FalRequest, outcome: Outcome) -> None:
        request.status = Status.COMPLETED
        request.completed_at = datetime.now(UTC)
        request.outcome = outcome
        if outcome.file is not None:
            self._by_file[outcome.file] = request
        known = self._choose_result_time(request, outcome)
        asyncio.get_running_loop().call_later(known.total_seconds(), self.erase, request)
        logger.info("completed %s %d", request.request_id, outcome.status_code)
        self._on_completed(request)

    def _choose_result_time(self, request: FalRequest, outcome: Outcome) -> timedelta:
        if request.is_stored:
            return STORED_TIME
        is_large = len(json.dumps(outcome.body)) >= LARGE_BYTES
        return self._large_result_time if is_large else self._result_time
