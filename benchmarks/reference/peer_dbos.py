"""The job as a DBOS workflow of three steps, from a queue; recovered when its worker starts again.

`python peer_dbos.py prepare | produce COUNT PACE | work`
"""

import os
import sys
import threading

import peer_job
from dbos import DBOS, DBOSClient

QUEUE, VERSION = "jobs", "1"

submit = DBOS.step()(peer_job.submit)
wait_for_video = DBOS.step()(peer_job.wait_for_video)
keep = DBOS.step()(peer_job.keep)


def run(job_id: str) -> None:
    keep(job_id, wait_for_video(submit(job_id)))


def launch() -> None:
    DBOS(
        config={
            "name": "peer",
            "system_database_url": os.environ["DATABASE_URL"],
            "application_version": VERSION,
            "log_level": "WARNING",
        }
    )
    DBOS.workflow(name="run")(run)
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=peer_job.CONCURRENCY, polling_interval_sec=peer_job.POLL_SECONDS
    )


def produce() -> None:
    client = DBOSClient(system_database_url=os.environ["DATABASE_URL"], application_name="peer")
    options = {"queue_name": QUEUE, "workflow_name": "run", "app_version": VERSION}
    peer_job.produce(lambda job_id: client.enqueue({**options, "workflow_id": job_id}, job_id))
    client.destroy()


if __name__ == "__main__":
    match sys.argv[1]:
        case "prepare":
            peer_job.prepare()
            launch()
            DBOS.destroy()
        case "produce":
            produce()
        case _:
            launch()
            print("peer ready.", flush=True)
            threading.Event().wait()
