"""The HTTP server: routes, key check, and the parts behind them put together."""

import asyncio
import hmac
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from emulator.cdn import STORAGE, serve_file
from emulator.delivery import Courier
from emulator.model import ExtendVideo
from emulator.queue import Queue
from emulator.queue_routes import QUEUE, add_queue_routes
from emulator.signing import Signer
from emulator.storage import Storage

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 * 1024 * 1024
"""fal documents no limit; this one is for data URIs."""
OPEN_PATHS = ("/files/", "/.well-known/", "/_emulator/", "/healthz")


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    directory: Path
    key: str
    user_id: str
    queue_time: timedelta
    run_time: timedelta
    concurrency: int
    webhook_retry: timedelta


OPTIONS = web.AppKey("options", Options)
SIGNER = web.AppKey("signer", Signer)


def build_app(options: Options) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[check_key])
    app[OPTIONS] = options
    app[STORAGE] = Storage(options.directory)
    app[SIGNER] = Signer.from_file(options.directory / "signing-key", options.user_id)
    app.router.add_get("/healthz", show_health)
    app.router.add_get("/.well-known/jwks.json", show_keys)
    app.router.add_get("/_emulator/requests", show_requests)
    app.router.add_get("/_emulator/ledger", show_ledger)
    app.router.add_get("/files/{name:.+}", serve_file)
    add_queue_routes(app)
    app.cleanup_ctx.append(run_queue)
    return app


async def run_queue(app: web.Application) -> AsyncIterator[None]:
    """The queue, the model and the courier live as long as the server."""
    options = app[OPTIONS]
    model = ExtendVideo(app[STORAGE], options.run_time, options.concurrency)
    async with aiohttp.ClientSession() as session:
        courier = Courier(session, app[SIGNER], options.webhook_retry)
        app[QUEUE] = Queue(
            concurrency=options.concurrency,
            queue_time=options.queue_time,
            run=model.run,
            on_completed=courier.dispatch,
        )
        yield
        await app[QUEUE].close()
        await courier.close()
        model.close()


async def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; print the address once it can be used."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runner = web.AppRunner(build_app(options), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"emulator listening on http://{host}:{runner.addresses[0][1]}", flush=True)  # noqa: T201 - the ready line
        await ended.wait()
        logger.info("ending")
    finally:
        await runner.cleanup()


@web.middleware
async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
    """`Authorization: Key …`, as fal wants it, on all that is the queue's."""
    expected = f"Key {request.app[OPTIONS].key}".encode()
    given = request.headers.get("Authorization", "").encode()
    if request.path.startswith(OPEN_PATHS) or hmac.compare_digest(given, expected):
        return await handler(request)
    return web.json_response({"detail": "Cannot access application without a key"}, status=401)


async def show_health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def show_keys(request: web.Request) -> web.Response:
    return web.json_response(request.app[SIGNER].publish_keys())


async def show_requests(request: web.Request) -> web.Response:
    return web.json_response([one.to_json() for one in request.app[QUEUE].requests])


async def show_ledger(request: web.Request) -> web.Response:
    """What a bill would show: a charge for each run that was started."""
    requests = request.app[QUEUE].requests
    by_request = {one.request_id: {"charges": int(one.is_charged)} for one in requests}
    charges = sum(one.is_charged for one in requests)
    ledger = {"submissions": len(requests), "charges": charges, "by_request": by_request}
    return web.json_response(ledger)
