"""What hooks and faults make of an HTTP request: hold it, refuse it, hang, break off, garble."""

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

from emulator.faults import Fault, Faults
from emulator.hooks import Hooks
from emulator.problems import ModelError, Problem
from emulator.records import FalRequest, Outcome

FAULTS = web.AppKey("faults", Faults)
HOOKS = web.AppKey("hooks", Hooks)

Compose = Callable[[Fault | None], web.Response]
"""Makes the genuine reply. It obeys the faults that only it can: the others are not its affair."""

BROKEN_OFF = "broken_off"
"""Set in a request whose connection was closed instead of an answer."""
REFUSALS = ("status", "ingress", "hang", "drop")
OK = 200
NOT_FOUND = 404
UNPROCESSABLE = 422
SERVER_ERROR = 500
DETAILS = {
    400: "Bad request",
    401: "Cannot access application without a key",
    403: "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard.",
    404: "Not found",
    429: "Too many requests",
}
ERROR_TYPES = {
    400: "bad_request",
    500: "internal_error",
    502: "runner_incomplete_response",
    503: "runner_scheduling_failure",
    504: "request_timeout",
}
PLATFORM_TYPES = {
    401: "authorization_error",
    403: "authorization_error",
    404: "not_found",
    429: "rate_limited",
}
INGRESS_TITLES = {
    502: "502 Bad Gateway",
    503: "503 Service Temporarily Unavailable",
    504: "504 Gateway Time-out",
}


async def answer(
    request: web.Request, point: str, fal_request: FalRequest | None, compose: Compose
) -> web.Response:
    """The reply at a point where hooks and faults may intervene.

    A refusal comes instead of `compose`, so what it would do is not done.
    """
    await request.app[HOOKS].reach(f"{point}_received", fal_request)
    fault = request.app[FAULTS].take(point, fal_request)
    if fault is not None and fault.kind in REFUSALS:
        return await refuse(request, fault)
    reply = compose(fault)
    if fault is not None and fault.kind == "malformed":
        return malform(reply, fault.options["form"])
    return reply


async def stand_in(request: web.Request, point: str) -> web.Response | None:
    """What comes instead of the genuine reply, where hooks and faults know only refusals."""
    await request.app[HOOKS].reach(f"{point}_received")
    fault = request.app[FAULTS].take(point)
    return None if fault is None else await refuse(request, fault)


async def refuse(request: web.Request, fault: Fault) -> web.Response:
    """The reply of a fault that does without the genuine one."""
    kind = fault.kind.removeprefix("execute_then_")
    if kind == "status":
        return compose_refusal(fault)
    if kind == "ingress":
        await asyncio.sleep(fault.options["seconds"])
        return compose_ingress_refusal(fault.options["code"])
    if kind == "hang":
        await asyncio.sleep(fault.options["seconds"])
    return break_off(request)


async def spoil_date(request: web.Request, reply: web.StreamResponse) -> None:
    """The `Date` header as the fault wants it; on every reply but the emulator's own."""
    if request.path.startswith("/_emulator/"):
        return
    fault = request.app[FAULTS].take("date")
    if fault is None:
        return
    if fault.kind == "missing":
        reply.headers.popall("Date", None)
        return
    shown = datetime.now(UTC) + timedelta(seconds=fault.options["seconds"])
    reply.headers["Date"] = format_datetime(shown, usegmt=True)


def break_off(request: web.Request) -> web.Response:
    """Close the connection; the response is for the framework, nobody gets it."""
    request[BROKEN_OFF] = True
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def compose_refusal(fault: Fault) -> web.Response:
    """A refusal by fal itself: its shape of body, and a request id as all that passed its door."""
    code, retry_after = fault.options["code"], fault.options["retry_after"]
    error_type = fault.options["error_type"] or ERROR_TYPES.get(code)
    headers: dict[str, str | None] = {"x-fal-request-id": str(uuid.uuid4())}
    if fault.point in ("listing", "pricing", "billing"):
        body = compose_platform_error(code, fault.options["detail"] or choose_detail(code))
    else:
        body = compose_error(fault, error_type)
        headers["x-fal-error-type"] = error_type
    headers["retry-after"] = f"{retry_after:g}" if retry_after else None
    headers |= {name.lower(): value for name, value in fault.options["headers"].items()}
    given = {name: value for name, value in headers.items() if value is not None}
    return web.json_response(body, status=code, headers=given)


