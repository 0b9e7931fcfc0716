"""A large file goes through a real process without being held in its memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "upload.py"
MOST_GROWTH_MIB = 24


@pytest.mark.timeout(300)
def test_memory_stays_flat_and_checksums_are_equal() -> None:
    sizes = {64: 1, 96: 10}  # at once, and in parts
    command = [sys.executable, str(SCRIPT), "--mib", *map(str, sizes), "--seconds", "250", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads(ended.stdout)
    assert {one["mib"]: one["parts"] for one in measured} == sizes
    for one in measured:
        assert one["same_checksum"], one
        assert one["growth_mib"] < MOST_GROWTH_MIB, one
