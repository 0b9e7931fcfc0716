"""Reading messages. Anybody can write to the broker, so an entry may be anything.

Celery and kombu raise on most messages that are no task messages, in the worker's loop: it ends,
the broker redelivers the message, and the next worker ends, too. Here every entry becomes a message
that can be refused alone: `guard_channel` is about what kombu does, `check_message` about Celery.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import isfinite
from queue import Empty
from typing import Any
from uuid import uuid4

import structlog
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu.message import Message
from kombu.transport import pyamqp, virtual
from redis import RedisError

# Far more than any request needs, data URIs included.
MOST_BODY_BYTES = 32 * 1024 * 1024
# A Redis list entry is JSON around base64 around the body.
MOST_ENTRY_BYTES = 2 * MOST_BODY_BYTES
LONGEST_ID = 200
MALFORMED = "malformed_message"
UNKNOWN_TASK = "unknown_task"

OnRefused = Callable[[str, str], None]

log = structlog.stdlib.get_logger(__name__)


class RefusedMessageError(Exception):
    """A message that this worker cannot take; the reason quotes nothing of it."""

    def __init__(self, reason: str, code: str = MALFORMED) -> None:
        super().__init__(reason)
        self.code = code


def describe_refusal(error: BaseException | None) -> tuple[str, str]:
    """Code and reason; of a library's error only the type: its text quotes the message."""
    if isinstance(error, RefusedMessageError):
        return error.code, str(error)
    cause = error.__cause__ if error is not None and error.__cause__ is not None else error
    return MALFORMED, f"it cannot be read: {type(cause).__name__}"


def read_named(message: Any) -> Mapping[str, object]:  # noqa: ANN401 - kombu's
    """The keyword arguments of a refused message; empty if it cannot be read."""
    if message.errors:
        return {}
    try:
        payload = message.payload
    except Exception:  # noqa: BLE001 - any error: there is nothing to read
        return {}
    if isinstance(payload, list) and len(payload) == 3:  # noqa: PLR2004 - the protocol's
        return payload[1] if isinstance(payload[1], dict) else {}
    return _get_mapping(payload, "kwargs")


# ------------------------------------------------------------------ what kombu does


def guard_channel(channel: Any, on_refused: OnRefused) -> None:  # noqa: ANN401 - of any transport
    """Let nothing received on this channel raise before it is a message.

    `on_refused` is called with code and reason of an entry that never becomes one.
    """
    if not isinstance(channel, virtual.Channel):
        channel.Message = GuardedAmqpMessage
        return
    channel.Message = GuardedVirtualMessage
    handlers: dict[str, Callable[[], object]] = getattr(channel, "handlers", {})
    if "BRPOP" in handlers:
        handlers["BRPOP"] = partial(_read_or_refuse, handlers["BRPOP"], on_refused)
        client: Any = channel.client  # type: ignore[attr-defined]  # Redis's
        client.parse_response = partial(_bound_entry, client.parse_response)


def _read_or_refuse(read: Callable[[], object], on_refused: OnRefused) -> object:
    """A list entry that is no JSON has left the list already: there is nothing to acknowledge."""
    try:
        return read()
    except (RedisError, OSError, Empty):
        raise
    except (ValueError, TypeError, RecursionError) as error:
        code, reason = describe_refusal(error)
        log.warning("enqueue_refused", message_id=None, code=code, reason=reason)
        on_refused(code, reason)
        return True


def _bound_entry(
    parse: Callable[..., Any], connection: object, command: str, **options: object
) -> Any:  # noqa: ANN401 - Redis's reply
    """An entry that is too large is replaced before it is unpacked; what comes of it is refused."""
    reply = parse(connection, command, **options)
    if command == "BRPOP" and reply and len(reply[1]) > MOST_ENTRY_BYTES:
        return reply[0], b'{"refused": "too large"}'
    return reply


