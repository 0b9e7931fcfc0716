"""Reading files of fal's that not everybody may read: their owner signs a URL (fal-api, section 7).

Whoever has a signed URL may read the file until it expires, so it is a credential: it is used at
once, and neither stored nor logged.
"""

from datetime import timedelta

import httpx
from pydantic import SecretStr

from worker.fal.errors import describe_platform_error
from worker.fal.http import Reply, build_client, describe_error, exchange, name_origin
from worker.ground.errors import MediaRefusedError, MediaUnavailableError

# fal's bounds for the life of a signed URL.
MIN_LIFE = timedelta(seconds=1)
MAX_LIFE = timedelta(days=7)
PASSING = frozenset({408, 425, 429})
ACCOUNT = frozenset({401, 403})
SERVER_ERROR = 500


class FileSigner:
    """Signs URLs of this account's files. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=True)

    def sign_file(self, url: str, expires_in: timedelta) -> str:
        """A URL by which anybody may read the file for so long.

        Raises MediaUnavailableError for what may pass, a refused account included, and
        MediaRefusedError for a file that fal does not know.
        """
        life = min(max(expires_in, MIN_LIFE), MAX_LIFE)
        try:
            request = self._http.build_request(
                "POST",
                f"{self._base_url}/storage/files/sign",
                params={"url": url},
                json={"expiration_seconds": int(life.total_seconds())},
            )
            reply = exchange(self._http, request)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise MediaUnavailableError(
                f"fal signs no URL of the file: {describe_error(error)}"
            ) from error
        _check_status(reply)
        return _read_signed(reply, url)

    def close(self) -> None:
        self._http.close()


def _check_status(reply: Reply) -> None:
    status = reply.http_status
    if httpx.codes.is_success(status):
        return
    words = describe_platform_error(status, reply.parse_json())
    if status in ACCOUNT:
        # Put right by people; the file is there as long.
        raise MediaUnavailableError(f"fal refuses the account a signed URL of the file: {words}")
    if status in PASSING or status >= SERVER_ERROR:
        raise MediaUnavailableError(f"fal signs no URL of the file now: {words}")
    raise MediaRefusedError(f"fal signs no URL of the file: {words}")


def _read_signed(reply: Reply, url: str) -> str:
    """No page of fal's names the field for sure, so that both likely ones are read.

    It has to lead to the same file at the same host: whatever may be read there is public else.
    """
    body = reply.parse_json()
    named = body if isinstance(body, dict) else {}
    signed = named.get("signed_url") or named.get("url")
    try:
        given, wanted = httpx.URL(signed if isinstance(signed, str) else ""), httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        given, wanted = httpx.URL(""), httpx.URL(url)
    if (name_origin(given), given.path) != (name_origin(wanted), wanted.path):
        raise MediaUnavailableError("fal gave no signed URL of the file")
    return str(signed)
