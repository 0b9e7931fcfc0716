"""fal's queue over HTTP: submit, status, result, cancel.

Follow-up URLs are returned in the short form (owner and app only) and accepted in every form
that fal's pages show: short, with the model's full path, and the result with `/response`.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import Mapping
from datetime import timedelta

from aiohttp import web

from emulator.accounts import ACCOUNTS
from emulator.faults import Fault
from emulator.lifecycle import OUTPUT_HEADERS, Lifecycle
from emulator.posts import POSTS, Post
from emulator.problems import ModelError, Problem
from emulator.queue import CancelAnswer, Queue
from emulator.records import FalRequest, Outcome, Status
from emulator.spoiling import (
    BROKEN_OFF,
    FAULTS,
    HOOKS,
    REFUSALS,
    answer,
    malform,
    refuse,
    set_headers,
)

QUEUE = web.AppKey("queue", Queue)
ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
APP = "fal-ai/ltx-2.3-22b"
SHORTEST_START_TIMEOUT = timedelta(seconds=0.1)
UNSEEN = ("crowded", "slow")
"""Faults of a submission that do not show in its reply."""
KEPT_HEADERS = ("user-agent", "content-type", "idempotency-key")
KEPT_PREFIXES = ("x-fal-", "x-app-fal-")


def add_queue_routes(app: web.Application) -> None:
    one = r"/{endpoint:.+}/requests/{request_id:[^/]+}"
    app.router.add_get(one + "/status{slash:/?}", show_status)
    app.router.add_put(one + "/cancel{slash:/?}", cancel)
    app.router.add_get(one + "/response{slash:/?}", show_result)
    app.router.add_get(one + "{slash:/?}", show_result)
    app.router.add_post(r"/{endpoint:.+?}{slash:/?}", submit)


async def submit(request: web.Request) -> web.StreamResponse:
    endpoint = request.match_info["endpoint"]
    if endpoint != ENDPOINT:
        return refuse_application(endpoint)
    post = Post()
    request.app[POSTS].append(post)
    reply = await read_and_accept(request, post)
    post.status_code = None if BROKEN_OFF in request else reply.status
    return reply


async def read_and_accept(request: web.Request, post: Post) -> web.StreamResponse:
    try:
        body = parse_body(await request.read())
        limit = parse_queue_limit(request.query.get("fal_max_queue_length"))
        post.request = fal_request = FalRequest(
            origin=f"{request.scheme}://{request.host}",
            input=body,
            headers=keep_headers(request.headers),
            account=request.app[ACCOUNTS].find(request) or "",
            webhook_url=request.query.get("fal_webhook") or None,
            is_low_priority=request.headers.get("X-Fal-Queue-Priority", "").lower() == "low",
            start_timeout=parse_start_timeout(request.headers),
            lifecycle=Lifecycle.from_headers(request.headers, OUTPUT_HEADERS),
        )
    except ModelError as error:
        return web.json_response(error.to_json(), status=422)
    except ValueError as error:
        return _answer(Outcome.from_platform(400, "bad_request", str(error)))
    return await accept(request, post, fal_request, limit)


async def accept(
    request: web.Request, post: Post, fal_request: FalRequest, limit: int | None
) -> web.StreamResponse:
    """Queue the request and send the reply, unless hooks or faults have it otherwise."""
    hooks, queue = request.app[HOOKS], request.app[QUEUE]
    await hooks.reach("submit_received", fal_request)
    fault = request.app[FAULTS].take("submit", fal_request)
    if fault is not None and fault.kind in REFUSALS:
        return await refuse(request, fault)
    if limit is not None and count_waiting(queue, fault) > limit:
        return web.json_response({"detail": f"More than {limit} requests are waiting"}, status=429)
    if fault is not None and fault.kind == "slow":
        fal_request.least_wait = timedelta(seconds=fault.options["queue_seconds"])
        fal_request.least_run = timedelta(seconds=fault.options["run_seconds"])
    queue.submit(fal_request)
    post.is_accepted = True
    headers = {"x-fal-request-id": fal_request.request_id}
    reply = web.json_response(describe(fal_request, queue), headers=headers)
    await hooks.reach("submit_queued", fal_request)
    await hold_for_webhook(request, fal_request)
    if fault is not None:
        reply = await spoil_reply(request, fault, reply)
    with contextlib.suppress(ConnectionError):  # nobody is there any more
        await reply.prepare(request)
        await reply.write_eof()
        hooks.note("submit_replied", fal_request)
    return reply


def count_waiting(queue: Queue, fault: Fault | None) -> int:
    """Of all callers: with the fault `crowded` there are others."""
    others = fault.options["waiting"] if fault is not None and fault.kind == "crowded" else 0
    return queue.waiting_count + int(others)


async def hold_for_webhook(request: web.Request, fal_request: FalRequest) -> None:
    """With the fault `webhook/early` the webhook is answered before the submission is."""
    if fal_request.webhook_url is None:
        return
    fault = request.app[FAULTS].take("webhook", fal_request, is_early=True)
    if fault is None:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(fault.options["seconds"]):
            await fal_request.announced.wait()


async def spoil_reply(request: web.Request, fault: Fault, reply: web.Response) -> web.Response:
    """The reply to a submission that was queued all the same."""
    if fault.kind in UNSEEN:
        return reply
    if fault.kind == "late":
        await asyncio.sleep(fault.options["seconds"])
        return reply
    if fault.kind == "malformed":
        return malform(reply, fault.options["form"])
    if fault.kind == "foreign_urls":
        own = f"{request.scheme}://{request.host}/"
        reply.text = (reply.text or "").replace(own, fault.options["base"].rstrip("/") + "/")
        return reply
    return await refuse(request, fault)


async def show_status(request: web.Request) -> web.Response:
    """202 until the request is COMPLETED, then 200: fal's own package waits for the code."""
    fal_request = find_request(request)
    headers = {"x-fal-request-id": fal_request.request_id}

    def compose(fault: Fault | None) -> web.Response:
        reply = describe(fal_request, request.app[QUEUE], with_logs=wants_logs(request))
        if fault is not None and fault.kind == "stuck":
            reply = pretend_progress(reply)
        code = 200 if reply["status"] == Status.COMPLETED else 202
        return web.json_response(reply, status=code, headers=headers)

    return await answer(request, "status", fal_request, compose)


