"""`…/status/stream`: a status object whenever something changed, as server-sent events.

Log entries come once each, as fal's JavaScript client adds them up. COMPLETED ends the stream.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta

from aiohttp import web

from emulator.faults import Fault
from emulator.queue import Queue
from emulator.queue_routes import QUEUE, describe, find_request, wants_logs
from emulator.records import FalRequest, Status
from emulator.spoiling import FAULTS, HOOKS, REFUSALS, refuse

KEEP_ALIVE = web.AppKey("keep_alive", timedelta)
LOOK_SECONDS = 0.02
"""How often a request is looked at; nothing tells of its changes."""


def add_stream_routes(app: web.Application) -> None:
    app.router.add_get(
        r"/{endpoint:.+}/requests/{request_id:[^/]+}/status/stream{slash:/?}", stream_status
    )


async def stream_status(request: web.Request) -> web.StreamResponse:
    fal_request = find_request(request)
    await request.app[HOOKS].reach("stream_received", fal_request)
    fault = request.app[FAULTS].take("stream", fal_request)
    if fault is not None and fault.kind in REFUSALS:
        return await refuse(request, fault)
    headers = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "x-fal-request-id": fal_request.request_id,
    }
    response = web.StreamResponse(headers=headers)
    with contextlib.suppress(ConnectionError):  # the caller may hang up
        await response.prepare(request)
        await send_events(request, response, fal_request, fault)
        await response.write_eof()
    return response


async def send_events(
    request: web.Request, response: web.StreamResponse, fal_request: FalRequest, fault: Fault | None
) -> None:
    changes = Changes(fal_request, request.app[QUEUE], with_logs=wants_logs(request))
    async for text in follow(changes, request.app[KEEP_ALIVE]):
        await response.write(text)
        if fault is not None and changes.told >= fault.options["events"]:
            response.force_close()
            if request.transport is not None:
                request.transport.abort()
            return


async def follow(changes: "Changes", keep_alive: timedelta) -> AsyncIterator[bytes]:
    """What goes over the wire: events, and comments where there was nothing to say for long."""
    loop = asyncio.get_running_loop()
    last = loop.time()
    while True:
        status = changes.take()
        if status is not None:
            last = loop.time()
            yield f"data: {json.dumps(status)}\n\n".encode()
            if status["status"] == Status.COMPLETED:
                return
        elif loop.time() - last >= keep_alive.total_seconds():
            last = loop.time()
            yield b": keep-alive\n\n"
        await asyncio.sleep(LOOK_SECONDS)


class Changes:
    """What there is to tell of a request that was not told yet."""

    def __init__(self, fal_request: FalRequest, queue: Queue, *, with_logs: bool) -> None:
        self._fal_request = fal_request
        self._queue = queue
        self._with_logs = with_logs
        self._logs = 0
        self._last: dict[str, object] | None = None
        self.told = 0
        """How many events so far."""

    def take(self) -> dict[str, object] | None:
        """The status object with the new log entries; None if nothing is new."""
        status = describe(self._fal_request, self._queue)
        entries = self._fal_request.log_entries[self._logs :] if self._with_logs else []
        if status == self._last and not entries:
            return None
        self._last, self._logs = status, self._logs + len(entries)
        self.told += 1
        logs = [entry.to_json() for entry in entries] if self._with_logs else None
        return {**status, "logs": logs}
