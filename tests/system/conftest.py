"""Deployments of real processes: one for each database, shared by all tests of a run."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.emulator.clips import make_clip
from tests.harness.processes import (
    ONE_WORKER,
    START_SECONDS,
    TWO_WORKERS,
    Yard,
    find_marked,
    run_yard,
)
from tests.harness.servers import run_redis
from tests.system.scene import SOURCE_FRAMES, Scene, run_scene

YARDS = pytest.StashKey[list[Yard]]()
CHANGES = {"DRAIN_SECONDS": "3"}
"""A worker that is told to end while its work hangs is waited for so long."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each deployment is started in one of xdist's processes, not in every one.

    Of a run with two processes the first begins with the first test, the second in the middle.
    SQLite's tests go to the one place, PostgreSQL's to the other.
    """
    kinds: dict[str | None, list[pytest.Item]] = {"sqlite": [], "postgresql": [], None: []}
    for item in items:
        kinds[find_deployment(item)].append(item)
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    middle = max(0, len(items) // processes - len(kinds["sqlite"]))
    others = kinds[None]
    items[:] = [*kinds["sqlite"], *others[:middle], *kinds["postgresql"], *others[middle:]]


def find_deployment(item: pytest.Item) -> str | None:
    """The database of the shared deployment that the test uses, if it does."""
    if not isinstance(item, pytest.Function):
        return None
    if "database_name" in item.fixturenames:
        return str(item.callspec.params["database_name"])
    return "sqlite" if "sqlite_scene" in item.fixturenames else None


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=SOURCE_FRAMES)


@pytest.fixture(scope="session")
def shared_sqlite_scene(tmp_path_factory, clip) -> Iterator[Scene]:
    """SQLite, and one worker for every queue, with processes of its own."""
    directory = tmp_path_factory.mktemp("sqlite")
    url = f"sqlite:///{directory / 'jobs.db'}"
    with run_scene(directory, url, clip, ONE_WORKER, changes=CHANGES) as scene:
        yield scene


@pytest.fixture(scope="session")
def shared_postgres_scene(tmp_path_factory, clip, postgres, postgres_template) -> Iterator[Scene]:
    """PostgreSQL, and two workers with threads: one submits, one archives."""
    directory = tmp_path_factory.mktemp("postgresql")
    url = postgres.url_of(postgres.create_database(postgres_template))
    with run_scene(directory, url, clip, TWO_WORKERS, changes=CHANGES) as scene:
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
    """A test finds every daemon at work, and shows what they said if it fails."""
    scene: Scene = request.getfixturevalue(fixture)
    scene.deployment.start_missing()
    for name in scene.deployment.workers:
        scene.deployment.yard.parts[name].wait_for_log(" ready.", START_SECONDS)
    request.node.stash.setdefault(YARDS, []).append(scene.deployment.yard)
    return scene


@pytest.fixture
def yard(request, tmp_path) -> Iterator[Yard]:
    """For processes of one test alone."""
    with run_yard(tmp_path) as yard:
        request.node.stash.setdefault(YARDS, []).append(yard)
        yield yard


@pytest.fixture
def up_settings(tmp_path) -> Iterator[dict[str, str]]:
    """A database that does not exist yet, and a Redis of its own."""
    with run_redis() as broker_url:
        yield {
            "DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
            "BROKER_URL": broker_url,
            "FAL_KEY": "emulator-key",
            "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
            "ARCHIVE_URL": f"file:{tmp_path / 'archive'}",
            "SWEEP_SECONDS": "1",
        }


@pytest.fixture
def scratch(yard) -> Iterator[Path]:
    """Where the demo puts what it needs only while it runs; a short path, for sockets.

    With the yard's mark in it, so that whatever runs there is found.
    """
    with tempfile.TemporaryDirectory(prefix=f"{yard.mark}-") as directory:
        yield Path(directory)


@pytest.fixture
def demo_settings(scratch) -> dict[str, str]:
    return {"TMPDIR": str(scratch)}


@pytest.fixture
def nothing_left(yard, scratch) -> Callable[[], None]:
    """Whatever the demo was told, no process and no scratch file of it outlives it."""

    def check() -> None:
        assert find_marked(yard.mark) == []
        assert list(scratch.iterdir()) == []

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the last lines of every process it had to do with."""
    report = yield
    if report.failed:
        for yard in item.stash.get(YARDS, []):
            report.sections.append(("processes", yard.quote_logs()))
    return report
