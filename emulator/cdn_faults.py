"""What a fault makes of the CDN's answer: another one, other headers, other URLs."""

import asyncio
import time
import uuid
from email.utils import formatdate

from aiohttp import web

from emulator.access import STORAGE
from emulator.faults import Fault
from emulator.queue_routes import QUEUE
from emulator.records import FalRequest
from emulator.spoiling import break_off, refuse

DRIP_SECONDS = 0.05
PAGE = "<!DOCTYPE html><html><head><title>Sorry</title></head><body>We'll be back.</body></html>"
REASONS = {
    403: "Access to the file is forbidden",
    404: "File not found",
    410: "The file is gone",
}


async def answer_instead(
    request: web.Request, fault: Fault, fal_request: FalRequest
) -> web.StreamResponse | None:
    """What comes instead of the file; None where the fault lets the file itself come."""
    if fault.kind in ("status", "ingress", "drop"):
        return await refuse(request, fault)
    if fault.kind == "expire":
        return expire(request, fault, fal_request)
    if fault.kind == "redirect":
        return redirect(request, fault)
    if fault.kind == "html":
        return web.Response(text=PAGE, content_type="text/html")
    if fault.kind == "drip_headers":
        return await drip_headers(request, fault)
    return None


def refuse_expired(code: int) -> web.Response:
    return web.json_response({"detail": REASONS[code]}, status=code)


def expire(request: web.Request, fault: Fault, fal_request: FalRequest) -> web.Response:
    """The URL is dead from now on; the next read of the result gives a fresh one."""
    code = fault.options["code"]
    fresh = request.app[STORAGE].rename(request.match_info["name"], code)
    request.app[QUEUE].renew_file(fal_request, fresh)
    return refuse_expired(code)


def redirect(request: web.Request, fault: Fault) -> web.Response | None:
    """To the URL that was given; without one to this file again, `hops` times over."""
    location = fault.options["url"]
    if not location:
        hop = request.query.get("hop", "")
        done = int(hop) if hop.isdecimal() else 0
        if done >= fault.options["hops"]:
            return None
        location = str(request.rel_url.update_query(hop=done + 1))
    return web.Response(status=fault.options["code"], headers={"Location": location})


async def drip_headers(request: web.Request, fault: Fault) -> web.Response:
    """A head that grows byte by byte and never ends, until the connection does."""
    pace, transport = fault.options["bytes_per_second"], request.transport
    end = time.monotonic() + fault.options["seconds"]
    head = b"HTTP/1.1 200 OK\r\nX-Padding: "
    while transport is not None and not transport.is_closing() and time.monotonic() < end:
        transport.write(head or b"x" * max(1, int(pace * DRIP_SECONDS)))
        head = b""
        await asyncio.sleep(max(DRIP_SECONDS, 1 / pace))
    return break_off(request)


def spoil_headers(fault: Fault, headers: dict[str, str]) -> None:
    """Change what is said of the file, which itself comes as it is."""
    if fault.kind == "wrong_type":
        headers["Content-Type"] = fault.options["content_type"]
    elif fault.kind == "odd_encoding":
        headers["Content-Encoding"] = fault.options["encoding"]
    elif fault.kind == "no_ranges":
        headers["Accept-Ranges"] = "none"
    elif fault.kind == "new_version":
        headers["ETag"] = f'"{uuid.uuid4().hex}"'
        headers["Last-Modified"] = formatdate(usegmt=True)
