"""The two commands from a fresh clone, for each Python that is there, with nothing else on PATH."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# PostgreSQL, the broker and the daemons; the rest of the suite knows no Python of its own.
SOME_TESTS = "tests/unit/test_db.py tests/unit/test_daemons.py tests/system/test_messages.py"
ITSELF = "import os, sys; print(os.path.realpath(sys._base_executable))"
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
KEPT = ("HOME", "LANG", "TMPDIR", "PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_CACHE_DIR")


def find_python(version: str) -> Path | None:
    """The interpreter itself: a shim of pyenv may lead to none, and needs programs of its own."""
    on_path = shutil.which(f"python{version}")
    places = [Path(on_path)] if on_path else []
    places += sorted(PYENV.glob(f"{version}.*/bin/python{version}"))
    for place in places:
        asked = subprocess.run([place, "-c", ITSELF], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return Path(asked.stdout.strip())
    return None


@pytest.fixture(scope="module", params=VERSIONS)
def clone(request) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A fresh clone, and an environment whose PATH has python3, make and git alone.

    Not among pytest's directories: each run of pytest closes these to the user of PostgreSQL.
    """
    python = find_python(request.param)
    if python is None:
        pytest.skip(f"NOT RUN: no Python {request.param}")
    directory = Path(tempfile.mkdtemp(prefix=f"python{request.param}-"))
    programs = directory / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (programs / "python3").chmod(0o755)
    for name in ("make", "git"):
        found = shutil.which(name)
        assert found is not None, f"{name} is what the commands need"
        (programs / name).symlink_to(found)
    subprocess.run(["git", "clone", "--quiet", ROOT, directory / "clone"], check=True)
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    yield directory / "clone", {**kept, "PATH": str(programs)}
    shutil.rmtree(directory)


@pytest.mark.parametrize("command", [("demo",), ("test", f"ARGS={SOME_TESTS}")])
def test_command_works_from_a_fresh_clone(clone, command) -> None:
    directory, env = clone
    ended = subprocess.run(
        [f"{env['PATH']}/make", *command],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
