"""Bringing the caller's input files to disk: http(s) URLs and base64 data URIs.

fal's workers refuse private addresses; this one allows loopback, where everything here lives.
"""

import base64
import binascii
import time
import urllib.parse
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx

from emulator.problems import ModelError, Problem

MAX_BYTES = 512 * 1024 * 1024
MAX_TIME = timedelta(seconds=60)


def fetch_input(field: str, url: str, path: Path, *, max_time: timedelta = MAX_TIME) -> None:
    """Write what the URL names to `path`.

    Raises ModelError: `file_download_error` or `file_too_large`, on the field.
    """
    try:
        _write(field, url, _read(url, max_time), path)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
        message = f"Failed to download the file: {str(error) or type(error).__name__}"
        raise ModelError(Problem("file_download_error", (field,), message, url)) from error


def _write(field: str, url: str, chunks: Iterator[bytes], path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_BYTES:
                limit = {"max_size": MAX_BYTES}
                raise ModelError(Problem("file_too_large", (field,), "Too large", url, limit))
            file.write(chunk)


def _read(url: str, max_time: timedelta) -> Iterator[bytes]:
    if url.startswith("data:"):
        yield _decode_data_uri(url)
        return
    deadline = time.monotonic() + max_time.total_seconds()
    with (
        httpx.Client(trust_env=False, follow_redirects=True, timeout=10) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        for chunk in response.iter_bytes():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not finished after {max_time.total_seconds():g} s")
            yield chunk


def _decode_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("not a data URI")
    content = urllib.parse.unquote_to_bytes(body)
    if not head.endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
