from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that is the test's own, without tables yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    postgres = request.getfixturevalue("postgres")
    return str(postgres.url_of(postgres.create_database()))
