"""`/files/…`: what fal's CDN does for a GET or HEAD, with ranges so that downloads can resume.

Hooks and faults concern results only: inputs, which the emulator fetches itself, always come.
"""

import asyncio
import contextlib
import mimetypes
import re
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from emulator.access import STORAGE, decide_reading, name_credential, note_leak
from emulator.cdn_faults import answer_instead, refuse_expired, spoil_headers
from emulator.faults import Fault
from emulator.lifecycle import Decision
from emulator.queue_routes import QUEUE
from emulator.records import FalRequest
from emulator.spoiling import FAULTS, HOOKS

CHUNK_BYTES = 256 * 1024
LARGEST_FILE = 2**63
DRIP_SECONDS = 0.05
"""How much of a slow body is sent at a time."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last` of a file, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Part:
    """So many bytes of a file, from `start` on."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Flow:
    """How a body flows: after `limit` bytes comes `silence` (seconds), then the connection ends."""

    limit: int = LARGEST_FILE
    silence: float = 0
    pace: float | None = None
    """Bytes per second; None: as fast as they go."""


class UnsatisfiableRangeError(Exception):
    """The range starts beyond the end of the file: 416."""


async def serve_file(request: web.Request) -> web.StreamResponse:
    """A key is of no use here, and is noted as a leak; a CDN token makes its bearer the owner."""
    name = request.match_info["name"]
    if name_credential(request) == "key":
        note_leak(request, "cdn")
    if (code := request.app[STORAGE].expired.get(name)) is not None:
        return refuse_expired(code)
    path, decision = request.app[STORAGE].find(name), decide_reading(request, name)
    if path is None or decision is Decision.HIDE:
        return web.json_response({"detail": "File not found"}, status=404)
    if decision is Decision.FORBID:
        return web.json_response({"detail": "Access to the file is forbidden"}, status=403)
    fal_request = find_owner(request)
    if fal_request is None:
        return await serve_version(request, path, None)
    await request.app[HOOKS].reach("cdn_started", fal_request)
    fault = request.app[FAULTS].take("cdn", fal_request)
    instead = None if fault is None else await answer_instead(request, fault, fal_request)
    return await serve_version(request, path, fault) if instead is None else instead


async def serve_version(
    request: web.Request, path: Path, fault: Fault | None
) -> web.StreamResponse:
    """The file as it is now, or the part of it that was asked for."""
    stat = await asyncio.to_thread(path.stat)
    known = request.app[STORAGE].find_record(request.match_info["name"]).content_type
    guessed = mimetypes.guess_type(path.name)[0]
    headers = {
        "Accept-Ranges": "bytes",
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "public, max-age=5184000, immutable",
        "Content-Type": known or guessed or "application/octet-stream",
        "ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"',
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
    }
    if fault is not None:
        spoil_headers(fault, headers)
    try:
        span = choose_span(request, headers, stat.st_size)
    except UnsatisfiableRangeError:
        headers["Content-Range"] = f"bytes */{stat.st_size}"
        return web.Response(status=416, headers=headers)
    response = web.StreamResponse(status=206 if span else 200, headers=headers)
    length = span.length if span else stat.st_size
    response.content_length = max(0, length + choose_surplus(fault))
    if span:
        response.headers["Content-Range"] = f"bytes {span.first}-{span.last}/{stat.st_size}"
    with contextlib.suppress(ConnectionError):  # the caller may hang up
        await response.prepare(request)
        if request.method != "HEAD":
            start = span.first if span else 0
            await send_body(request, response, Part(path, start, length), fault)
        await response.write_eof()
    return response


def choose_span(request: web.BaseRequest, headers: dict[str, str], size: int) -> Span | None:
    """The part that was asked for; None for the whole file.

    An `If-Range` that names another version of the file makes the range void (RFC 9110, 13.1.5).
    """
    if headers["Accept-Ranges"] == "none":
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition not in (headers["ETag"], headers["Last-Modified"]):
        return None
    return parse_range(request.headers.get("Range", ""), size)


def parse_range(header: str, size: int) -> Span | None:
    """The single byte range of a `Range` header, cut to the file; None where there is none.

    Several ranges at once, other units and nonsense are ignored, as the standard allows.

    Raises UnsatisfiableRangeError: when no byte of it exists.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip(), flags=re.ASCII)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        span = Span(max(0, size - int(last)), size - 1)
    else:
        span = Span(int(first), min(int(last or size), size - 1))
        if last and int(last) < int(first):
            return None
    if span.length <= 0:
        raise UnsatisfiableRangeError
    return span


async def send_body(
    request: web.Request, response: web.StreamResponse, part: Part, fault: Fault | None
) -> None:
    """Send the part, or as much of it as the fault lets through."""
    fal_request = find_owner(request)
    flow = choose_flow(fault)
    sent = min(part.length, flow.limit, response.content_length or 0)
    half = min(sent, part.length // 2)
    with await asyncio.to_thread(part.path.open, "rb") as file:
        file.seek(part.start)
        await _copy(file, response, half, flow.pace)
        if fal_request is not None:
            await request.app[HOOKS].reach("cdn_half", fal_request)
        await _copy(file, response, sent - half, flow.pace)
    if sent < (response.content_length or 0):
        await asyncio.sleep(flow.silence)
        response.force_close()
    elif fal_request is not None:
        request.app[HOOKS].note("cdn_sent", fal_request)


def find_owner(request: web.Request) -> FalRequest | None:
    """The request whose result is asked for; None for an input."""
    return request.app[QUEUE].find_by_file(request.match_info["name"])


def choose_surplus(fault: Fault | None) -> int:
    """How many bytes more than there are, or fewer, Content-Length announces."""
    surplus = 0 if fault is None else fault.options.get("surplus", 0)
    return int(surplus)


def choose_flow(fault: Fault | None) -> Flow:
    if fault is None:
        return Flow()
    return Flow(
        limit=fault.options.get("bytes", LARGEST_FILE),
        silence=fault.options.get("seconds", 0),
        pace=fault.options.get("bytes_per_second"),
    )


async def _copy(
    file: BinaryIO, response: web.StreamResponse, remaining: int, pace: float | None
) -> None:
    largest = CHUNK_BYTES if pace is None else max(1, min(CHUNK_BYTES, int(pace * DRIP_SECONDS)))
    while remaining > 0:
        chunk = await asyncio.to_thread(file.read, min(largest, remaining))
        if not chunk:
            response.force_close()  # the file was cut meanwhile: break off, as promised too much
            return
        remaining -= len(chunk)
        await response.write(chunk)
        if pace is not None:
            await asyncio.sleep(len(chunk) / pace)
