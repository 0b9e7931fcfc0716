"""How statements on any of the tables are spelled, and how rows become frozen values."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Table,
    and_,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from worker.jobs.base import Base

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    table = table_of(row)
    return postgresql.insert(table) if is_postgres(connection) else sqlite.insert(table)


def columns_of(row: type[Base]) -> Sequence[Any]:
    """The columns that a frozen value of this table is made from."""
    return list(row.__table__.columns)


class _Likely(FunctionElement[Any]):
    """A condition that most rows meet."""

    inherit_cache = True


@compiles(_Likely)
def _write_plain(element: _Likely, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return compiler.process(element.clauses, **options)


@compiles(_Likely, "sqlite")
def _write_likely(element: _Likely, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"likely({compiler.process(element.clauses, **options)})"


def meets_index(of_state: str, further: str) -> ColumnElement[Any]:
    """The two conditions of a partial index, in its very words: a parameter would hide it.

    SQLite is told not to expect much of the one on the state. Else it takes an index of all rows by
    state, however many are in it, and sorts them.
    """
    return and_(_Likely(text(of_state)), text(further))


def fetch_one(connection: Connection, value: type[V], statement: Executable) -> V | None:
    found = connection.execute(statement).mappings().one_or_none()
    return None if found is None else value(**found)


def fetch_all(connection: Connection, value: type[V], statement: Executable) -> list[V]:
    found = connection.execute(statement).mappings()
    return [value(**row) for row in found]


def count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    """How many rows meet them, of the one table that they are about."""
    return connection.execute(select(func.count()).where(*conditions)).scalar_one()


def change(
    connection: Connection, row: type[Base], *conditions: ColumnElement[bool], **values: object
) -> int:
    """Write the values into the rows that meet the conditions; how many these are."""
    statement = update(table_of(row)).where(*conditions).values(**values)
    return connection.execute(statement).rowcount


def name_values(value: "DataclassInstance") -> dict[str, Any]:
    """The fields of a frozen value by their names, as they are: `asdict` would copy each."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
