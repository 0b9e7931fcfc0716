"""The job as a Celery task on Redis: acknowledged before it runs (the default), or after it.

`python peer_celery.py prepare | produce COUNT PACE`; the worker is `celery -A peer_celery worker`.
"""

import os
import sys

import peer_job
from celery import Celery

VISIBILITY_SECONDS = 10
"""Nothing renews it while a task runs: it has to be longer than any takes on a busy machine."""
IS_LATE = os.environ["ACKNOWLEDGED"] == "late"

app = Celery("peer", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_acks_late=IS_LATE,
    task_reject_on_worker_lost=IS_LATE,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
)
run = app.task(name="peer.run")(peer_job.run)

if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        peer_job.prepare()
    else:
        peer_job.produce(run.delay)
