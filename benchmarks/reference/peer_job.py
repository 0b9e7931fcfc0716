"""A job as a careful user of any engine writes it: pay, note the request, wait, download, record.

The request is noted as soon as it is known, and looked up before paying: what the engine runs again
goes on with a request that was paid already. Between the POST and the note nothing can help.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
from psycopg_pool import ConnectionPool

APP = "fal-ai/ltx-2.3-22b"
POLL_SECONDS = 0.2
LEASE_SECONDS = float(os.environ["LEASE_SECONDS"])
"""Without a heartbeat for so long, a worker is taken for dead."""
CONCURRENCY = 32
TABLES = (
    "CREATE TABLE requests (job_id text PRIMARY KEY, request_id text NOT NULL)",
    "CREATE TABLE results (job_id text PRIMARY KEY, path text NOT NULL)",
)

logging.getLogger("httpx").setLevel(logging.WARNING)
queue = httpx.Client(
    base_url=os.environ["FAL_QUEUE_URL"],
    headers={"Authorization": f"Key {os.environ['FAL_KEY']}"},
    timeout=30,
    trust_env=False,
)
pool = ConnectionPool(os.environ["DATABASE_URL"], min_size=0, max_size=8, open=True)


def run(job_id: str) -> None:
    """All of it, by an engine that begins from the start again."""
    keep(job_id, wait_for_video(submit(job_id)))


def submit(job_id: str) -> str:
    """The id of the request, which is paid for once if nothing dies meanwhile."""
    with pool.connection() as connection:
        select = "SELECT request_id FROM requests WHERE job_id = %s"
        noted = connection.execute(select, [job_id]).fetchone()
    if noted is not None:
        return str(noted[0])
    fields = {"prompt": f"chaos {job_id}", "num_frames": 9, "num_context_frames": 5}
    fields["video_url"] = "http://127.0.0.1/never-fetched.mp4"
    answer = queue.post(f"/{APP}/extend-video", json=fields).raise_for_status()
    request_id = str(answer.json()["request_id"])
    with pool.connection() as connection:
        insert = "INSERT INTO requests VALUES (%s, %s) ON CONFLICT DO NOTHING"
        connection.execute(insert, [job_id, request_id])
    return request_id


def wait_for_video(request_id: str) -> str:
    """Its URL, as soon as the request is complete."""
    path = f"/{APP}/requests/{request_id}"
    while queue.get(f"{path}/status").raise_for_status().json()["status"] != "COMPLETED":
        time.sleep(POLL_SECONDS)
    return str(queue.get(path).raise_for_status().json()["video"]["url"])


def keep(job_id: str, url: str) -> None:
    path = Path(os.environ["ARCHIVE"]) / f"{job_id}.mp4"
    with queue.stream("GET", url) as answer, path.open("wb") as file:
        for chunk in answer.raise_for_status().iter_bytes():
            file.write(chunk)
        os.fsync(file.fileno())
    with pool.connection() as connection:
        insert = "INSERT INTO results VALUES (%s, %s) ON CONFLICT DO NOTHING"
        connection.execute(insert, [job_id, str(path)])


def prepare() -> None:
    Path(os.environ["ARCHIVE"]).mkdir()
    with pool.connection() as connection:
        for statement in TABLES:
            connection.execute(statement)


def produce(enqueue: Callable[[str], object]) -> None:
    """As many jobs as the command line says, so many in a second; tells each id afterwards."""
    count, pace = int(sys.argv[2]), float(sys.argv[3])
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / pace - time.monotonic()))
        job_id = str(uuid4())
        enqueue(job_id)
        print(job_id, flush=True)
