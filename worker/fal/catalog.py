"""The platform's list of models, as far as it shows an endpoint's OpenAPI document (section 9)."""

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import describe_platform_error
from worker.fal.http import build_client, describe_error, exchange
from worker.ground.errors import SchemaUnreadableError

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class CatalogClient:
    """Reads the catalogue; a key is not needed, and goes to `base_url` only."""

    def __init__(self, base_url: str, credentials: SecretStr | None) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=False)

    def read_model(self, endpoint: str) -> JsonValue:
        """The platform's reply about this endpoint. Raises SchemaUnreadableError."""
        params = {"endpoint_id": endpoint, "expand": "openapi-3.0"}
        url = f"{self._base_url}/models"
        try:
            request = self._http.build_request("GET", url, params=params)
            reply = exchange(self._http, request, max_bytes=MAX_DOCUMENT_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise SchemaUnreadableError(f"{url} cannot be read: {describe_error(error)}") from None
        if reply.http_status != httpx.codes.OK:
            why = describe_platform_error(reply.http_status, reply.parse_json())
            raise SchemaUnreadableError(f"{url}, asked for {endpoint}, answered {why}")
        return reply.parse_json()

    def close(self) -> None:
        self._http.close()