async def show_result(request: web.Request) -> web.Response:
    fal_request = find_request(request)

    def compose(fault: Fault | None) -> web.Response:
        if fal_request.outcome is None:
            pending = {"detail": "Request is still in progress"}
            return web.json_response(pending, status=400)
        reply = _answer(fal_request.outcome, **{"x-fal-request-id": fal_request.request_id})
        if fault is not None and fault.kind == "headers":
            set_headers(reply, fault.options["headers"])
        return reply

    return await answer(request, "result", fal_request, compose)


async def cancel(request: web.Request) -> web.Response:
    fal_request = find_request(request)

    def compose(_fault: Fault | None) -> web.Response:
        said: CancelAnswer = request.app[QUEUE].cancel(fal_request)
        return web.json_response({"status": said.name}, status=said.value)

    return await answer(request, "cancel", fal_request, compose)


def find_request(request: web.Request) -> FalRequest:
    """The request the URL names.

    Raises web.HTTPNotFound: in fal's words; another app, an unknown, erased or another's id.
    """
    endpoint = request.match_info["endpoint"]
    if endpoint not in (APP, ENDPOINT):
        refusal = refuse_application(endpoint)
        raise web.HTTPNotFound(text=refusal.text, content_type="application/json")
    fal_request = request.app[QUEUE].find(request.match_info["request_id"])
    own = request.app[ACCOUNTS].find(request)
    if fal_request is None or fal_request.is_erased or fal_request.account != own:
        raise web.HTTPNotFound(text='{"status": "NOT_FOUND"}', content_type="application/json")
    return fal_request


def wants_logs(request: web.Request) -> bool:
    return request.query.get("logs", "").lower() in ("1", "true")


def describe(request: FalRequest, queue: Queue, *, with_logs: bool = False) -> dict[str, object]:
    """A status object, also the reply to a submission."""
    base = f"{request.origin}/{APP}/requests/{request.request_id}"
    status: dict[str, object] = {
        "status": request.status,
        "request_id": request.request_id,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "logs": [entry.to_json() for entry in request.log_entries] if with_logs else None,
        "metrics": {},
    }
    if request.status is Status.IN_QUEUE:
        status["queue_position"] = queue.count_ahead(request)
    if request.status is Status.COMPLETED:
        status["metrics"] = {"inference_time": request.inference_time.total_seconds()}
    if request.outcome is not None and request.outcome.error is not None:
        status |= {"error": request.outcome.error, "error_type": request.outcome.error_type}
    return status


def pretend_progress(reply: dict[str, object]) -> dict[str, object]:
    """The status object of a request that runs for ever, whatever became of it."""
    hidden = ("queue_position", "error", "error_type")
    shown = {name: value for name, value in reply.items() if name not in hidden}
    return shown | {"status": Status.IN_PROGRESS, "metrics": {}}


def refuse_application(endpoint: str) -> web.Response:
    name = endpoint.partition("/")[2] or endpoint
    return web.json_response({"detail": f'Application "{name}" not found'}, status=404)


def parse_body(raw: bytes) -> dict[str, object]:
    """The bare model input: whether its fields are right is the model's affair, later.

    Raises ValueError: not JSON.
    Raises ModelError: JSON, but no object.
    """
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Request body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ModelError(Problem("dict_type", (), "Input should be a valid dictionary", body))
    return body


def parse_queue_limit(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"fal_max_queue_length is not a whole number: {value!r}")
    return int(value)


def parse_start_timeout(headers: Mapping[str, str]) -> timedelta | None:
    """The newer header wins over its older name, which both official clients still send.

    Raises ValueError: not a number above 0.1.
    """
    for name in ("X-Fal-Request-Start-Timeout", "X-Fal-Request-Timeout"):
        if name not in headers:
            continue
        seconds = float(headers[name]) if _is_number(headers[name]) else 0.0
        if not SHORTEST_START_TIMEOUT.total_seconds() < seconds < timedelta.max.total_seconds():
            raise ValueError(f"{name} must be a number of seconds above 0.1: {headers[name]!r}")
        return timedelta(seconds=seconds)
    return None


def keep_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What is worth showing later. The key is not."""
    names = {name.lower(): value for name, value in headers.items()}
    return {
        name: value
        for name, value in sorted(names.items())
        if name in KEPT_HEADERS or name.startswith(KEPT_PREFIXES)
    }


def _answer(outcome: Outcome, **headers: str) -> web.Response:
    headers = {**outcome.headers, **headers}
    return web.json_response(outcome.body, status=outcome.status_code, headers=headers)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
