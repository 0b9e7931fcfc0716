"""Uploads over HTTP, in both of fal's ways (docs: CDN; and the official clients).

With the key: ask `/storage/upload/initiate…` for a URL, and send the bytes there without any
credential. With a CDN token: send them to `/files/upload…` at once. A credential that arrives at a
signed URL is refused and remembered: at fal that host is a stranger's.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

from aiohttp import web

from emulator.access import (
    SEAL,
    TOKEN_LIFE,
    TOKEN_TYPE,
    build_origin,
    has_token,
    issue_token,
    name_credential,
    note_leak,
)
from emulator.lifecycle import UPLOAD_HEADERS, Lifecycle
from emulator.problems import ModelError, Problem
from emulator.seal import find_end
from emulator.spoiling import stand_in
from emulator.uploads import Part, Upload, Uploads, WrongPartsError

UPLOADS = web.AppKey("uploads", Uploads)
CHUNK_BYTES = 1024 * 1024
URL_LIFE = timedelta(hours=1)
"""fal documents none."""
STORAGE_TYPES = ("fal-cdn-v3", "gcs")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_upload_routes(app: web.Application) -> None:
    router = app.router
    router.add_post("/storage/auth/token", at("upload", give_token))
    router.add_post("/storage/upload/initiate", at("upload", initiate))
    router.add_post("/storage/upload/initiate-multipart", at("upload", initiate))
    signed = r"/upload/{upload_id:[^/]+}/{file_name:[^/]+}"
    router.add_put(signed, at("upload", put_whole, is_signed=True))
    router.add_put(signed + r"/{number:\d+}", at("upload_part", put_part, is_signed=True))
    router.add_post(signed + "/complete", at("upload_complete", complete, is_signed=True))
    router.add_post("/files/upload", at("upload", post_whole))
    router.add_post("/files/upload/multipart", at("upload", create_multipart))
    owned = r"/files/{name:.+}/multipart/{upload_id:[^/]+}"
    router.add_put(owned + r"/{number:\d+}", at("upload_part", put_part))
    router.add_post(owned + "/complete", at("upload_complete", complete))


def at(point: str, answer: Answer, *, is_signed: bool = False) -> Answer:
    """The answer, where hooks and faults of that point may intervene and callers may be wrong."""

    async def guard(request: web.Request) -> web.StreamResponse:
        refusal = check_caller(request, is_signed=is_signed)
        if refusal is None:
            refusal = await stand_in(request, point)
        if refusal is not None:
            return refusal
        try:
            return await answer(request)
        except ModelError as error:
            return web.json_response(error.to_json(), status=422)
        except (ValueError, RecursionError) as error:
            return refuse_upload(400, str(error))

    return guard


def check_caller(request: web.Request, *, is_signed: bool) -> web.Response | None:
    """What to say to somebody with the wrong credential; `/storage/` has its own check."""
    if is_signed:
        return check_signature(request)
    if request.path.startswith("/files/") and not has_token(request):
        note_leak(request, "cdn")
        return refuse_upload(401, "A CDN token is required")
    return None


def check_signature(request: web.Request) -> web.Response | None:
    if name_credential(request) is not None:
        note_leak(request, "signed_upload")
        return refuse_upload(403, "A signed URL takes no Authorization: it went to a stranger")
    subject = f"upload/{request.match_info['upload_id']}"
    if not request.app[SEAL].proves(subject, request.query.get("signature", "")):
        return refuse_upload(403, "The signature is wrong, or its time is over")
    return None


async def give_token(request: web.Request) -> web.Response:
    read_storage_type(request)
    return web.json_response(
        {
            "token": issue_token(request.app),
            "token_type": TOKEN_TYPE,
            "base_url": build_origin(request),
            "expires_at": find_end(TOKEN_LIFE).isoformat(),
        }
    )


async def initiate(request: web.Request) -> web.Response:
    """A signed URL for the bytes, and the one they will have."""
    read_storage_type(request)
    file_name, content_type = read_description(await request.read())
    upload = request.app[UPLOADS].start(
        file_name,
        content_type,
        read_lifecycle(request),
        is_multipart=request.path.endswith("multipart"),
    )
    signature = request.app[SEAL].stamp(f"upload/{upload.id}", URL_LIFE)
    name = upload.name.rpartition("/")[2]
    url = f"{build_origin(request)}/upload/{upload.id}/{name}?signature={signature}"
    return web.json_response({"upload_url": url, "file_url": build_file_url(request, upload)})


async def put_whole(request: web.Request) -> web.Response:
    upload = find_upload(request)
    if upload.is_multipart:
        raise ValueError("This upload takes its bytes in numbered parts")
    part = await request.app[UPLOADS].receive_whole(upload, read_chunks(request))
    return web.Response(headers={"ETag": part.etag})


async def post_whole(request: web.Request) -> web.Response:
    upload = start_upload(request)
    await request.app[UPLOADS].receive_whole(upload, read_chunks(request))
    return web.json_response({"access_url": build_file_url(request, upload)})


async def create_multipart(request: web.Request) -> web.Response:
    upload = start_upload(request, is_multipart=True)
    url = build_file_url(request, upload)
    return web.json_response({"access_url": url, "uploadId": upload.id})


async def put_part(request: web.Request) -> web.Response:
    upload = find_upload(request)
    if not upload.is_multipart:
        raise ValueError("This upload takes its bytes at once")
    number = int(request.match_info["number"][:9])
    part: Part = await request.app[UPLOADS].receive_part(upload, number, read_chunks(request))
    body = {"partNumber": part.number, "etag": part.etag}
    return web.json_response(body, headers={"ETag": part.etag})


async def complete(request: web.Request) -> web.Response:
    upload = find_upload(request)
    await request.app[UPLOADS].complete(upload, read_parts(await request.read()))
    url = build_file_url(request, upload)
    return web.json_response({"access_url": url, "file_url": url})


def start_upload(request: web.Request, *, is_multipart: bool = False) -> Upload:
    """As the headers of the CDN's own way describe it."""
    return request.app[UPLOADS].start(
        request.headers.get("X-Fal-File-Name", "upload.bin"),
        request.content_type,
        read_lifecycle(request),
        is_multipart=is_multipart,
    )


