"""While a deployment is under way, the previous release's code runs on the new schema."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.processes import (
    BIN,
    CELERY,
    EXTEND_VIDEO,
    THREADS,
    TWO_WORKERS,
    Deployment,
    bind_listener,
    build_settings,
    run_emulator,
    run_yard,
)
from tests.harness.servers import run_redis
from tests.system.conftest import YARDS
from tests.system.rows import open_table
from worker.ground.schema import read_head, upgrade_schema

ROOT = Path(__file__).parents[3]
NAMED_IN = Path(__file__).parent / "previous_release.txt"
PACKAGES = ("worker", "webhook", "migrations")


def read_release() -> str:
    lines = NAMED_IN.read_text().splitlines()
    (release,) = [line for line in lines if line and not line.startswith("#")]
    return release


def run_git(*arguments: str) -> bytes:
    """Without what a hook, or whoever runs the suite from one, has set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ran = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments],
        env=env,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, f"{NAMED_IN.name} names {read_release()}: {ran.stderr.decode()}"
    return ran.stdout


@pytest.fixture(scope="module")
def old_code(tmp_path_factory) -> Path:
    """The packages of the previous release, as they were."""
    if run_git("rev-parse", "--is-shallow-repository").strip() == b"true":
        pytest.skip("NOT RUN: a shallow clone does not hold the previous release's code")
    directory: Path = tmp_path_factory.mktemp("previous")
    packed = run_git("archive", "--format=tar", read_release(), *PACKAGES)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        # Only our own history is in it; Python 3.11.0 to 3.11.3 know no filters.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(directory)
    return directory


@contextmanager
def run_old_daemons(request, directory: Path, old_code: Path, url: str) -> Iterator[Deployment]:
    """Every daemon of the previous release, on a database that has been migrated already."""
    with ExitStack() as stack:
        yard = stack.enter_context(run_yard(directory))
        request.node.stash.setdefault(YARDS, []).append(yard)
        emulator = stack.enter_context(run_emulator(yard, "--render", "fake"))
        listener = stack.enter_context(bind_listener())
        settings = build_settings(
            directory,
            listener,
            emulator=emulator,
            fal_url=emulator.url,
            database_url=url,
            broker_url=stack.enter_context(run_redis()),
        )
        env = {**settings, "PYTHONPATH": str(old_code)}
        deployment = Deployment(yard, listener, env, TWO_WORKERS)
        deployment.start_missing()
        yield deployment


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_old_workers_buy_nothing_while_a_new_sweep_lives_and_do_all_else(
    request, tmp_path, old_code, postgres, kind
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if kind == "postgresql":
        url = postgres.url_of(postgres.create_database())
    upgrade_schema(url)
    with run_old_daemons(request, tmp_path, old_code, url) as deployment, open_table(url) as table:
        yard, new = deployment.yard, {**deployment.settings, "PYTHONPATH": ""}
        assert yard.run([EXTEND_VIDEO, "sweep"], new).returncode == 0
        fields = ["--prompt", "on", "--video", "http://127.0.0.1/never.mp4"]
        command = [EXTEND_VIDEO, "enqueue", *fields, "--set", "num_frames=9"]
        for settings in (deployment.settings, new, deployment.settings):
            assert yard.run(command, settings).returncode == 0
        for _ in range(5):  # each longer than the period of the old sweep
            yard.run([EXTEND_VIDEO, "sweep"], new)
            jobs = table.select("SELECT id, state FROM jobs")
            assert [job["state"] for job in jobs] == ["queued"] * 3
            assert table.select("SELECT id FROM attempts") == []
        # One new worker sweeps and submits: the old ones receive, poll and archive.
        options = [*THREADS, "-Q", "extend_video.submit,extend_video.sweep"]
        yard.start("new", [*CELERY, "worker", "-n", "new@%h", *options], new)
        for job in jobs:
            table.wait_for_end(job["id"], seconds=90)
        assert {job["state"] for job in table.select("SELECT state FROM jobs")} == {"archived"}
        assert len(table.select("SELECT attempt_id FROM charges")) == 3


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_job_goes_from_wish_to_archive_with_the_old_code_on_the_new_schema(
    request, tmp_path, old_code, postgres, kind
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if kind == "postgresql":
        url = postgres.url_of(postgres.create_database())
    assert upgrade_schema(url) == read_head()
    with run_old_daemons(request, tmp_path, old_code, url) as deployment:
        whose = [str(BIN / "python"), "-c", "import worker; print(worker.__file__)"]
        assert str(old_code) in deployment.yard.run(whose, deployment.settings).stdout
        job_request = ["--prompt", "on", "--video", "http://127.0.0.1/never-fetched.mp4"]
        enqueued = deployment.yard.run(
            [EXTEND_VIDEO, "enqueue", *job_request, "--set", "num_frames=9"], deployment.settings
        )
        assert enqueued.returncode == 0, enqueued.stderr
        with open_table(url) as table:
            (job,) = table.select("SELECT * FROM jobs")
            table.wait_for_end(job["id"], seconds=90)
            assert len(table.list_attempts(job["id"])) == 1
        looked = deployment.run("doctor")
        assert looked.returncode == 0, looked.stdout
