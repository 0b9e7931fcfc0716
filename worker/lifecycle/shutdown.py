"""How a worker ends: its steps may go on for a while after SIGTERM, then their rows are released.

Celery waits for running tasks without end. A download may take minutes, and supervisors wait for
half a minute: so after DRAIN_SECONDS downloads are given back, and a little later the process ends
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

# From the giving back to the end: time for downloads to notice, and for a POST to be answered.
LAST_WORDS = timedelta(seconds=4)
# Of one transaction: what cannot be given back in it is taken over when its lease ends.
RETURN_TIME = timedelta(seconds=1.5)
V = TypeVar("V")

log = structlog.stdlib.get_logger(__name__)


@worker_shutting_down.connect
def begin_drain(**_: object) -> None:
    """Celery takes no more messages, and a thread sees to the end."""
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
    """Wait, give back what runs, and end this process in any case."""
    time.sleep(get_runtime().settings.drain_seconds.total_seconds())
    try:
        for child in active_children():
            child.terminate()
        _give_back()
        time.sleep(LAST_WORDS.total_seconds())
        for child in active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(child.pid, signal.SIGKILL)
    finally:
        _end_process()


def _give_back() -> None:
    runtime = get_runtime()
    doorbells = _try_within_time(lambda: return_downloads(runtime.worker, db=runtime.db)) or []
    log.info("downloads_given_back", job_ids=[str(one.job_id) for one in doorbells])
    for doorbell in doorbells:
        # One by one, each within a second: the process has to end in time.
        if not runtime.dispatcher.publish(doorbell):
            return


def _end_process() -> NoReturn:
    """Now, in any step; what it holds can be taken over at once."""
    try:
        runtime = get_runtime()
        _give_back()
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
