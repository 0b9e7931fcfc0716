"""Which errors of a write are waited for, and which come back however often it is tried."""

import sqlite3

import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    ProgramLimitExceeded,
    ReadOnlySqlTransaction,
    UndefinedTable,
    UniqueViolation,
)
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from worker.ground.db import will_repeat
from worker.ground.errors import ClaimLostError


def wrap(kind: type[DBAPIError], original: Exception) -> DBAPIError:
    return kind("UPDATE", {}, original)


@pytest.mark.parametrize(
    "error",
    [
        wrap(DataError, psycopg.DataError("PostgreSQL text fields cannot contain NUL")),
        wrap(OperationalError, ProgramLimitExceeded("string too long")),
        wrap(IntegrityError, CheckViolation("violates check constraint")),
        wrap(IntegrityError, sqlite3.IntegrityError("CHECK constraint failed: jobs")),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        OverflowError("Python int too large to convert to SQLite INTEGER"),
        RuntimeError("a mistake"),
    ],
    ids=repr,
)
def test_value_that_is_refused_is_refused_again(error) -> None:
    assert will_repeat(error)


@pytest.mark.parametrize(
    "error",
    [
        wrap(OperationalError, psycopg.OperationalError("server closed the connection")),
        wrap(OperationalError, sqlite3.OperationalError("database is locked")),
        wrap(InternalError, ReadOnlySqlTransaction("cannot execute UPDATE")),
        wrap(InterfaceError, psycopg.InterfaceError("the connection is closed")),
        wrap(IntegrityError, UniqueViolation("duplicate key value")),
        wrap(IntegrityError, sqlite3.IntegrityError("UNIQUE constraint failed: attempts.x")),
        wrap(ProgrammingError, UndefinedTable("relation jobs does not exist")),
        PoolTimeoutError("QueuePool limit reached"),
        ClaimLostError("job was taken over"),
    ],
    ids=repr,
)
def test_what_may_be_well_soon_does_not_repeat(error) -> None:
    assert not will_repeat(error)
