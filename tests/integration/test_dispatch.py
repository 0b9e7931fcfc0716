"""What the doorbell writes into a real broker, and how it gives up on one that is away."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from tests.harness.brokers import find_closed_port, open_black_hole, take_messages
from tests.harness.waiting import wait_until
from worker.broker.app import QUEUES, create_app
from worker.broker.dispatch import Dispatcher
from worker.ground.settings import load_settings
from worker.jobs.states import Doorbell, Step

JOB_ID = UUID("01938000-0000-7000-8000-000000000001")
SECRETS = ("the-secret-key", "the-secret-password")
BOUND_SECONDS = 1.5


def build_dispatcher(broker_url: str) -> Dispatcher:
    return Dispatcher(
        load_settings(
            broker_url=broker_url,
            fal_key=SECRETS[0],
            database_url=f"postgresql+psycopg://u:{SECRETS[1]}@127.0.0.1/x",
        )
    )


@pytest.fixture
def dispatcher(redis_url) -> Iterator[Dispatcher]:
    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    dispatcher = build_dispatcher(redis_url)
    yield dispatcher
    dispatcher.close()


@pytest.fixture
def hasty(monkeypatch) -> None:
    """A test waits for this bound."""
    monkeypatch.setattr("worker.broker.dispatch.PUBLISH_TIMEOUT", timedelta(seconds=0.2))


@pytest.fixture
def capture_logs(monkeypatch) -> list[dict[str, object]]:
    """What the dispatcher logs, from whatever thread."""
    lines: list[dict[str, object]] = []

    class Log:
        def warning(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

    monkeypatch.setattr("worker.broker.dispatch.log", Log())
    return lines


def take_all(redis_url: str) -> dict[str, list[dict[str, Any]]]:
    return {queue: take_messages(redis_url, queue) for queue in QUEUES.values()}


def test_ring_all_writes_messages_as_ring_does_in_order(dispatcher, redis_url) -> None:
    """But for what differs between any two messages."""
    bells = [Doorbell(step, UUID(int=number)) for number in range(60) for step in Step]
    assert dispatcher.publish_all(bells)
    together = take_all(redis_url)
    for bell in bells:
        assert dispatcher.publish(bell)
    alone = take_all(redis_url)

    ids = set()
    for message in chain(*together.values()):
        assert message["headers"]["id"] == message["headers"]["root_id"]
        ids |= {message["headers"]["id"], message["properties"]["delivery_tag"]}
    assert len(ids) == 2 * len(bells)
    for message in [
        one for queues in (together, alone) for queue in queues.values() for one in queue
    ]:
        for name in ("id", "root_id"):
            del message["headers"][name]
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            message["properties"].pop(name, None)
    assert together == alone


def test_ring_all_of_nobody_asks_no_broker() -> None:
    assert build_dispatcher(f"redis://127.0.0.1:{find_closed_port()}/0").publish_all([])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("away", ["refusing", "silent"])
def test_ring_all_gives_up_in_time_on_a_broker_that_is_away(away) -> None:
    with open_black_hole() as hole:
        port = hole.port if away == "silent" else find_closed_port()
        dispatcher = build_dispatcher(f"redis://127.0.0.1:{port}/0")
        began = time.monotonic()
        assert not dispatcher.publish_all([Doorbell(Step.SUBMIT, JOB_ID)] * 1000)
        assert time.monotonic() - began < 5
        dispatcher.close()


@pytest.mark.parametrize("step", Step)
def test_ring_publishes_task_name_and_job_id_only(dispatcher, redis_url, step) -> None:
    assert dispatcher.publish(Doorbell(step, JOB_ID))

    messages = {queue: take_messages(redis_url, queue) for queue in QUEUES.values()}
    (message,) = messages.pop(f"extend_video.{step.value}")
    assert not any(messages.values()), "a doorbell rings in one queue"
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == f"extend_video.{step.value}"
    assert (message["headers"]["eta"], message["headers"]["retries"]) == (None, 0)
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([str(JOB_ID)], {})
    assert not any(embed.values())


def test_ring_writes_no_secret(dispatcher, redis_url) -> None:
    dispatcher.publish(Doorbell(Step.SUBMIT, JOB_ID))

    (message,) = take_messages(redis_url, "extend_video.submit")
    text = json.dumps(message) + base64.b64decode(message["body"]).decode()
    assert not [secret for secret in SECRETS if secret in text]


def test_ring_without_doorbell_publishes_nothing(dispatcher, redis_url) -> None:
    assert dispatcher.publish(None)

    assert not any(take_messages(redis_url, queue) for queue in QUEUES.values())


def test_ring_reaches_queue_that_worker_consumes(dispatcher, redis_url) -> None:
    dispatcher.publish(Doorbell(Step.SUBMIT, JOB_ID))

    worker: Celery = create_app(load_settings(broker_url=redis_url))
    with worker.connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUES["extend_video.submit"])
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
    assert message.payload[0] == [str(JOB_ID)]
    worker.close()


def test_ring_from_many_threads_publishes_each_once(dispatcher, redis_url) -> None:
    bells = [Doorbell(Step.ARCHIVE, UUID(int=number)) for number in range(20)]
    threads = [threading.Thread(target=dispatcher.publish, args=(bell,)) for bell in bells]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    messages = take_messages(redis_url, "extend_video.archive")
    published = [json.loads(base64.b64decode(message["body"]))[0][0] for message in messages]
    assert sorted(published) == [str(bell.job_id) for bell in bells]


def test_ring_soon_publishes_all_by_flush(dispatcher, redis_url) -> None:
    bells = [Doorbell(Step.ARCHIVE, UUID(int=number)) for number in range(20)]
    for bell in bells:
        dispatcher.publish_soon(bell)
    dispatcher.publish_soon(None)
    dispatcher.flush()

    messages = take_messages(redis_url, "extend_video.archive")
    assert len(messages) == len(bells)
    assert dispatcher.publish(bells[0]), "a flushed one rings again"


@pytest.mark.usefixtures("hasty")
def test_ring_soon_at_silent_broker_waits_for_nothing_and_logs_each(capture_logs) -> None:
    with open_black_hole() as hole:
        dispatcher = build_dispatcher(hole.redis_url)
        started = time.monotonic()
        for number in range(49):
            dispatcher.publish_soon(Doorbell(Step.ARCHIVE, UUID(int=number)))
        dispatcher.publish_soon(Doorbell(Step.SUBMIT))
        assert time.monotonic() - started < BOUND_SECONDS
        assert len([one for one in threading.enumerate() if one.name == "publisher"]) == 1
        wait_until(lambda: len(capture_logs) == 50)
        dispatcher.close()
    assert {line["event"] for line in capture_logs} == {"doorbell_lost"}
    named = [line["job_id"] for line in capture_logs if "job_id" in line]
    assert len(named) == len(set(named)) == 49, "a submission names no job"


def list_call_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "call_within"]


def assert_gives_up_in_time(broker_url: str) -> None:
    dispatcher = build_dispatcher(broker_url)
    for ask in (lambda: dispatcher.publish(Doorbell(Step.SUBMIT, JOB_ID)), dispatcher.ping):
        started = time.monotonic()
        assert ask() is False
        assert time.monotonic() - started < BOUND_SECONDS
    dispatcher.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_ring_at_refusing_broker_gives_up_in_time(scheme) -> None:
    assert_gives_up_in_time(f"{scheme}://127.0.0.1:{find_closed_port()}//")


@pytest.mark.slow  # kombu tries for four seconds before its thread ends
@pytest.mark.usefixtures("hasty")
def test_ring_at_silent_broker_gives_up_and_ends_its_threads() -> None:
    with open_black_hole() as hole:
        for url in (hole.redis_url, hole.amqp_url):
            assert_gives_up_in_time(url)
        assert hole.connections, "the broker was never asked"
        # Threads that stay behind would pile up, one for each delivery while the broker is away.
        wait_until(lambda: not list_call_threads(), seconds=10)


def test_ping_with_broker_there_succeeds(dispatcher) -> None:
    assert dispatcher.ping()


def test_ring_over_connection_that_broker_dropped_recovers(redis_url, dispatcher) -> None:
    import redis

    bell = Doorbell(Step.SUBMIT, JOB_ID)
    assert dispatcher.publish(bell)
    with redis.Redis(unix_socket_path=redis_url.removeprefix("redis+socket://")) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    dispatcher.publish(bell)
    assert dispatcher.publish(bell)
    assert len(take_messages(redis_url, "extend_video.submit")) >= 2
