"""A large file goes through a real process without being held in its memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "upload.py"
MOST_GROWTH_MIB = 24


@pytest.mark.parametrize(("mib", "parts"), [(64, 1), (96, 10)])
def test_memory_stays_flat_and_checksum_is_equal(mib, parts) -> None:
    command = [sys.executable, str(SCRIPT), "--mib", str(mib), "--seconds", "100", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    [measured] = json.loads(ended.stdout)
    assert (measured["mib"], measured["parts"]) == (mib, parts)
    assert measured["same_checksum"]
    assert measured["growth_mib"] < MOST_GROWTH_MIB, measured
