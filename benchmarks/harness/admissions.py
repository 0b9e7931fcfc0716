"""A worker that writes down how long each transaction took that bought something.

`python -m benchmarks.harness.admissions FILE worker -P threads ...`: Celery's arguments follow the
file, to which a line of seconds is added for each. What is bought has a row in `attempts` first.
The time is from the transaction's begin until its COMMIT is sent, without the disk's flush.
"""

import os
import re
import sys
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, event

BUYING = re.compile(r"\bINSERT INTO attempts\b", re.IGNORECASE)
BEGAN, BUYS = "benchmark_began", "benchmark_buys"


def watch(path: Path) -> None:
    """Of every engine of this process."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @event.listens_for(Engine, "begin")
    def note_begin(connection: Connection) -> None:
        connection.info[BEGAN], connection.info[BUYS] = time.perf_counter(), False

    @event.listens_for(Engine, "before_cursor_execute")
    def note_statement(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if BUYING.search(statement):
            connection.info[BUYS] = True

    @event.listens_for(Engine, "commit")
    def note_commit(connection: Connection) -> None:
        if connection.info.pop(BUYS, False):
            os.write(file, f"{time.perf_counter() - connection.info[BEGAN]}\n".encode())


def read_seconds(path: Path, skipped: int = 0) -> list[float]:
    """In the order in which they were bought, without so many of the first."""
    if not path.exists():
        return []
    return [float(line) for line in path.read_text().splitlines()[skipped:]]


def main() -> None:
    from celery.__main__ import main as run_celery

    path, *words = sys.argv[1:]
    watch(Path(path))
    sys.argv = ["celery", "-A", "worker", *words]
    run_celery()


if __name__ == "__main__":
    main()
