"""How statements on any of the tables are spelled, and how rows become frozen values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite

from worker.jobs.models import Base

V = TypeVar("V")


def is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def table_of(row: type[Base]) -> Table:
    """Statements on tables are built and run faster than those on mapped classes."""
    table = row.__table__
    assert isinstance(table, Table)  # noqa: S101 - for the type alone
    return table


def insert_for(connection: Connection, row: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """The two databases share ON CONFLICT; SQLAlchemy spells it once for each."""
    return spell_insert(table_of(row), for_postgres=is_postgres(connection))


def spell_insert(table: Table, *, for_postgres: bool) -> postgresql.Insert | sqlite.Insert:
    """As `insert_for`, for a statement that is built once."""
    return postgresql.insert(table) if for_postgres else sqlite.insert(table)


def bind_new(table: Table, names: Iterable[str]) -> dict[str, Any]:
    """A parameter for the new value of each column, which `name_new` names alike."""
    return {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}


def name_new(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in values.items()}


def columns_of(row: type[Base]) -> Sequence[Any]:
    """The columns that a frozen value of this table is made from."""
    return list(row.__table__.columns)


def fetch_one(
    connection: Connection,
    value: type[V],
    statement: Executable,
    parameters: Mapping[str, Any] | None = None,
) -> V | None:
    found = connection.execute(statement, parameters).mappings().one_or_none()
    return None if found is None else value(**found)


def fetch_all(
    connection: Connection,
    value: type[V],
    statement: Executable,
    parameters: Mapping[str, Any] | None = None,
) -> list[V]:
    found = connection.execute(statement, parameters).mappings()
    return [value(**row) for row in found]
