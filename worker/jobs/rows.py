"""How statements on any of the tables are spelled, and how rows become frozen values."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import postgresql, sqlite

from worker.jobs.models import Base

V = TypeVar("V")


def insert_for(connection: Connection, row: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """The two databases share ON CONFLICT; SQLAlchemy spells it once for each."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(row)
    return sqlite.insert(row)


def columns_of(row: type[Base]) -> Sequence[Any]:
    """The columns that a frozen value of this table is made from."""
    return list(row.__table__.columns)


def fetch_one(connection: Connection, value: type[V], statement: Executable) -> V | None:
    found = connection.execute(statement).mappings().one_or_none()
    return None if found is None else value(**found)


def fetch_all(connection: Connection, value: type[V], statement: Executable) -> list[V]:
    return [value(**found) for found in connection.execute(statement).mappings()]
