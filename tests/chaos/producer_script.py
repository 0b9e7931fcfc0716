"""Another service, as a script: commits jobs at a steady pace until it is told to end.

It knows two rules. A wish that it could not commit is repeated, under the same job id, until it is.
And while too many jobs are under way, which it reads from the job table, it waits.
"""

import os
import signal
import sys
import threading
import time
from uuid import UUID, uuid4

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from worker.producer import enqueue

REPEAT_SECONDS = 0.1
LIVE = text("SELECT count(*) FROM jobs WHERE due_at IS NOT NULL")


def main(pace: float, count: int, most_live: int) -> None:
    """Enqueue `count` jobs, `pace` of them in a second; each id is printed once it is committed."""
    told_to_end = threading.Event()
    engine = create_engine(os.environ["DATABASE_URL"], pool_pre_ping=True)
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    began = time.monotonic()
    for number in range(count):
        if told_to_end.wait(max(0.0, began + number / pace - time.monotonic())):
            break
        if most_live:
            wait_for_room(engine, most_live, told_to_end)
        job_id = uuid4()
        commit(job_id)
        print(job_id, flush=True)


def wait_for_room(engine: Engine, most_live: int, told_to_end: threading.Event) -> None:
    while not told_to_end.is_set() and count_live(engine) >= most_live:
        told_to_end.wait(REPEAT_SECONDS)


def count_live(engine: Engine) -> int:
    """0 while the database is away: committing then waits for it anyhow."""
    try:
        with engine.connect() as connection:
            return int(connection.execute(LIVE).scalar_one())
    except SQLAlchemyError:
        return 0


def commit(job_id: UUID) -> None:
    while True:
        try:
            enqueue(
                job_id=job_id,
                prompt=f"chaos {job_id}",
                video_url="http://127.0.0.1/never-fetched.mp4",
                num_frames=9,
                num_context_frames=5,
            )
        except SQLAlchemyError:
            threading.Event().wait(REPEAT_SECONDS)
        else:
            return


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
