"""Whatever the broker holds, it is a task message or is refused alone, with a code and a reason."""

import json
import logging
from contextlib import closing
from types import SimpleNamespace

import amqp
import pytest
from kombu import Connection

from tests.harness.logs import preserved_logging
from tests.harness.poison import (
    BODY,
    ENTRIES,
    FIELDS,
    POISON,
    build_bomb,
    build_entry,
    build_headers,
    build_v1,
)
from worker.broker import receiving
from worker.broker.app import ENQUEUE, create_app
from worker.broker.receiving import (
    GuardedAmqpMessage,
    GuardedVirtualMessage,
    RefusedMessageError,
    check_message,
    describe_refusal,
)
from worker.ground.db import Database
from worker.ground.log import configure_logging
from worker.ground.settings import load_settings
from worker.jobs.job_requests import StoredRequest, list_refused
from worker.lifecycle import consumer as consuming
from worker.lifecycle.consumer import Consumer, Request

TASKS = {ENQUEUE}


@pytest.fixture
def channel():
    with Connection("memory://") as connection:
        yield connection.channel()


def refuse(message) -> tuple[str, str]:
    """The code and the reason for which the message is refused."""
    if message.errors:
        return describe_refusal(message.errors[0][1])
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the consumer takes any
        check_message(message, TASKS)
    return describe_refusal(caught.value)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry[0] in "{["])
def test_entry_of_redis_is_refused_and_quotes_nothing(channel, name) -> None:
    try:
        raw = json.loads(ENTRIES[name])
    except RecursionError:
        return  # kombu raises before there is a message: test_messages
    message = GuardedVirtualMessage(raw, channel=channel)
    code, reason = refuse(message)
    assert code in {"malformed_message", "unknown_task", "message_compressed"}
    assert "nobody" not in reason
    assert isinstance(message.delivery_tag, str)
    assert message.delivery_info["routing_key"] in {"", "extend_video"}


@pytest.mark.parametrize("name", POISON)
def test_message_of_rabbitmq_is_refused(name) -> None:
    body, headers = POISON[name]
    message = make_amqp(json.dumps(body).encode(), headers)
    assert refuse(message)[0] in {"malformed_message", "unknown_task"}


def make_amqp(body: bytes, headers: object) -> GuardedAmqpMessage:
    properties = {"content_type": "application/json", "content_encoding": "utf-8"}
    raw = amqp.Message(body, application_headers=headers, **properties)
    raw.delivery_info = {"delivery_tag": 7, "exchange": "", "routing_key": "extend_video"}
    return GuardedAmqpMessage(raw)


def test_compressed_message_of_rabbitmq_is_refused_without_unpacking_it(monkeypatch) -> None:
    monkeypatch.setattr("kombu.message.decompress", None)
    message = make_amqp(build_bomb().encode(), build_headers(compression="bzip2"))
    assert refuse(message)[0] == "message_compressed"
    assert message.delivery_info["routing_key"] == "extend_video"


def test_large_body_is_refused_without_reading_it(monkeypatch, channel) -> None:
    monkeypatch.setattr(receiving, "MOST_BODY_BYTES", 100)
    monkeypatch.setattr(channel, "decode_body", None)
    entry = json.loads(build_entry(BODY, build_headers()))
    assert refuse(GuardedVirtualMessage(entry, channel=channel))[0] == "message_too_large"


def test_large_entry_is_replaced_before_it_is_json(monkeypatch, channel) -> None:
    monkeypatch.setattr(receiving, "MOST_ENTRY_BYTES", 100)
    reply = receiving._bound_entry(lambda *_: (b"q", b"x" * 101), None, "BRPOP")
    assert refuse(GuardedVirtualMessage(json.loads(reply[1]), channel=channel))[0] == (
        "message_too_large"
    )
    assert receiving._bound_entry(lambda *_: (b"q", b"x"), None, "BRPOP") == (b"q", b"x")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, build_headers()),
        (BODY, build_headers(timelimit=[None, 5], eta="2030-01-01T00:00:00Z", retries=None)),
        ([[], {}, None], build_headers()),
        (build_v1(), {}),
        (build_v1(expires=None, utc=True), None),
    ],
)
def test_message_of_either_protocol_is_taken(channel, body, headers) -> None:
    message = GuardedVirtualMessage(json.loads(build_entry(body, headers)), channel=channel)
    assert not message.errors
    check_message(message, TASKS)


