"""The HTTP server: routes, key check, and the parts behind them put together."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from emulator.access import LEAKS, SEAL, STORAGE
from emulator.accounts import ACCOUNTS, Accounts
from emulator.billing import add_billing_routes
from emulator.catalog import PRICE, add_catalog_routes
from emulator.cdn import serve_file
from emulator.control import KEYS, add_control_routes
from emulator.delivery import Courier
from emulator.faults import Fault, Faults
from emulator.file_routes import add_file_routes
from emulator.hooks import Hooks
from emulator.leaks import Leaks
from emulator.listing import add_listing_routes
from emulator.model import ExtendVideo
from emulator.page import add_page_routes
from emulator.posts import POSTS
from emulator.queue import Queue
from emulator.queue_routes import QUEUE, add_queue_routes
from emulator.records import FalRequest
from emulator.seal import Seal
from emulator.signing import KeyRing
from emulator.spoiling import (
    FAULTS,
    HOOKS,
    answer,
    compose_platform_error,
    spoil_date,
    spoil_output,
)
from emulator.storage import Storage
from emulator.stream import KEEP_ALIVE, add_stream_routes
from emulator.upload_routes import UPLOADS, add_upload_routes
from emulator.uploads import Uploads

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 * 1024 * 1024
"""fal documents no limit; this one is for data URIs."""
OPEN_PATHS = ("/", "/healthz", "/v1/meta", "/v1/models", "/api/openapi/queue/openapi.json")
OPEN_PREFIXES = ("/files/", "/upload/", "/.well-known/", "/_emulator/")
"""No key needed. What lies under the first two wants other proof, or none."""


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    directory: Path
    key: str
    user_id: str
    other_keys: tuple[str, ...]
    admin_key: str
    unit_price: Decimal
    queue_time: timedelta
    run_time: timedelta
    concurrency: int
    webhook_retry: timedelta
    webhook_concurrency: int
    result_time: timedelta
    large_result_time: timedelta
    keep_alive: timedelta
    in_a_hurry: bool
    faults: tuple[Fault, ...]
    seed: int


OPTIONS = web.AppKey("options", Options)


ROUTES = (
    add_page_routes,
    add_control_routes,
    add_listing_routes,
    add_catalog_routes,
    add_billing_routes,
    add_upload_routes,
    add_file_routes,
    add_stream_routes,
    add_queue_routes,  # last: it takes every POST
)


def build_app(options: Options) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[check_key])
    app[OPTIONS] = options
    app[STORAGE] = Storage(options.directory)
    app[UPLOADS] = Uploads(app[STORAGE])
    app[SEAL], app[LEAKS] = Seal(), Leaks()
    app[ACCOUNTS] = Accounts.from_keys(
        options.key, options.user_id, options.other_keys, options.admin_key
    )
    app[PRICE] = options.unit_price
    app[POSTS] = []
    app[KEEP_ALIVE] = options.keep_alive
    app[KEYS] = KeyRing(options.directory / "signing-key", options.user_id)
    app[FAULTS] = Faults(options.faults, seed=options.seed)
    app[HOOKS] = Hooks()
    app.router.add_get("/healthz", show_health)
    app.router.add_get("/.well-known/jwks.json", show_keys)
    app.router.add_get("/files/{name:.+}", serve_file)
    for add_routes in ROUTES:
        add_routes(app)
    app.on_response_prepare.append(spoil_date)
    app.cleanup_ctx.append(run_queue)
    return app


async def run_queue(app: web.Application) -> AsyncIterator[None]:
    """The queue, the model and the courier live as long as the server."""
    options = app[OPTIONS]
    hurry = options.in_a_hurry
    model = ExtendVideo(app[STORAGE], options.run_time, options.concurrency, in_a_hurry=hurry)
    courier = Courier(
        app[KEYS],
        app[FAULTS],
        app[HOOKS],
        retry=options.webhook_retry,
        concurrency=options.webhook_concurrency,
    )

    def announce(request: FalRequest) -> None:
        fault = app[FAULTS].take("output", request)
        if fault is not None:
            spoil_output(request, fault)
        courier.dispatch(request)

    app[QUEUE] = Queue(
        concurrency=options.concurrency,
        queue_time=options.queue_time,
        run=model.run,
        on_completed=announce,
        result_time=options.result_time,
        large_result_time=options.large_result_time,
    )
    yield
    await app[HOOKS].close()
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
    """`Authorization: Key …`, as fal wants it, on all that is the queue's or the platform's."""
    is_open = request.path in OPEN_PATHS or request.path.startswith(OPEN_PREFIXES)
    if is_open or request.app[ACCOUNTS].find(request) is not None:
        return await handler(request)
    message = "Cannot access application without a key"
    if request.path.startswith("/v1/"):
        return web.json_response(compose_platform_error(401, message), status=401)
    return web.json_response({"detail": message}, status=401)


async def show_health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def show_keys(request: web.Request) -> web.Response:
    def compose(_fault: Fault | None) -> web.Response:
        return web.json_response(request.app[KEYS].signer.publish_keys())

    return await answer(request, "jwks", None, compose)
