"""Documents in which a command renews what it has measured, with the day and the machine."""

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def put_between(document: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- begin of MARK -->` and `<!-- end of MARK -->`."""
    begin, end = (f"<!-- {word} of {mark} -->" for word in ("begin", "end"))
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{document.name} lacks the marks of {mark}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def describe_run(command: str) -> str:
    """Command, day, machine and versions."""
    parts = ("celery", "kombu", "redis", "sqlalchemy", "psycopg")
    versions = [f"{name} {version(name)}" for name in parts]
    versions += [f"SQLite {sqlite3.sqlite_version}", f"Python {platform.python_version()}"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    return f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {machine}; {', '.join(versions)}."
