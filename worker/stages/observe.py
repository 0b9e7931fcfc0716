"""Beside the path. observe: count the time in which this process has watched the job table.

A verdict on a lost submission needs observed waiting, not the difference of two clocks (ADR 17).
"""

import time
from collections.abc import Callable
from datetime import timedelta

from worker.ground.db import Database
from worker.jobs.observed import add_observed


class Observer:
    """One for each process that sweeps. The first pass adds nothing: nobody had watched before."""

    def __init__(self, most: timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`most` is what one pass adds at the most: twice the period of the sweep."""
        self._most = most
        self._monotonic = monotonic
        self._seen: float | None = None

    def note(self, db: Database, least: timedelta = timedelta()) -> bool:
        """False if somebody has done so within this time: then nothing is noted."""
        now = self._monotonic()
        since_seen = timedelta(seconds=0 if self._seen is None else now - self._seen)
        with db.statement() as connection:
            is_noted = add_observed(connection, since_seen, self._most, least)
        if is_noted:
            self._seen = now
        return is_noted
