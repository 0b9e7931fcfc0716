"""Reading messages. Anybody can write to the broker, so an entry may be anything.

Celery and kombu raise on most messages that are no task messages, in the worker's loop: it ends,
the broker redelivers the message, and the next worker ends, too. Here every entry becomes a message
that can be refused alone: `guard_channel` is about what kombu does, `check_message` about Celery.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from queue import Empty
from typing import Annotated, Any
from uuid import uuid4

import structlog
from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone
from kombu.message import Message
from kombu.transport import pyamqp, virtual
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
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
            origin = _get_mapping(properties, "delivery_info")
            names = ("exchange", "routing_key")
            _become_unreadable(
                self,
                headers=_get_mapping(payload, "headers"),
                channel=channel,
                delivery_tag=_get_text(properties, "delivery_tag") or str(uuid4()),
                delivery_info={name: _get_text(origin, name) for name in names},
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
    properties = _get_mapping(payload, "properties")
    origin = _get_mapping(properties, "delivery_info")
    if not isinstance(payload, dict):
        raise RefusedMessageError("it is no JSON object")
    if payload.get("refused"):
        raise RefusedMessageError("it is too large", "message_too_large")
    texts = (properties.get("delivery_tag"), origin.get("exchange"), origin.get("routing_key"))
    if not all(isinstance(text, str) for text in texts):
        raise RefusedMessageError("its delivery tag or its origin is no text")
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
    kept = {name: text for name in ("id", "task") if (text := _get_text(headers, name))}
    message.errors = [sys.exc_info()]
    Message.__init__(message, body="", headers=kept, **origin)


def _get_mapping(outer: object, name: str) -> Mapping[str, object]:
    inner = outer.get(name) if isinstance(outer, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _get_text(outer: Mapping[str, object], name: str) -> str:
    text = outer.get(name)
    return text if isinstance(text, str) else ""


# ------------------------------------------------------------------ what Celery does


def _check_time(value: str) -> str:
    """Celery can use it later, too: years of 1 or 9999 may fail only there."""
    moment = maybe_iso8601(value)
    if moment is None:
        raise ValueError
    timezone.to_system(maybe_make_aware(moment)).timestamp()
    return value


Time = Annotated[str, AfterValidator(_check_time)] | None
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None


class TaskMessage(BaseModel):
    """What Celery makes a request of, by either protocol."""

    model_config = ConfigDict(strict=True)

    task: str
    id: Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
    retries: int | None = 0
    timelimit: Annotated[list[Limit], Field(min_length=2, max_length=2)] | None = None
    eta: Time = None
    expires: Time = None
    args: list[Any]
    named: Annotated[dict[str, Any], Field(alias="kwargs")]
    embed: dict[str, Any] | None = None


def check_message(message: Any, tasks: Collection[str]) -> None:  # noqa: ANN401 - kombu's
    """Raise RefusedMessageError unless Celery can make a request of it."""
    payload = message.payload
    if isinstance(payload, list) and len(payload) == 3:  # noqa: PLR2004 - the protocol's
        args, kwargs, embed = payload
        fields = {**message.headers, "args": args, "kwargs": kwargs, "embed": embed}
    elif isinstance(payload, dict) and ("args" in payload or "task" not in message.headers):
        fields = {"args": [], "kwargs": {}, **message.headers, **payload, "embed": None}
    else:
        raise RefusedMessageError("its body is neither three items nor an object with `args`")
    task = fields.get("task")
    if isinstance(task, str) and task not in tasks:
        raise RefusedMessageError("there is no such task", UNKNOWN_TASK)
    try:
        TaskMessage.model_validate(fields)
    except ValidationError as error:
        wrong = sorted({str(detail["loc"][0]) for detail in error.errors()})
        raise RefusedMessageError(f"missing or malformed: {', '.join(wrong)}") from None
