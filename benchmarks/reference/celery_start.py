"""A bare Celery task that notes how long ago it was published; the doorbell of somebody else."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("reference", broker=os.environ["BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True


@app.task(name="reference.start")
def start(published_at: float) -> None:
    seconds = time.time() - published_at
    with Path(os.environ["STARTS"]).open("a") as file:
        file.write(f"{seconds}\n")
