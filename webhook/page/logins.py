"""Sessions of the page that were logged out, so that no process accepts them again.

A row of `gates` for each, named by a hash, until the session's cookie would be too old anyway.
"""

import hashlib
from datetime import datetime

from worker.ground.db import Database
from worker.jobs import limits
from worker.jobs.values import Gate

ENDED_SESSION = "session"


def end_session(name: str, until: datetime, *, db: Database, now: datetime) -> None:
    """Remember it until then, and forget those of which that is over."""
    with db.transaction() as connection:
        limits.remove_stale(connection, f"{ENDED_SESSION} ", now)
        limits.shut_gate(connection, Gate(_name_gate(name), until, None, 0))


def has_ended(name: str, *, db: Database) -> bool:
    with db.reading() as connection:
        return limits.find_gate(connection, _name_gate(name)) is not None


def _name_gate(name: str) -> str:
    return f"{ENDED_SESSION} {hashlib.sha256(name.encode()).hexdigest()}"
