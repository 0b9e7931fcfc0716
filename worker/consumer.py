"""What a worker's consumer starts with: nothing that only workers talking to each other need."""

from collections.abc import Callable, Mapping
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

_SILENT = {"without_mingle": True, "without_gossip": True}


class Consumer(CeleryConsumer):
    """Celery's, without mingle and gossip, whatever the command line says.

    Mingle costs each start a second, gossip a message for every event of every other worker, and
    its step raises at the end of a worker whose broker is away (ConsumerStep._close in
    celery.bootsteps 5.7.0), which then ends with exit code 1. Workers here learn of each other
    from SQL.
    """

    def __init__(self, on_task_request: Callable[..., None], **settings: Any) -> None:  # noqa: ANN401 - Celery's own
        options: Mapping[str, Any] = settings.pop("worker_options", None) or {}
        super().__init__(on_task_request, worker_options={**options, **_SILENT}, **settings)
