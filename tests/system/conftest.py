"""Deployments of real processes: one for each database, shared by all tests of a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulator.clips import make_clip
from tests.harness.processes import ONE_WORKER, TWO_WORKERS, Yard, run_yard
from tests.system.scene import SOURCE_FRAMES, Scene, run_scene

YARDS = pytest.StashKey[list[Yard]]()


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=SOURCE_FRAMES)


@pytest.fixture(scope="session")
def shared_sqlite_scene(tmp_path_factory, clip) -> Iterator[Scene]:
    """SQLite, and one worker for every queue, with processes of its own."""
    directory = tmp_path_factory.mktemp("sqlite")
    url = f"sqlite:///{directory / 'jobs.db'}"
    with run_scene(directory, url, clip, ONE_WORKER) as scene:
        yield scene


@pytest.fixture(scope="session")
def shared_postgres_scene(tmp_path_factory, clip, postgres) -> Iterator[Scene]:
    """PostgreSQL, and two workers with threads: one submits, one archives."""
    directory = tmp_path_factory.mktemp("postgresql")
    url = postgres.url_of(postgres.create_database())
    with run_scene(directory, url, clip, TWO_WORKERS) as scene:
        yield scene


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database_name(request) -> str:
    """Of the session, so that all tests on one database come one after the other."""
    return str(request.param)


@pytest.fixture
def scene(request, database_name) -> Scene:
    """A whole deployment, on both databases in turn."""
    fixture = {"sqlite": "shared_sqlite_scene", "postgresql": "shared_postgres_scene"}
    return prepare_scene(request, fixture[database_name])


@pytest.fixture
def sqlite_scene(request) -> Scene:
    """For what does not depend on the database."""
    return prepare_scene(request, "shared_sqlite_scene")


def prepare_scene(request: pytest.FixtureRequest, fixture: str) -> Scene:
    """A test finds every process running, and shows what they said if it fails."""
    scene: Scene = request.getfixturevalue(fixture)
    scene.deployment.start_missing()
    request.node.stash.setdefault(YARDS, []).append(scene.deployment.yard)
    return scene


@pytest.fixture
def yard(request, tmp_path) -> Iterator[Yard]:
    """For processes of one test alone."""
    with run_yard(tmp_path) as yard:
        request.node.stash.setdefault(YARDS, []).append(yard)
        yield yard


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the last lines of every process it had to do with."""
    report = yield
    if report.failed:
        for yard in item.stash.get(YARDS, []):
            report.sections.append(("processes", yard.quote_logs()))
    return report
