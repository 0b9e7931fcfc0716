"""The floors hold, they are exhaustive, and the job's path knows no framework."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("worker", "webhook", "emulator", "migrations")
LINT_IMPORTS = str(Path(sys.executable).parent / "lint-imports")
# rich and typer are not among them: httpx loads what it finds of them, for its own command.
OPENING_CALLS = (
    "httpx.Client(",
    "httpcore.ConnectionPool(",
    "HTTPConnection(",
    "HTTPSConnection(",
    "urlopen(",
    "create_ssl_context(",
)
FRAMEWORKS = ("celery", "kombu", "flask", "gunicorn")


def lint_imports(directory: Path) -> tuple[int, str]:
    """Exit code and report; nothing is cached in the tree."""
    ended = subprocess.run(
        [LINT_IMPORTS, "--no-cache"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def test_two_places_open_http_clients() -> None:
    """Of fal, and of media hosts: both by the proxies and authorities of `ground/network.py`."""
    opening = {
        str(path.relative_to(ROOT)): call
        for package in ("worker", "webhook")
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in OPENING_CALLS
        if call in path.read_text()
    }
    assert opening == {
        "worker/fal/http.py": "httpx.Client(",
        "worker/media/pinned.py": "httpcore.ConnectionPool(",
    }


MISPLACED = {
    "a module that no floor has": [("worker/helpers.py", "", "six floors")],
    "imports": [
        ("worker/fal/submit.py", "import worker.jobs.values", "six floors"),
        ("worker/stages/archive.py", "import celery", "know no framework"),
        ("worker/tasks.py", "import webhook.fal", "worker never imports webhook"),
        ("emulator/model.py", "import worker.ground.clock", "the emulator and the rest"),
        ("webhook/fal.py", "import worker.jobs.models", "SQL only in jobs"),
    ],
}


@pytest.mark.parametrize("misplaced", MISPLACED.values(), ids=list(MISPLACED))
def test_import_contracts_break_over_misplaced_code(tree, misplaced) -> None:
    """That the code as it is keeps them all, `make lint` says."""
    for file, line, _ in misplaced:
        with (tree / file).open("a") as module:
            module.write(f"\n{line}\n")

    code, report = lint_imports(tree)
    broken = [told for told in report.splitlines() if " BROKEN" in told]
    assert code == 1, report
    for file, _, contract in misplaced:
        assert [told for told in broken if contract in told], (file, report)


def test_path_of_job_loads_no_framework() -> None:
    """What import-linter reads from the text is so when the code runs, too."""
    modules = [
        f"{package}.{path.stem}"
        for package in ("worker.stages", "worker.jobs", "worker.fal", "worker.media")
        for path in (ROOT / package.replace(".", "/")).glob("*.py")
    ]
    unwanted = (
        *FRAMEWORKS,
        "worker.broker.dispatch",
        "worker.broker.app",
        "worker.runtime",
        "webhook",
    )
    assert list_loaded(modules, unwanted) == []


def test_receiver_loads_neither_worker_edges_nor_emulator() -> None:
    unwanted = ("worker.tasks", "worker.cli", "worker.producer", "worker.media.store", "emulator")
    assert list_loaded(["webhook.app"], unwanted) == []


def list_loaded(modules: Sequence[str], unwanted: Sequence[str]) -> list[str]:
    """Those unwanted that a fresh interpreter has loaded with the modules."""
    script = f"import sys, {', '.join(modules)}; print(*set({unwanted!r}) & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout.split()


def list_long_modules(limit: int) -> dict[str, int]:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    return {path: length for path, length in lengths.items() if length > limit}


def test_no_module_outgrows_its_bound() -> None:
    assert list_long_modules(500) == {}
