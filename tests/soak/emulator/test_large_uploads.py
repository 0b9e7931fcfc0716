"""An upload of 192 MiB, in parts."""

import hashlib
import re
import sys
from pathlib import Path

import httpx
import pytest

from tests.emulator.processes import Emulator, read_address, run_process
from tests.emulator.uploading import complete, send_signed


@pytest.mark.slow  # hundreds of megabytes come and are hashed
def test_memory_stays_flat_while_a_large_file_comes_in_parts(tmp_path):
    part, count = b"0123456789abcdef" * (1 << 20), 12  # 16 MiB each
    command = [sys.executable, "-m", "emulator", "--directory", str(tmp_path)]
    with run_process(command) as process:
        url = read_address(process)
        with httpx.Client(base_url=url, headers={"Authorization": "Key emulator-key"}) as client:
            emulator = Emulator(url, tmp_path, client)
            send_signed(emulator, [b"a", b"b"])
            before = read_peak(process.pid)
            given, told = send_signed(emulator, [part] * count)
            assert complete(given["upload_url"], told).status_code == 200
            peak = read_peak(process.pid)
        digest = hash_served(given["file_url"])
    assert digest == hashlib.sha256(part * count).hexdigest()
    assert peak - before < 48 << 20, f"from {before >> 20} to {peak >> 20} MiB"


def hash_served(url: str) -> str:
    digest = hashlib.sha256()
    with httpx.stream("GET", url, trust_env=False) as response:
        for chunk in response.iter_raw():
            digest.update(chunk)
    return digest.hexdigest()


def read_peak(pid: int) -> int:
    """The most memory the process ever had, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024