def compose_error(fault: Fault, error_type: str | None) -> dict[str, object]:
    """The queue's and the model's errors (docs: Errors); an unknown id has a shape of its own."""
    code, detail = fault.options["code"], fault.options["detail"]
    if code == NOT_FOUND and detail is None and fault.point in ("status", "result", "cancel"):
        return {"status": "NOT_FOUND"}
    body: dict[str, object] = {"detail": choose_detail(code) if detail is None else detail}
    return body if error_type is None else {**body, "error_type": error_type}


def choose_detail(code: int) -> str | list[dict[str, object]]:
    if code == UNPROCESSABLE:
        return [Problem("value_error", (), "Refused by order of the test").to_json()]
    return DETAILS.get(code, "Internal server error")


def compose_platform_error(code: int, message: object) -> dict[str, object]:
    """The platform API wraps its errors in another envelope than the queue does."""
    fallback = "server_error" if code >= SERVER_ERROR else "validation_error"
    error = {"type": PLATFORM_TYPES.get(code, fallback), "message": message}
    return {"error": {**error, "request_id": str(uuid.uuid4())}}


def compose_ingress_refusal(code: int) -> web.Response:
    """What comes when the request never got past fal's front door: nothing of fal's own."""
    title = INGRESS_TITLES[code]
    head = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
    tail = f"<center><h1>{title}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>"
    headers = {"Server": "nginx"}
    return web.Response(
        text=f"{head}{tail}\r\n", status=code, content_type="text/html", headers=headers
    )


def set_headers(reply: web.Response, headers: Mapping[str, str | None]) -> None:
    """Those that are null are taken away."""
    for name, value in headers.items():
        reply.headers.popall(name, None)
        if value is not None:
            reply.headers[name] = value


def spoil_output(request: FalRequest, fault: Fault) -> None:
    """Change a good result, or take it away: both its webhook and its URL tell it so."""
    outcome = request.outcome
    if outcome is None or outcome.status_code != OK:
        return
    if fault.kind == "failure":
        request.outcome = compose_failure(fault.options["code"], fault.options["error_type"])
        return
    body = merge(outcome.body, fault.options["merge"])
    kept = {name: value for name, value in body.items() if name not in fault.options["delete"]}
    request.outcome = replace(outcome, body=kept)


def compose_failure(code: int, error_type: str | None) -> Outcome:
    """How a run ends that was started and came to nothing: by the model, or by the platform."""
    message = "Failed by order of the test"
    if code == UNPROCESSABLE:
        problem = Problem(error_type or "value_error", (), message)
        return Outcome.from_model_error(ModelError(problem))
    return Outcome.from_platform(
        code, error_type or ERROR_TYPES.get(code, "internal_error"), message
    )


def merge(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """Objects field by field, all else as a whole; null is a value."""
    merged = dict(old)
    for name, value in new.items():
        known = merged.get(name)
        is_object = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(known, value) if is_object else value  # type: ignore[arg-type]
    return merged


def malform(reply: web.Response, form: str) -> web.Response:
    """The reply with the same code and headers, and a body that is of no use."""
    whole = reply.text or ""
    if form == "truncated":
        reply.text = whole[: len(whole) // 2]
    elif form == "empty":
        reply.text = "{}"
    elif form == "no_request_id":
        body = json.loads(whole)
        reply.text = json.dumps({name: body[name] for name in body if name != "request_id"})
    else:
        reply.text = "<html>this is no JSON</html>"
    return reply
