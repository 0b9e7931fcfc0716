"""SQL on `observed_time`: for how long this deployment has been watching, by no wall clock alone.

Time without a sweep, or by which a clock was set, does not count. An attempt stores the value
at its start; what it has waited is the difference (ADR 17).
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    ScalarSelect,
    func,
    literal,
    or_,
    select,
    update,
)

from worker.jobs.models import AttemptRow, ObservedTimeRow
from worker.jobs.rows import is_postgres, table_of

_OBSERVED, _ATTEMPTS = table_of(ObservedTimeRow), table_of(AttemptRow)
_UNIX_EPOCH_JULIAN_DAY = 2440587.5
_DAY_SECONDS = 86400.0


def observed_seconds() -> ScalarSelect[float]:
    """The value now, for use inside another statement."""
    return select(_OBSERVED.c.seconds).scalar_subquery()


def read_observed(connection: Connection) -> timedelta:
    return timedelta(seconds=connection.execute(select(_OBSERVED.c.seconds)).scalar_one())


def add_observed(
    connection: Connection, since_seen: timedelta, most: timedelta, pause: timedelta = timedelta()
) -> bool:
    """Add the least of: the database's time since the last pass, `since_seen`, `most`.

    `since_seen` is this process's monotonic time since it last did this. A clock that was set back
    adds nothing. False, and nothing is written, if the last pass is not yet `pause` ago: of many
    that come together one passes.
    """
    now = _read_database_clock(connection)
    least, greatest = (
        (func.least, func.greatest) if is_postgres(connection) else (func.min, func.max)
    )
    gained = greatest(
        literal(0.0),
        least(now - _OBSERVED.c.noted_at, since_seen.total_seconds(), most.total_seconds()),
    )
    statement = update(_OBSERVED).values(seconds=_OBSERVED.c.seconds + gained, noted_at=now)
    if pause:
        statement = statement.where(_is_ago(connection, pause))
    return connection.execute(statement).rowcount == 1


def is_pass_missing(connection: Connection, since: timedelta) -> bool:
    """Whether there has been no pass for so long."""
    return bool(connection.execute(select(_is_ago(connection, since))).scalar_one())


def _is_ago(connection: Connection, age: timedelta) -> ColumnElement[bool]:
    """The last pass is so long ago, or ahead: that was noted by a clock that was wrong."""
    now = _read_database_clock(connection)
    return or_(_OBSERVED.c.noted_at <= now - age.total_seconds(), _OBSERVED.c.noted_at > now)


def start_observing(connection: Connection, attempt_id: UUID) -> None:
    """For an attempt that an earlier release has written: its waiting counts from now."""
    connection.execute(
        update(_ATTEMPTS)
        .where(_ATTEMPTS.c.id == attempt_id, _ATTEMPTS.c.observed_start.is_(None))
        .values(observed_start=observed_seconds())
    )


def _read_database_clock(connection: Connection) -> ColumnElement[float]:
    """Seconds since 1970 by the database; on SQLite that is this host's clock."""
    if is_postgres(connection):
        return func.extract("epoch", func.clock_timestamp()).cast(Float)
    return (func.julianday("now") - _UNIX_EPOCH_JULIAN_DAY) * _DAY_SECONDS
