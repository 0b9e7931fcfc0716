"""Another service, as a script: commits jobs at a steady pace until it is told to end.

It knows one rule: a wish that it could not commit is repeated, under the same job id, until it is.
"""

import signal
import sys
import threading
import time
from uuid import UUID, uuid4

from sqlalchemy.exc import SQLAlchemyError

from worker.producer import enqueue

REPEAT_SECONDS = 0.1


def main(pace: float, count: int) -> None:
    """Enqueue `count` jobs, `pace` of them in a second; each id is printed once it is committed."""
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    began = time.monotonic()
    for number in range(count):
        if told_to_end.wait(max(0.0, began + number / pace - time.monotonic())):
            break
        job_id = uuid4()
        commit(job_id)
        print(job_id, flush=True)


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
    main(float(sys.argv[1]), int(sys.argv[2]))
