"""The Celery application: queues and schedule, no tasks. SQL is the truth, this is the doorbell."""

import signal
import sys
from functools import cache
from typing import Any, NoReturn

from celery import Celery
from celery.beat import Service
from celery.signals import beat_init, setup_logging
from kombu import Queue

from worker.broker.transport import (
    PUBLISHER_SECONDS,
    choose_consumer_options,
    choose_publisher_options,
    choose_tls,
    is_amqp,
    refuse_cluster,
)
from worker.ground.errors import InvalidSettingsError
from worker.ground.log import configure_logging
from worker.ground.settings import Settings, list_secrets, load_settings

ENQUEUE = "extend_video.enqueue"
SUBMIT = "extend_video.submit"
RECONCILE = "extend_video.reconcile"
ARCHIVE = "extend_video.archive"
CANCEL = "extend_video.cancel"
SWEEP = "extend_video.sweep"
# A queue for each task, so that a worker given only some of them (-Q) cannot be starved by others:
# long downloads wait in their own queue, beside the submissions.
QUEUES = {ENQUEUE: "extend_video"}
QUEUES |= {task: task for task in (SUBMIT, RECONCILE, ARCHIVE, CANCEL, SWEEP)}


def create_app(settings: Settings) -> Celery:
    """Build the application of workers and beat; it imports the tasks, and how they end."""
    included = ["worker.tasks", "worker.lifecycle.shutdown", "worker.lifecycle.liveness"]
    app = Celery("extend_video", broker=settings.broker_url, include=included)
    app.conf.update(
        **_choose_common(settings),
        broker_connection_retry_on_startup=True,
        broker_transport_options=choose_consumer_options(settings),
        beat_schedule={
            "sweep": {
                "task": SWEEP,
                # Never with `expires`, a time of this host's clock that another host's would judge.
                # A sweep that waited behind another finds it done, and ends at once.
                "schedule": settings.sweep_seconds,
            }
        },
        # Nothing to remember between runs, and so nothing that two schedulers could fight over.
        beat_scheduler="worker.broker.beat:Scheduler",
        # Without end. A reply that only a wrong or a changing server gives (READONLY, MOVED,
        # UNBLOCKED) is an outage as well, and ends nothing.
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        # Anybody who can write to the broker could otherwise end or slow down every worker.
        worker_enable_remote_control=settings.remote_control,
        worker_consumer="worker.lifecycle.consumer:Consumer",
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # For Flower and `celery events`. Publishers send none: the event would cost more than the
        # message.
        worker_send_task_events=True,
    )
    app.Task.Request = "worker.lifecycle.consumer:Request"
    app.steps["consumer"].add("worker.lifecycle.liveness:Pulse")
    return app


def create_publisher(settings: Settings) -> Celery:
    """Build an application that only publishes: every wait is short, nothing is repeated."""
    app = Celery("extend_video", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        **_choose_common(settings),
        task_publish_retry=False,
        broker_connection_timeout=PUBLISHER_SECONDS,
        broker_transport_options=choose_publisher_options(settings),
    )
    return app


@cache
def get_app() -> Celery:
    """The application of this process, from the environment; ends the process if that is wrong."""
    try:
        settings = load_settings()
    except InvalidSettingsError as error:
        sys.exit("\n".join(map(str, error.violations)))
    level, log_format, secrets = settings.log_level, settings.log_format, list_secrets(settings)
    setup_logging.connect(lambda **_: configure_logging(level, log_format, secrets), weak=False)
    return create_app(settings)


def check_broker(settings: Settings) -> None:
    """Raise InvalidSettingsError for a broker that can hold no queues, if it is reachable."""
    with create_publisher(settings) as app, app.connection_for_write() as connection:
        refuse_cluster(connection, settings.broker_url)


@beat_init.connect
def prepare_beat(sender: Service, **_: object) -> None:
    """End a scheduler whose broker can hold no queues, and let SIGTERM and SIGINT end any other.

    Celery's own handler only raises SystemExit; within redis-py an error of its clean-up takes its
    place, which beat logs and goes on.
    """
    try:
        check_broker(load_settings())
    except InvalidSettingsError as error:
        sys.exit(f"{error.code}: {error}")

    def end(*_: object) -> NoReturn:
        sender.stop()
        raise SystemExit

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _choose_common(settings: Settings) -> dict[str, Any]:
    """What publishers and consumers must agree on."""
    # RabbitMQ's queues are replicated: a job request outlives the loss of a node.
    arguments = {"x-queue-type": "quorum"} if is_amqp(settings.broker_url) else None
    return {
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_ignore_result": True,
        "result_backend": None,
        "task_default_queue": QUEUES[ENQUEUE],
        "task_routes": {task: {"queue": name} for task, name in QUEUES.items()},
        "enable_utc": True,
        "timezone": "UTC",
        "broker_use_ssl": choose_tls(settings),
        "task_queues": [
            Queue(name, routing_key=name, queue_arguments=arguments) for name in QUEUES.values()
        ],
    }