def find_upload(request: web.Request) -> Upload:
    """Raises web.HTTPNotFound: never started, or under another name."""
    upload = request.app[UPLOADS].find(request.match_info["upload_id"])
    name = request.match_info.get("name")
    if upload is None or name not in (None, upload.name):
        text = json.dumps({"detail": "No such upload"})
        raise web.HTTPNotFound(text=text, content_type="application/json")
    return upload


def build_file_url(request: web.Request, upload: Upload) -> str:
    return f"{build_origin(request)}/files/{upload.name}"


def read_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes: at no time is more than a chunk of it in memory."""
    return request.content.iter_chunked(CHUNK_BYTES)


def read_storage_type(request: web.Request) -> None:
    """Raises ValueError: neither of the two that fal's clients ask for."""
    given = request.query.get("storage_type", STORAGE_TYPES[0])
    if given not in STORAGE_TYPES:
        raise ValueError(f"storage_type: unknown {given!r}; known: {', '.join(STORAGE_TYPES)}")


def read_lifecycle(request: web.Request) -> Lifecycle:
    return Lifecycle.from_headers(request.headers, UPLOAD_HEADERS)


def read_description(raw: bytes) -> tuple[str, str]:
    """File name and content type.

    Raises ValueError: not JSON.
    Raises ModelError: JSON without them.
    """
    body = json.loads(raw)
    given = body if isinstance(body, dict) else {}
    names = ("file_name", "content_type")
    problems = [
        Problem("missing", (name,), "Field required", body)
        for name in names
        if not isinstance(given.get(name), str) or not given[name].isprintable()
    ]
    if problems:
        raise ModelError(*problems)
    return given["file_name"], given["content_type"]


def read_parts(raw: bytes) -> list[tuple[int, str]]:
    """Numbers and ETags.

    Raises ValueError: of another shape.
    """
    try:
        parts = json.loads(raw)["parts"]
        return [(int(one["partNumber"]), str(one["etag"])) for one in parts]
    except (KeyError, TypeError, ValueError) as error:
        wanted = '{"parts": [{"partNumber": 1, "etag": "…"}]}'
        raise WrongPartsError(f"the body must be like {wanted}") from error


def refuse_upload(code: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=code)
