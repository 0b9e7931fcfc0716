"""The floors hold, they are exhaustive, and the job's path knows no framework."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("worker", "webhook", "emulator", "migrations")
LINT_IMPORTS = str(Path(sys.executable).parent / "lint-imports")
# rich and typer are not among them: httpx loads what it finds of them, for its own command.
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


def test_import_contracts_are_kept() -> None:
    code, report = lint_imports(ROOT)
    assert code == 0, report
    assert " 0 broken" in report


def test_import_contracts_of_unspoilt_copy_are_kept(tree) -> None:
    code, report = lint_imports(tree)
    assert code == 0, report


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("worker/helpers.py", "", "floors of worker"),
        ("worker/stages/retry.py", "", "floors of the stages"),
        ("worker/jobs/extra.py", "", "floors of jobs"),
        ("webhook/extra.py", "", "floors of webhook"),
        ("worker/stages/submit.py", "import worker.dispatch", "floors of worker"),
        ("worker/stages/submit.py", "import worker.stages.complete", "floors of the stages"),
        ("worker/fal/queue.py", "import worker.jobs.values", "floors of worker"),
        ("worker/stages/archive.py", "import celery", "know no framework"),
        ("worker/tasks.py", "import webhook.routes", "worker never imports webhook"),
        ("emulator/model.py", "import worker.clock", "the emulator and the rest"),
        ("webhook/routes.py", "import worker.jobs.models", "models are for SQL and migrations"),
    ],
)
def test_import_contract_breaks_over_misplaced_code(tree, file, line, contract) -> None:
    with (tree / file).open("a") as module:
        module.write(f"\n{line}\n")

    code, report = lint_imports(tree)
    broken = [told for told in report.splitlines() if " BROKEN" in told]
    assert code == 1, report
    assert [told for told in broken if contract in told], report


@pytest.mark.parametrize("package", ["worker.stages", "worker.jobs", "worker.fal", "worker.media"])
def test_path_of_job_loads_no_framework(package) -> None:
    """What import-linter reads from the text is so when the code runs, too."""
    directory = ROOT / package.replace(".", "/")
    modules = [f"{package}.{path.stem}" for path in directory.glob("*.py")]
    unwanted = (*FRAMEWORKS, "worker.dispatch", "worker.app", "worker.runtime", "webhook")
    script = f"import sys, {', '.join(modules)}; print(*set({unwanted!r}) & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == []


def test_receiver_loads_neither_worker_edges_nor_emulator() -> None:
    unwanted = ("worker.tasks", "worker.cli", "worker.producer", "worker.media.store", "emulator")
    script = f"import sys, webhook.app; print(*set({unwanted!r}) & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == []


def list_long_modules(limit: int) -> dict[str, int]:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    return {path: length for path, length in lengths.items() if length > limit}


def test_no_module_outgrows_its_bound() -> None:
    assert list_long_modules(500) == {}
