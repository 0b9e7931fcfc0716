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
from kombu.asynchronous.hub import Hub
from kombu.transport.redis import Transport

DIRECTORY = Path(sys.argv.pop(1)) if __name__ == "__main__" else Path()
create_loop, on_readable = Hub.create_loop, Transport.on_readable


def turn(hub: Any, *args: Any, **options: Any) -> Iterator[Any]:
    for step in create_loop(hub, *args, **options):
        if (DIRECTORY / "stuck").exists():
            threading.Event().wait()
        yield step


def read(transport: Any, descriptor: int) -> None:
    if (DIRECTORY / "deaf").exists():
        threading.Event().wait(0.1)
        return
    on_readable(transport, descriptor)


if __name__ == "__main__":
    setattr(Hub, "create_loop", turn)  # noqa: B010 - mypy knows of no other method there
    setattr(Transport, "on_readable", read)  # noqa: B010 - the same
    main()