@pytest.mark.parametrize("body", [BODY, build_v1()], ids=["v2", "v1"])
def test_request_shows_names_of_fields_and_no_values(body) -> None:
    app = create_app(load_settings())
    message = make_amqp(json.dumps(BODY).encode(), build_headers())
    request = Request(message, app=app, task=SimpleNamespace(ignore_result=True))
    assert request.kwargs == FIELDS
    shown = f"{request.argsrepr} {request.kwargsrepr} {request!r}"
    assert "prompt, video_url" in shown
    assert "nobody" not in shown
    assert app.Task.Request == "worker.lifecycle.consumer:Request"


class Pool:
    """What takes the requests, and may be at fault itself."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def take(self, request: object) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("is_pool_at_fault", [True, False])
def test_good_message_is_not_refused_for_a_fault_of_the_pool(monkeypatch, is_pool_at_fault) -> None:
    pool = Pool(RuntimeError("no more threads"))
    hand_over = []
    monkeypatch.setattr(
        consuming.CeleryConsumer, "__init__", lambda self, take, **_: hand_over.append(take)
    )

    def strategy(*_: object) -> None:
        if is_pool_at_fault:
            hand_over[0](object())
        raise ValueError("odd")

    refused: list[object] = []
    monkeypatch.setattr(
        consuming.CeleryConsumer, "create_task_handler", lambda self: lambda _: strategy()
    )
    monkeypatch.setattr(consuming, "guard_channel", lambda *_: None)
    monkeypatch.setattr(Consumer, "_refuse", lambda _, message, error: refused.append(error))
    made = Consumer(pool.take)
    made.task_consumer, made.strategies = SimpleNamespace(channel=None), TASKS
    take = made.create_task_handler()
    message = make_amqp(json.dumps(BODY).encode(), build_headers())
    if is_pool_at_fault:
        with pytest.raises(RuntimeError, match="no more threads"):
            take(message)
        assert refused == []
    else:
        take(message)
        assert [type(error) for error in refused] == [ValueError]


class Poison:
    """A message without an id that the broker has delivered."""

    def __init__(self, routing_key: str) -> None:
        self.errors, self.payload = None, [[], FIELDS, {}]
        self.headers = {"task": ENQUEUE}
        self.delivery_info = {"routing_key": routing_key}
        self.acknowledged = False

    def reject_log_error(self, *_: object) -> None:
        self.acknowledged = True


@pytest.fixture
def consumer(monkeypatch, sqlite_url) -> Consumer:
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    monkeypatch.setattr(consuming.CeleryConsumer, "__init__", lambda *_, **__: None)
    made = Consumer(print)
    made.connection_errors = ()
    return made


def list_kept(url: str) -> list[StoredRequest]:
    with closing(Database(url)) as db, db.reading() as connection:
        return list_refused(connection, 10)


def test_refused_message_is_a_row_before_it_leaves_the_queue(consumer, sqlite_url) -> None:
    message = Poison("extend_video")
    consumer._refuse(message, RefusedMessageError("its id is no text"))
    consumer._keep("malformed_message", "it cannot be read: ValueError")
    assert message.acknowledged
    unreadable, kept = list_kept(sqlite_url)
    assert (kept.door, kept.message_id, kept.error_code) == ("celery", None, "malformed_message")
    assert kept.fields == {
        "prompt": FIELDS["prompt"],
        "video_url": "https://e.com/a.mp4?****",
    }
    assert kept.errors == [
        {"field": None, "code": "malformed_message", "message": "its id is no text"}
    ]
    assert (unreadable.fields, unreadable.tenant) == ({}, "default")


def test_refused_doorbell_is_no_request(consumer, sqlite_url) -> None:
    consumer._refuse(Poison("extend_video.submit"), RefusedMessageError("it names no task"))
    assert list_kept(sqlite_url) == []


def test_refused_message_leaves_the_queue_while_the_database_is_away(
    consumer, monkeypatch, tmp_path
) -> None:
    """It is asked once and not for each of thousands, which would hold up all others."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}")
    asked: list[str] = []

    def open_and_note(url: str, **_: object) -> Database:
        asked.append(url)
        return Database(url)

    monkeypatch.setattr(consuming, "Database", open_and_note)
    for _ in range(3):
        message = Poison("extend_video")
        consumer._refuse(message, RefusedMessageError("its id is no text"))
        assert message.acknowledged
    assert len(asked) == 1


def test_remote_control_is_off_unless_a_setting_turns_it_on() -> None:
    assert create_app(load_settings()).conf.worker_enable_remote_control is False
    assert create_app(load_settings(remote_control=True)).conf.worker_enable_remote_control is True


def test_request_of_debug_logs_is_not_written_by_the_pool() -> None:
    """It would print the body of each message."""
    with preserved_logging():
        configure_logging("debug", "json")
        assert not logging.getLogger("celery.pool").isEnabledFor(logging.DEBUG)
