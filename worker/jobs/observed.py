"""SQL on `observed_time`: for how long this deployment has been watching, by no wall clock alone.

Time without a sweep, or by which a clock was set, does not count. An attempt stores the value
at its start; what it has waited is the difference (ADR 17).
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, ScalarSelect, TextClause, select, text

from worker.jobs.models import AttemptRow, ObservedTimeRow
from worker.jobs.rows import change, is_postgres, table_of

_SECONDS = select(table_of(ObservedTimeRow).c.seconds)
# Seconds since 1970 by the database; on SQLite that is this host's clock.
_POSTGRES = {
    "{clock}": "extract(epoch FROM clock_timestamp())::float8",
    "{least}": "least",
    "{greatest}": "greatest",
}
_SQLITE = {
    "{clock}": "(julianday('now') - 2440587.5) * 86400.0",
    "{least}": "min",
    "{greatest}": "max",
}
# The last pass is so long ago, or ahead: that was noted by a clock that was wrong.
_IS_AGO = "(noted_at <= {clock} - :age OR noted_at > {clock})"
_ADD = """
    UPDATE observed_time SET noted_at = {clock}, seconds = seconds
        + {greatest}(0.0, {least}({clock} - noted_at, :since_seen, :most))
    WHERE """


def observed_seconds() -> ScalarSelect[float]:
    """The value now, for use inside another statement."""
    return _SECONDS.scalar_subquery()


def read_observed(connection: Connection) -> timedelta:
    return timedelta(seconds=connection.execute(_SECONDS).scalar_one())


def add_observed(
    connection: Connection, since_seen: timedelta, most: timedelta, pause: timedelta = timedelta()
) -> bool:
    """Add the least of: the database's time since the last pass, `since_seen`, `most`.

    `since_seen` is this process's monotonic time since it last did this. A clock that was set back
    adds nothing. False, and nothing is written, if the last pass is not yet `pause` ago: of many
    that come together one passes.
    """
    times = {"since_seen": since_seen, "most": most, "age": pause}
    seconds = {name: time.total_seconds() for name, time in times.items()}
    return connection.execute(_spell(connection, _ADD + _IS_AGO), seconds).rowcount == 1


def is_pass_missing(connection: Connection, since: timedelta) -> bool:
    """Whether there has been no pass for so long."""
    statement = _spell(connection, f"SELECT {_IS_AGO} FROM observed_time")  # noqa: S608 - constants
    return bool(connection.execute(statement, {"age": since.total_seconds()}).scalar_one())


def start_observing(connection: Connection, attempt_id: UUID) -> None:
    """For an attempt that an earlier release has written: its waiting counts from now."""
    is_new = (AttemptRow.id == attempt_id, AttemptRow.observed_start.is_(None))
    change(connection, AttemptRow, *is_new, observed_start=observed_seconds())


def _spell(connection: Connection, sql: str) -> TextClause:
    """The statement as this database has it."""
    for name, spelling in (_POSTGRES if is_postgres(connection) else _SQLITE).items():
        sql = sql.replace(name, spelling)
    return text(sql)
