"""Uploads by bare HTTP, in both of fal's ways."""

from collections.abc import Mapping
from typing import Any

import httpx

from tests.emulator.processes import Emulator

V3 = {"storage_type": "fal-cdn-v3"}
PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}
"""Nothing here is TLS, and to load the authorities takes longer than the request."""


def initiate(
    emulator: Emulator, *, is_multipart: bool = False, headers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`upload_url` and `file_url`."""
    path = "/storage/upload/initiate" + ("-multipart" if is_multipart else "")
    body = {"file_name": "my clip.mp4", "content_type": "video/mp4"}
    response = emulator.client.post(path, params=V3, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def put(url: str, content: bytes, **headers: str) -> httpx.Response:
    """Without a credential, unless one is given."""
    return httpx.put(url, content=content, headers=headers, **PLAIN)


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, **PLAIN)


def name_part(url: str, tail: object) -> str:
    """The URL of a part, or of the completion, of an upload to a signed URL."""
    path, _, query = url.partition("?")
    return f"{path}/{tail}?{query}"


def complete(url: str, parts: object) -> httpx.Response:
    return httpx.post(name_part(url, "complete"), json={"parts": parts}, **PLAIN)


def get_token(emulator: Emulator) -> dict[str, str]:
    """The header with a CDN token."""
    response = emulator.client.post("/storage/auth/token", params=V3, json={})
    assert response.status_code == 200, response.text
    token = response.json()
    return {"Authorization": f"{token['token_type']} {token['token']}"}


def upload(emulator: Emulator, content: bytes, headers: Mapping[str, str] | None = None) -> str:
    """At once, with a CDN token; the file's URL."""
    given = {**get_token(emulator), "Content-Type": "video/mp4", "X-Fal-File-Name": "a.mp4"}
    url = f"{emulator.url}/files/upload"
    response = httpx.post(url, content=content, headers=given | dict(headers or {}), **PLAIN)
    assert response.status_code == 200, response.text
    return str(response.json()["access_url"])


def list_leaks(emulator: Emulator, path: str) -> list[dict[str, Any]]:
    """What came to this path, or to below it, and should not have."""
    leaks = emulator.client.get("/_emulator/leaks").json()
    return [one for one in leaks if one["path"].startswith(path)]


def send_signed(emulator: Emulator, parts: list[bytes]) -> tuple[dict[str, str], list[object]]:
    """Every part, the last first; what fal's JavaScript client would complete with."""
    given = initiate(emulator, is_multipart=True)
    told = []
    for number in range(len(parts), 0, -1):
        response = put(name_part(given["upload_url"], number), parts[number - 1])
        assert response.status_code == 200, response.text
        told.append(response.json())
        assert response.headers["etag"] == response.json()["etag"]
        assert response.json()["partNumber"] == number
    return given, told


def find_upload(emulator: Emulator, url: str) -> dict[str, Any]:
    """The upload that became the file, as the emulator shows it."""
    name = find_path(url).removeprefix("/files/")
    shown = emulator.client.get("/_emulator/uploads").json()
    return dict(next(one for one in shown if one["name"] == name))


def find_path(url: str) -> str:
    return httpx.URL(url).path
