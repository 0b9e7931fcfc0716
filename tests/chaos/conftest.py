"""A PostgreSQL of its own: it is crashed, and what was committed must outlive that."""

from collections.abc import Iterator

import pytest

from tests.harness.servers import Postgres, run_postgres


@pytest.fixture
def chaos_postgres(database) -> Iterator[Postgres | None]:
    """None for SQLite."""
    if database == "sqlite":
        yield None
        return
    with run_postgres(survives_kill=True) as postgres:
        yield postgres
