"""How statements on any of the tables are spelled, and how rows become frozen values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Executable, Row, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite

from worker.jobs.models import AttemptRow, Base, JobRow
from worker.jobs.values import Attempt, Job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

V = TypeVar("V")
_ATTEMPT_NAMES, _JOB_NAMES = AttemptRow.__table__.c.keys(), JobRow.__table__.c.keys()


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


def name_values(value: "DataclassInstance") -> dict[str, Any]:
    """The fields of a frozen value by their names, as they are: `asdict` would copy each."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def label_pair(
    attempt: Iterable[ColumnElement[Any]], job: Iterable[ColumnElement[Any]]
) -> list[Any]:
    """All columns of an attempt and its job, for `read_pair`."""
    return [
        *(column.label(f"attempt_{column.key}") for column in attempt),
        *(column.label(f"job_{column.key}") for column in job),
    ]


def read_pair(row: Row[Any]) -> tuple[Attempt, Job]:
    attempt = dict(zip(_ATTEMPT_NAMES, row, strict=False))
    job = dict(zip(_JOB_NAMES, row[len(attempt) :], strict=True))
    return Attempt(**attempt), Job(**job)