class GuardedVirtualMessage(virtual.Message):
    """Of Redis: what cannot be read is a message with an error, which kombu hands to Celery."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:  # noqa: ANN401
        self._raw = payload
        try:
            _weigh_envelope(payload)
            super().__init__(payload, channel=channel, **options)
        except Exception:  # noqa: BLE001 - any error: this message alone is refused
            properties = _get_mapping(payload, "properties")
            tag = properties.get("delivery_tag")
            _become_unreadable(
                self,
                headers=_get_mapping(payload, "headers"),
                channel=channel,
                delivery_tag=tag if isinstance(tag, str) else str(uuid4()),
                delivery_info=_name_origin(_get_mapping(properties, "delivery_info")),
            )


class GuardedAmqpMessage(pyamqp.Message):
    """Of RabbitMQ."""

    def __init__(self, msg: Any, channel: Any = None, **options: Any) -> None:  # noqa: ANN401
        try:
            _weigh(msg.properties.get("application_headers"), msg.body)
            super().__init__(msg, channel=channel, **options)
        except Exception:  # noqa: BLE001 - any error: this message alone is refused
            _become_unreadable(
                self,
                headers=_get_mapping(msg.properties, "application_headers"),
                channel=channel,
                delivery_tag=msg.delivery_tag,
                delivery_info=msg.delivery_info,
            )


def _weigh_envelope(payload: object) -> None:
    if not isinstance(payload, dict):
        raise RefusedMessageError("it is no JSON object")
    if payload.get("refused"):
        raise RefusedMessageError("it is too large", "message_too_large")
    properties = payload["properties"]
    if not isinstance(properties["delivery_tag"], str):
        raise RefusedMessageError("its delivery tag is no text")
    origin = properties["delivery_info"]
    if not all(isinstance(origin[name], str) for name in ("exchange", "routing_key")):
        raise RefusedMessageError("its origin is no text")
    _weigh(payload.get("headers"), payload.get("body"))


def _weigh(headers: object, body: object) -> None:
    if headers is not None and not isinstance(headers, dict):
        raise RefusedMessageError("its headers are no object")
    if headers and headers.get("compression"):
        raise RefusedMessageError("it is compressed, which is not supported", "message_compressed")
    if body is not None and not isinstance(body, str | bytes | bytearray | memoryview):
        raise RefusedMessageError("its body is no text")
    if body is not None and len(body) > MOST_BODY_BYTES:
        raise RefusedMessageError("its body is too large", "message_too_large")


def _become_unreadable(message: Message, *, headers: Mapping[str, object], **origin: Any) -> None:  # noqa: ANN401
    """A message without body, and with the error that is being handled."""
    kept = {name: value for name in ("id", "task") if isinstance(value := headers.get(name), str)}
    message.errors = [sys.exc_info()]
    Message.__init__(message, body="", headers=kept, **origin)


def _name_origin(origin: Mapping[str, object]) -> dict[str, str]:
    named = {name: origin.get(name) for name in ("exchange", "routing_key")}
    return {name: value if isinstance(value, str) else "" for name, value in named.items()}


def _get_mapping(outer: object, name: str) -> Mapping[str, object]:
    inner = outer.get(name) if isinstance(outer, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


# ------------------------------------------------------------------ what Celery does


def check_message(message: Any, tasks: Collection[str]) -> None:  # noqa: ANN401 - kombu's
    """Raise RefusedMessageError unless Celery can make a request of it, by either protocol."""
    payload = message.payload
    embed: object = {}
    if isinstance(payload, dict) and "args" in payload:
        fields = {**payload, **message.headers}
        args, kwargs = payload["args"], payload.get("kwargs", {})
    elif isinstance(payload, dict) and "task" not in message.headers:
        fields, args, kwargs = payload, [], payload.get("kwargs", {})
    elif isinstance(payload, list) and len(payload) == 3:  # noqa: PLR2004 - the protocol's
        fields, (args, kwargs, embed) = message.headers, payload
    else:
        raise RefusedMessageError("its body is neither three items nor an object with `args`")
    task, message_id = fields.get("task"), fields.get("id")
    if isinstance(task, str) and task not in tasks:
        raise RefusedMessageError("there is no such task", UNKNOWN_TASK)
    has_id = isinstance(message_id, str) and 0 < len(message_id) <= LONGEST_ID
    limits = fields.get("timelimit") or [None, None]
    for is_right, reason in (
        (isinstance(task, str), "it names no task"),
        (has_id, f"its id is no text of 1 to {LONGEST_ID} characters"),
        (isinstance(fields.get("retries", 0), int | None), "its retries are no number"),
        (
            isinstance(limits, list) and [*map(_is_limit, limits)] == [True, True],
            "its timelimit is no pair of seconds",
        ),
        (_is_time(fields.get("eta")), "its eta is no time"),
        (_is_time(fields.get("expires")), "its expires is no time"),
        (isinstance(args, list), "its args are no list"),
        (isinstance(kwargs, dict), "its kwargs are no object"),
        (isinstance(embed, dict | None), "its third item is no object"),
    ):
        if not is_right:
            raise RefusedMessageError(reason)


def _is_limit(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and isfinite(value) and value > 0)  # type: ignore[arg-type,operator]  # a number


def _is_time(value: object) -> bool:
    """Whether Celery can use it later: years of 1 or 9999 may fail only there."""
    if value is None:
        return True
    try:
        moment = maybe_iso8601(value) if isinstance(value, str) else None
        if moment is not None:
            timezone.to_system(maybe_make_aware(moment)).timestamp()
    except (ValueError, TypeError, AttributeError, OverflowError, OSError):
        return False
    return moment is not None
