"""`/_emulator/…`: what no fal has. Look behind the scenes, order faults, stop the world."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from aiohttp import web

from emulator.access import LEAKS
from emulator.faults import parse_faults
from emulator.hooks import parse_hooks
from emulator.ledger import compose_ledger
from emulator.posts import POSTS
from emulator.queue_routes import QUEUE
from emulator.records import FalRequest
from emulator.signing import KeyRing
from emulator.spoiling import FAULTS, HOOKS
from emulator.upload_routes import UPLOADS

KEYS = web.AppKey("keys", KeyRing)
LONGEST_WAIT = 600.0

T = TypeVar("T")


def add_control_routes(app: web.Application) -> None:
    router = app.router
    router.add_get("/_emulator/requests", show_requests)
    router.add_get("/_emulator/requests/{request_id}", show_request)
    router.add_post("/_emulator/requests/{request_id}/erase", erase)
    router.add_get("/_emulator/ledger", show_ledger)
    router.add_get("/_emulator/uploads", show_uploads)
    router.add_get("/_emulator/leaks", show_leaks)
    router.add_delete("/_emulator/leaks", clear_leaks)
    router.add_post("/_emulator/rotate-keys", rotate_keys)
    router.add_get("/_emulator/faults", show_faults)
    router.add_put("/_emulator/faults", replace_faults)
    router.add_delete("/_emulator/faults", clear_faults)
    router.add_get("/_emulator/hooks", show_hooks)
    router.add_put("/_emulator/hooks", replace_hooks)
    router.add_delete("/_emulator/hooks", clear_hooks)
    router.add_get("/_emulator/hooks/held", show_held)
    router.add_post("/_emulator/hooks/{held_id}/release", release)


async def show_requests(request: web.Request) -> web.Response:
    return web.json_response([one.to_json() for one in request.app[QUEUE].requests])


async def show_request(request: web.Request) -> web.Response:
    return web.json_response(find_request(request).to_json())


async def erase(request: web.Request) -> web.Response:
    """As if the result's time were over."""
    fal_request = find_request(request)
    request.app[QUEUE].erase(fal_request)
    return web.json_response(fal_request.to_json())


async def rotate_keys(request: web.Request) -> web.Response:
    keys = request.app[KEYS]
    keys.rotate()
    return web.json_response(keys.signer.publish_keys())


async def show_ledger(request: web.Request) -> web.Response:
    posts = request.app[POSTS]
    return web.json_response(compose_ledger(request.app[QUEUE].requests, posts))


async def show_uploads(request: web.Request) -> web.Response:
    return web.json_response(request.app[UPLOADS].to_json())


async def show_leaks(request: web.Request) -> web.Response:
    """Keys and tokens that came to the wrong place."""
    return web.json_response(request.app[LEAKS].to_json())


async def clear_leaks(request: web.Request) -> web.Response:
    request.app[LEAKS].clear()
    return await show_leaks(request)


async def show_faults(request: web.Request) -> web.Response:
    return web.json_response(request.app[FAULTS].to_json())


async def replace_faults(request: web.Request) -> web.Response:
    request.app[FAULTS].replace(await read_body(request, parse_faults))
    return await show_faults(request)


async def clear_faults(request: web.Request) -> web.Response:
    request.app[FAULTS].replace(())
    return await show_faults(request)


async def show_hooks(request: web.Request) -> web.Response:
    return web.json_response(request.app[HOOKS].to_json())


async def replace_hooks(request: web.Request) -> web.Response:
    request.app[HOOKS].arm(await read_body(request, parse_hooks))
    return await show_hooks(request)


async def clear_hooks(request: web.Request) -> web.Response:
    request.app[HOOKS].disarm()
    return await show_hooks(request)


async def show_held(request: web.Request) -> web.Response:
    limit = timedelta(seconds=read_wait(request.query.get("wait", "0")))
    held = await request.app[HOOKS].wait_for_held(limit)
    return web.json_response([one.to_json() for one in held])


async def release(request: web.Request) -> web.Response:
    held_id = request.match_info["held_id"]
    if not request.app[HOOKS].release(held_id):
        return web.json_response({"detail": f"Nobody is held as {held_id!r}"}, status=404)
    return web.json_response({"released": held_id})


def find_request(request: web.Request) -> FalRequest:
    """Raises web.HTTPNotFound: there never was such a request."""
    fal_request = request.app[QUEUE].find(request.match_info["request_id"])
    if fal_request is None:
        raise web.HTTPNotFound(
            text='{"detail": "No such request"}', content_type="application/json"
        )
    return fal_request


async def read_body(request: web.Request, parse: Callable[[object], T]) -> T:
    """Raises web.HTTPBadRequest: with the reason."""
    try:
        return parse(json.loads(await request.read()))
    except ValueError as error:
        raise refuse(error) from error


def read_wait(text: str) -> float:
    """Raises web.HTTPBadRequest: not a number of seconds from 0 to 600."""
    try:
        seconds = float(text)
    except ValueError as error:
        raise refuse(error) from error
    if not 0 <= seconds <= LONGEST_WAIT:
        raise refuse(f"wait must be a number from 0 to {LONGEST_WAIT:.0f}, not {text!r}")
    return seconds


def refuse(reason: object) -> web.HTTPBadRequest:
    body = json.dumps({"detail": str(reason)})
    return web.HTTPBadRequest(text=body, content_type="application/json")
