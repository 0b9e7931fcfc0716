"""`/files/…`: what fal's CDN does for a GET or HEAD, with ranges so that downloads can resume."""

import asyncio
import mimetypes
import re
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from emulator.storage import Storage

STORAGE = web.AppKey("storage", Storage)
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last` of a file, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


class UnsatisfiableRangeError(Exception):
    """The range starts beyond the end of the file: 416."""


async def serve_file(request: web.Request) -> web.StreamResponse:
    path = request.app[STORAGE].find(request.match_info["name"])
    if path is None:
        return web.json_response({"detail": "File not found"}, status=404)
    stat = path.stat()
    headers = {
        "Accept-Ranges": "bytes",
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "public, max-age=5184000, immutable",
        "Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
        "ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"',
        "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
    }
    try:
        span = choose_span(request, headers, stat.st_size)
    except UnsatisfiableRangeError:
        headers["Content-Range"] = f"bytes */{stat.st_size}"
        return web.Response(status=416, headers=headers)
    return await _send(request, path, span, stat.st_size, headers)


def choose_span(request: web.BaseRequest, headers: dict[str, str], size: int) -> Span | None:
    """The part that was asked for; None for the whole file.

    An `If-Range` that names another version of the file makes the range void (RFC 9110, 13.1.5).
    """
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


async def _send(
    request: web.Request, path: Path, span: Span | None, size: int, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=206 if span else 200, headers=headers)
    response.content_length = span.length if span else size
    if span:
        response.headers["Content-Range"] = f"bytes {span.first}-{span.last}/{size}"
    await response.prepare(request)
    if request.method != "HEAD":
        with await asyncio.to_thread(path.open, "rb") as file:
            file.seek(span.first if span else 0)
            await _copy(file, response, response.content_length)
    await response.write_eof()
    return response


async def _copy(file: BinaryIO, response: web.StreamResponse, remaining: int) -> None:
    while remaining > 0:
        chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, remaining))
        if not chunk:
            response.force_close()  # the file was cut meanwhile: break off, as promised too much
            return
        remaining -= len(chunk)
        await response.write(chunk)
