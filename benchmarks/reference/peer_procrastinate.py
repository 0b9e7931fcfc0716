"""The job as a Procrastinate task, and the periodic task of its manual that retries stalled jobs.

`python peer_procrastinate.py prepare | produce COUNT PACE | work`
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import peer_job
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"], max_size=8))
run = app.task(name="run", retry=True)(peer_job.run)


async def retry_stalled_jobs(timestamp: int) -> None:
    del timestamp
    stalled = await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=peer_job.LEASE_SECONDS)
    for job in stalled:
        await app.job_manager.retry_job(job)


# each second, by the sixth column
app.periodic(cron="* * * * * *")(
    app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs", queue="care")(
        retry_stalled_jobs
    )
)


async def work() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(peer_job.CONCURRENCY))
    async with app.open_async():
        print("peer ready.", flush=True)
        await app.run_worker_async(
            concurrency=peer_job.CONCURRENCY,
            fetch_job_polling_interval=peer_job.POLL_SECONDS,
            update_heartbeat_interval=peer_job.LEASE_SECONDS / 3,
            stalled_worker_timeout=peer_job.LEASE_SECONDS,
        )


if __name__ == "__main__":
    match sys.argv[1]:
        case "prepare":
            peer_job.prepare()
            with app.open():
                app.schema_manager.apply_schema()
        case "produce":
            with app.open():
                peer_job.produce(lambda job_id: run.defer(job_id=job_id))
        case _:
            asyncio.run(work())
