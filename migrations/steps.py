"""Changes to tables with many rows and many writers, whom none of them holds up.

On PostgreSQL an index is made outside of any transaction, and a constraint is checked in another
one than it is added in. Each of them commits what the migration did before, so a migration that is
interrupted runs again from its beginning: what comes before the last of them has to allow that.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from alembic import op
from sqlalchemy import bindparam, text

log = structlog.get_logger()
IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def create_index(
    name: str,
    table: str,
    columns: Sequence[Any],
    *,
    where: str | None = None,
    unique: bool = False,
) -> None:
    condition = None if where is None else text(where)
    if not is_postgres():
        op.create_index(name, table, list(columns), unique=unique, sqlite_where=condition)
        return
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        # Set only where it is not so already: PgBouncer may hand the session to somebody else.
        if connection.execute(text("SHOW statement_timeout")).scalar_one() != "0":
            connection.execute(text("SET statement_timeout = 0"))
        is_valid = connection.execute(IS_VALID, {"name": name}).scalar_one_or_none()
        if is_valid:
            return
        if is_valid is False:
            log.warning("index_incomplete", index=name, action="it is made again")
            op.drop_index(name, table, postgresql_concurrently=True)
        log.info("index_started", index=name, table=table)
        op.create_index(
            name,
            table,
            list(columns),
            unique=unique,
            postgresql_where=condition,
            postgresql_concurrently=True,
        )


def create_check(table: str, name: str, condition: str, *, replace: bool = False) -> None:
    """Add a CHECK constraint, in place of the one of that name if told so."""
    if not is_postgres():
        with op.batch_alter_table(table) as batch:
            if replace:
                batch.drop_constraint(op.f(name), type_="check")
            batch.create_check_constraint(op.f(name), condition)
        return
    op.execute(
        f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, "
        f"ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"
    )
    commit()
    op.execute("SET LOCAL statement_timeout = 0")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
    commit()


def update_in_batches(table: str, change: str, condition: str, size: int = 1000) -> None:
    """Change the rows that meet the condition now, and still do when their batch is written.

    They are looked for without a lock, and locked for as long as a batch of them takes.
    """
    connection = op.get_bind()
    found = text(f"SELECT id FROM {table} WHERE {condition}")  # noqa: S608
    ids = connection.execute(found).scalars().all()
    commit()
    statement = text(f"UPDATE {table} SET {change} WHERE id IN :ids AND {condition}")  # noqa: S608
    statement = statement.bindparams(bindparam("ids", expanding=True))
    for start in range(0, len(ids), size):
        connection.execute(statement, {"ids": ids[start : start + size]})
        commit()


def commit() -> None:
    """Give back the locks got so far, on PostgreSQL; on SQLite nobody else can write anyway."""
    if is_postgres():
        with op.get_context().autocommit_block():
            pass


def is_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"
