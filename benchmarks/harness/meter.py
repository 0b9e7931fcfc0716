"""What processes take: CPU time and memory, of a process with all of its children."""

from collections.abc import Iterator
from contextlib import suppress

import psutil

MIB = 1024 * 1024


def measure_cpu(*pids: int) -> float:
    """CPU seconds until now, those of children that have ended and were waited for included."""
    return sum(_measure_one(process) for pid in pids for process in _list_family(pid))


def measure_rss(*pids: int) -> float:
    """Resident memory now, in MiB."""
    total = 0
    for pid in pids:
        for process in _list_family(pid):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                total += process.memory_info().rss
    return total / MIB


def _list_family(pid: int) -> Iterator[psutil.Process]:
    process = psutil.Process(pid)
    yield process
    yield from process.children(recursive=True)


def _measure_one(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # it has just ended, and its parent counts it
        return 0.0
    # What its living children take is counted with them.
    return float(times.user + times.system + times.children_user + times.children_system)
