"""What the build stage of the Dockerfile copies is enough to install and start every command."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.compose import ROOT
from tests.deployment.test_dockerfile import BUILD, list_sources
from tests.harness.processes import BIN


@pytest.mark.timeout(300)
def test_copied_files_are_enough_to_install_and_start_every_command(tmp_path) -> None:
    """As the build stage does, from what it has copied alone."""
    source, target = tmp_path / "app", tmp_path / "site"
    for name in list_sources(BUILD):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", target]
    install += ["--no-build-isolation", "--disable-pip-version-check", "."]
    subprocess.run(install, cwd=source, check=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import emulator.server, migrations, webhook, worker, worker.cli, worker.tasks\n"
        "for one in (emulator, migrations, webhook, worker):\n"
        "    assert one.__path__[0].startswith(sys.argv[1]), one\n"
        "from worker.ground.schema import upgrade_schema\n"
        "print(upgrade_schema(f'sqlite:///{sys.argv[2]}'))\n"
    )
    command = [str(BIN / "python"), "-I", "-c", script, str(target), str(tmp_path / "jobs.db")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert Path(target / "bin" / "extend-video").exists()
