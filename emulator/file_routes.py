"""Who may read a file, asked and changed by its owner (docs: File access controls).

The platform's way takes the key and names the file by its URL; the CDN's own takes a CDN token.
"""

import json
import urllib.parse
from datetime import timedelta

from aiohttp import web

from emulator.access import SEAL, STORAGE, build_origin, has_token, note_leak
from emulator.lifecycle import Acl
from emulator.spoiling import compose_platform_error

LONGEST_SIGNED = 7 * 24 * 3600
DAY = 24 * 3600
NOT_FOUND = 404


class NoFileError(Exception):
    """The URL names no file of this CDN."""


def add_file_routes(app: web.Application) -> None:
    for base in ("/v1/storage/files", "/storage/files"):
        app.router.add_get(f"{base}/acl", show_acl)
        app.router.add_put(f"{base}/acl", replace_acl)
        app.router.add_post(f"{base}/sign", sign_by_key)
    app.router.add_post("/files/{name:.+}/sign", sign_by_token)


async def show_acl(request: web.Request) -> web.Response:
    try:
        name = find_name(request)
    except NoFileError as error:
        return refuse(NOT_FOUND, error)
    return web.json_response(request.app[STORAGE].find_record(name).acl.to_json())


async def replace_acl(request: web.Request) -> web.Response:
    """The whole list; what is unsaid is allowed."""
    try:
        name = find_name(request)
        acl = Acl.from_json(json.loads(await request.read()))
    except NoFileError as error:
        return refuse(NOT_FOUND, error)
    except ValueError as error:
        return refuse(400, error)
    request.app[STORAGE].set_acl(name, acl)
    return web.json_response(acl.to_json())


async def sign_by_key(request: web.Request) -> web.Response:
    try:
        name = find_name(request)
        seconds = read_seconds(await request.read(), "expiration_seconds")
    except NoFileError as error:
        return refuse(NOT_FOUND, error)
    except ValueError as error:
        return refuse(400, error)
    return web.json_response({"signed_url": sign(request, name, seconds)})


async def sign_by_token(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if not has_token(request):
        note_leak(request, "cdn")
        return web.json_response({"detail": "A CDN token is required"}, status=401)
    if request.app[STORAGE].find(name) is None:
        return web.json_response({"detail": "File not found"}, status=NOT_FOUND)
    try:
        seconds = read_seconds(await request.read() or b"{}", "duration", DAY)
    except ValueError as error:
        return web.json_response({"detail": str(error)}, status=400)
    return web.json_response({"signed_url": sign(request, name, seconds)})


def sign(request: web.Request, name: str, seconds: int) -> str:
    identity = request.app[SEAL].stamp(f"files/{name}", timedelta(seconds=seconds))
    return f"{build_origin(request)}/files/{name}?identity={identity}"


def find_name(request: web.Request) -> str:
    """The name of the file that the parameter `url` means; any host will do.

    Raises NoFileError: there is none.
    """
    url = request.query.get("url", "")
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError as error:
        raise NoFileError(f"url: no URL: {url!r}") from error
    name = path.removeprefix("/files/")
    if name == path or request.app[STORAGE].find(name) is None:
        raise NoFileError(f"url: no file of this CDN: {url!r}")
    return name


def read_seconds(raw: bytes, name: str, default: int | None = None) -> int:
    """Raises ValueError: not a whole number from 1 to a week."""
    body = json.loads(raw)
    value = body.get(name, default) if isinstance(body, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST_SIGNED:
        raise ValueError(f"{name} must be a whole number from 1 to {LONGEST_SIGNED}, not {value!r}")
    return value


def refuse(code: int, reason: object) -> web.Response:
    return web.json_response(compose_platform_error(code, str(reason)), status=code)
