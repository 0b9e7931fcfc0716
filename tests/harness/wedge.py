"""`celery` with a consumer that can be wedged: `python wedge.py DIRECTORY -A worker worker ...`.

Once the directory has a file `stuck`, the loop stands still for ever; once it has `deaf`, the loop
turns and takes no message. Celery and Redis have done both to others, seldom and without a word.
"""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery.__main__ import main
from kombu import Connection
from kombu.asynchronous.hub import Hub

DIRECTORY = Path(sys.argv.pop(1)) if __name__ == "__main__" else Path()
create_loop, drain_events = Hub.create_loop, Connection.drain_events


def stand_still() -> None:
    if (DIRECTORY / "stuck").exists():
        threading.Event().wait()


def turn(hub: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """The loop of a worker with child processes."""
    for step in create_loop(hub, *args, **options):
        stand_still()
        yield step


def drain(connection: Any, *args: Any, **options: Any) -> Any:
    """The loop of a worker with threads."""
    stand_still()
    if (DIRECTORY / "deaf").exists():
        threading.Event().wait(0.5)
        raise TimeoutError
    return drain_events(connection, *args, **options)


if __name__ == "__main__":
    setattr(Hub, "create_loop", turn)  # noqa: B010 - mypy knows of no other method there
    setattr(Connection, "drain_events", drain)  # noqa: B010 - the same
    main()
