"""How a worker shuts down: after SIGTERM its steps may run on for a while, then it releases them.

Celery waits for running tasks without end. A download may take minutes, and supervisors wait for
half a minute: so after DRAIN_SECONDS downloads are released, and a little later the process ends
with what else still runs. None of it costs money, and no job is lost by it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, TypeVar

import structlog
from billiard.process import active_children
from celery.signals import task_prerun, worker_process_init, worker_shutting_down

from worker.ground.clock import call_within
from worker.ground.db import describe_database_error
from worker.runtime import get_runtime
from worker.stages.sweep import end_leases, return_downloads

# Between the release and the end: downloads stop, and a POST may still get its reply.
RELEASE_TIME = timedelta(seconds=4)
# For one transaction: what it cannot release is taken over when its lease ends.
RETURN_TIME = timedelta(seconds=1.5)
V = TypeVar("V")

log = structlog.stdlib.get_logger(__name__)


@worker_shutting_down.connect
def begin_drain(**_: object) -> None:
    """Celery takes no more messages, and a thread ends the process."""
    get_runtime().ending.set()
    threading.Thread(target=drain, name="drain", daemon=True).start()


@worker_process_init.connect
def await_first_task(**_: object) -> None:
    """In a forked process. Its pool sets signals after this, so it is too early for ours."""
    task_prerun.connect(end_child_on_signal)


def end_child_on_signal(**_: object) -> None:
    """SIGTERM comes from its parent, or from a supervisor that signals the whole group."""
    signal.signal(signal.SIGTERM, lambda *_: _end_process())


def drain() -> None:
    """Wait, release what runs, and end this process in any case."""
    time.sleep(get_runtime().settings.drain_seconds.total_seconds())
    try:
        for child in active_children():
            child.terminate()
        _release_downloads()
        time.sleep(RELEASE_TIME.total_seconds())
        for child in active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(child.pid, signal.SIGKILL)
    finally:
        _end_process()


def _release_downloads() -> None:
    runtime = get_runtime()
    doorbells = _try_within_time(lambda: return_downloads(runtime.worker, db=runtime.db)) or []
    log.info("downloads_given_back", job_ids=[str(one.job_id) for one in doorbells])
    for doorbell in doorbells:
        # Each within a second: the process has to end in time.
        if not runtime.dispatcher.publish(doorbell):
            return


def _end_process() -> NoReturn:
    """At once, in any step; other workers can take over what it holds."""
    try:
        runtime = get_runtime()
        _release_downloads()
        left = _try_within_time(lambda: end_leases(runtime.worker, db=runtime.db))
        log.warning("worker_ended_at_work", job_ids=[str(job_id) for job_id in left or []])
    finally:
        os._exit(0)


def _try_within_time(write: Callable[[], V]) -> V | None:
    try:
        return call_within(RETURN_TIME, write)
    except Exception as error:  # noqa: BLE001 - the process has to end in time
        reason = describe_database_error(error)
        log.warning("rows_not_given_back", error=type(error).__name__, reason=reason)
        return None
