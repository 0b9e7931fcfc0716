"""The fact that fal has finished a request, whoever tells of it."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from worker.errors import InvalidDeliveryError


@dataclass(frozen=True, slots=True)
class Completion:
    """fal's own words; `payload` is None where fal could not put the result into the message."""

    fal_request_id: str
    gateway_request_id: str | None
    status: Literal["OK", "ERROR"]
    payload: JsonValue
    error: str | None
    # Why there is no payload; the result then has to be fetched, whatever the status says.
    payload_error: str | None = None
    # What fal's header says of trying a failed run again; only a poll sees headers.
    retryable: bool | None = None


class _WebhookBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    request_id: str
    gateway_request_id: str | None = None
    status: Literal["OK", "ERROR"]
    # JSON as it was just read: to look through it once more would find nothing.
    payload: Any = None
    error: str | None = None
    payload_error: str | None = None


def parse_webhook(body: bytes) -> Completion:
    """Read a webhook's JSON. Raises InvalidDeliveryError naming what is wrong with it."""
    try:
        parsed = _WebhookBody.model_validate(make_storable(json.loads(body)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise InvalidDeliveryError(f"{field}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise InvalidDeliveryError("the body is not JSON") from None
    return Completion(
        fal_request_id=parsed.request_id,
        gateway_request_id=parsed.gateway_request_id,
        status=parsed.status,
        payload=parsed.payload,
        error=parsed.error,
        payload_error=parsed.payload_error,
    )


def make_storable(value: JsonValue) -> JsonValue:
    """The value without what a JSON column cannot hold: NUL, lone surrogates, NaN, infinity."""
    match value:
        case str() if value.isascii() and "\0" not in value:
            # A video inside a result is such a text, and is not to be copied.
            return value
        case str():
            return (
                value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
            )
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [make_storable(item) for item in value]
        case dict():
            return {str(make_storable(key)): make_storable(item) for key, item in value.items()}
        case _:
            return value
