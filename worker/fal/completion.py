"""The fact that fal has finished a request: one value for webhook, poll and listing."""

import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from pydantic import JsonValue

from worker.ground.errors import Finding, InvalidDeliveryError

ODD_DELIVERY = "odd_delivery"
MOST_DEPTH = 200
"""What lies deeper in a result is left out: no field that counts does."""
# Promised as text; a result is never refused for another type of one.
_TEXTS = ("gateway_request_id", "error", "payload_error")


@dataclass(frozen=True, slots=True)
class Completion:
    """fal's own words; `payload` is None where fal could not put the result into the message."""

    fal_request_id: str
    gateway_request_id: str | None
    status: Literal["OK", "ERROR"]
    payload: JsonValue
    error: str | None
    # Why there is no payload; the result then has to be fetched, regardless of the status.
    payload_error: str | None = None
    # What fal's header says of trying a failed run again; only a poll sees headers.
    retryable: bool | None = None
    # Fields of the message that have another type than fal promises, and were taken as text.
    oddities: tuple[Finding, ...] = ()
    # What fal bills for the run, by a header of the result; only a poll sees headers.
    billable_units: Decimal | None = field(default=None, compare=False)


def parse_webhook(body: bytes) -> Completion:
    """Read a webhook's JSON. Raises InvalidDeliveryError naming what is wrong with it."""
    try:
        message = make_storable(json.loads(body))
    except (ValueError, RecursionError):
        raise InvalidDeliveryError("the body is not JSON") from None
    if not isinstance(message, dict):
        raise InvalidDeliveryError("body: no JSON object")
    fal_request_id, status = message.get("request_id"), message.get("status")
    if not isinstance(fal_request_id, str):
        raise InvalidDeliveryError("request_id: no text")
    if status not in ("OK", "ERROR"):
        raise InvalidDeliveryError("status: neither OK nor ERROR")
    texts = {name: read_text(message.get(name)) for name in _TEXTS}
    odd = [name for name in _TEXTS if not isinstance(message.get(name), str | None)]
    return Completion(
        fal_request_id=fal_request_id,
        gateway_request_id=texts["gateway_request_id"],
        status="OK" if status == "OK" else "ERROR",
        payload=message.get("payload"),
        error=texts["error"],
        payload_error=texts["payload_error"],
        oddities=tuple(
            Finding(ODD_DELIVERY, f"fal's message has {name}={texts[name]}, no text", name)
            for name in odd
        ),
    )


def names_video(payload: JsonValue) -> bool:
    """Whether it has the URL of a video: then the run has succeeded, regardless of all else."""
    video = payload.get("video") if isinstance(payload, dict) else None
    url = video.get("url") if isinstance(video, dict) else None
    return isinstance(url, str) and bool(url)


def read_text(value: JsonValue) -> str | None:
    """Text as it is, anything else as JSON; None for nothing."""
    if isinstance(value, str | None):
        return value
    return json.dumps(value, ensure_ascii=False) if value or value == 0 else None


def make_storable(value: JsonValue, depth: int = 0) -> JsonValue:
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
        case list() if depth < MOST_DEPTH:
            return [make_storable(item, depth + 1) for item in value]
        case dict() if depth < MOST_DEPTH:
            return {
                str(make_storable(key)): make_storable(item, depth + 1)
                for key, item in value.items()
            }
        case _:
            return None if isinstance(value, list | dict) else value
