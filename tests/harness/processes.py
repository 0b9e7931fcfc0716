"""A deployment as an operator runs it: every part a process of its own, private to the run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from tests.emulator.processes import READY, Emulator
from tests.harness.waiting import wait_until
from worker.ground.schema import upgrade_schema

BIN = Path(sys.executable).parent
MARK = "EXTEND_VIDEO_TEST_MARK"
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
LAST_LINES = 15
END_SECONDS = 20.0
START_SECONDS = 60.0

CELERY = (str(BIN / "celery"), "-A", "worker")
EXTEND_VIDEO = str(BIN / "extend-video")
THREADS = ("-P", "threads", "-c", "4")

WorkerPlan = Mapping[str, Sequence[str]]
"""Options of each worker by its name; the first one submits, the last one archives."""
ONE_WORKER: WorkerPlan = {"worker": ("-c", "2")}
TWO_WORKERS: WorkerPlan = {
    "submitter": (
        *THREADS,
        "-Q",
        "extend_video,extend_video.submit,extend_video.reconcile,extend_video.cancel,extend_video.sweep",
    ),
    "archiver": (*THREADS, "-Q", "extend_video.archive"),
}


@dataclass(frozen=True)
class Part:
    """A running process, leader of a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def read_log(self) -> str:
        """What this process has printed, without what an earlier one of its name has."""
        return self.log.read_bytes()[self.log_start :].decode(errors="replace")

    def wait_for_log(self, text: str, seconds: float = 20) -> None:
        wait_until(lambda: text in self.read_log(), seconds)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """The exit code, once the process has ended by itself."""
        return self.process.wait(seconds)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell the process (not its children) to end; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop the process and its children, and let them go on."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process and its children at once, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Yard:
    """Where processes run. Leaving `run_yard` ends all of them, whatever has happened inside."""

    directory: Path
    mark: str = field(default_factory=lambda: uuid4().hex[:12])
    parts: dict[str, Part] = field(default_factory=dict)
    stop_seconds: float = END_SECONDS

    def build_env(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the machine's settings, and a mark that all children inherit."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in KEPT or name.startswith("COVERAGE_")
        }
        return {**kept, "NO_PROXY": "127.0.0.1,localhost", MARK: self.mark, **settings}

    def start(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Part:
        path = self.directory / f"{name}.log"
        with path.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.build_env(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        self.parts[name] = Part(name, process, path, start)
        return self.parts[name]

    def run(
        self, command: Sequence[str], settings: Mapping[str, str], seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is in the result, whatever its exit code."""
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.build_env(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def is_running(self, name: str) -> bool:
        return name in self.parts and self.parts[name].is_running

    def quote_logs(self) -> str:
        """The last lines of each part, for the report of a failed test."""
        return "\n".join(_quote_log(part) for part in self.parts.values())

    def stop(self) -> list[str]:
        """Ask all to end, then make them; the last words of those that had to be made."""
        for part in self.parts.values():
            if part.is_running:
                part.process.terminate()
        deadline = time.monotonic() + self.stop_seconds
        for part in self.parts.values():
            with suppress(subprocess.TimeoutExpired):
                part.process.wait(max(0.0, deadline - time.monotonic()))
        stubborn = [_quote_log(part) for part in self.parts.values() if part.is_running]
        for part in self.parts.values():
            part.kill()
        for pid in find_marked(self.mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return stubborn


@contextmanager
def run_yard(directory: Path) -> Iterator[Yard]:
    """Every process in it must end soon after SIGTERM."""
    yard = Yard(directory)
    try:
        yield yard
    finally:
        stubborn = yard.stop()
    assert not stubborn, "\n".join(stubborn)


def find_marked(mark: str) -> list[int]:
    """Living processes that a yard, or a process of it, has started.

    Redis writes its title over its environment: it is known by a directory with the mark's name.
    """
    needle, found = mark.encode(), []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is not ours to read
            read = [(directory / name).read_bytes() for name in ("environ", "cmdline")]
            if any(needle in content for content in read):
                found.append(int(directory.name))
    return sorted(found)


def _quote_log(part: Part) -> str:
    state = "running" if part.is_running else f"exit code {part.process.returncode}"
    lines = part.read_log().splitlines()[-LAST_LINES:]
    return "\n".join([f"--- {part.name} ({state})", *lines])


@contextmanager
def run_emulator(yard: Yard, *options: str) -> Iterator[Emulator]:
    """`extend-video emulator`, with a client that speaks to it."""
    directory = yard.directory / "emulator"
    command = [EXTEND_VIDEO, "emulator", "--directory", str(directory), *options]
    part = yard.start("emulator", command, {})
    part.wait_for_log(READY, START_SECONDS)
    address = part.read_log().partition(READY)[2].split()[0]
    key = {"Authorization": "Key emulator-key"}
    with httpx.Client(base_url=address, headers=key, trust_env=False) as client:
        yield Emulator(address, directory, client)


@dataclass(frozen=True)
class Deployment:
    """Receiver, workers and scheduler on one job table; `settings` is what they were given."""

    yard: Yard
    listener: socket.socket
    settings: Mapping[str, str]
    workers: WorkerPlan

    @property
    def archive(self) -> Path:
        return self.yard.directory / "archive"

    @property
    def submitter(self) -> Part:
        return self.yard.parts[next(iter(self.workers))]

    @property
    def archiver(self) -> Part:
        return self.yard.parts[list(self.workers)[-1]]

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `extend-video` with these arguments."""
        return self.yard.run([EXTEND_VIDEO, *arguments], {**self.settings, **settings})

    def start_missing(self, *, but: Collection[str] = ()) -> None:
        """Start whatever does not run, so that a test finds the deployment whole."""
        if "receiver" not in but and not self.yard.is_running("receiver"):
            self.start_receiver()
        if "beat" not in but and not self.yard.is_running("beat"):
            self.start_beat()
        self.start_workers(but=but)

    def start_receiver(self) -> Part:
        """On a socket that is bound already: its port is known, and nobody takes it."""
        address = f"fd://{self.listener.fileno()}"
        command = [str(BIN / "gunicorn"), "--bind", address, "--threads", "4"]
        # As long as workers drain.
        command += ["--graceful-timeout", self.settings.get("DRAIN_SECONDS", "20")]
        command += ["--no-control-socket", "webhook:create_app()"]
        return self.yard.start("receiver", command, self.settings, [self.listener.fileno()])

    def start_workers(self, *, but: Collection[str] = ()) -> None:
        """Start those that do not run."""
        for name, options in self.workers.items():
            if name not in but and not self.yard.is_running(name):
                command = [*CELERY, "worker", "-n", f"{name}@%h", *options]
                self.yard.start(name, command, self.settings)

    def start_other_worker(self, name: str) -> Part:
        """One more, for every queue, that no test finds running but the one which starts it."""
        command = [*CELERY, "worker", "-n", f"{name}@%h", *THREADS]
        part = self.yard.start(name, command, self.settings)
        part.wait_for_log(" ready.")
        return part

    def start_beat(self, name: str = "beat") -> Part:
        return self.yard.start(name, [*CELERY, "beat"], self.settings)


@contextmanager
def run_deployment(
    yard: Yard,
    *,
    emulator: Emulator,
    fal_url: str,
    database_url: str,
    broker_url: str,
    workers: WorkerPlan,
    changes: Mapping[str, str] | None = None,
) -> Iterator[Deployment]:
    """Migrate if need be, then start every daemon.

    `fal_url` is the emulator, or something in front of it; `changes` are settings that differ from
    a test's usual ones.
    """
    with bind_listener() as listener:
        settings = build_settings(
            yard.directory,
            listener,
            emulator=emulator,
            fal_url=fal_url,
            database_url=database_url,
            broker_url=broker_url,
        )
        deployment = Deployment(yard, listener, {**settings, **(changes or {})}, workers)
        upgrade_schema(database_url)
        deployment.start_missing()
        yield deployment


def build_settings(
    directory: Path,
    listener: socket.socket,
    *,
    emulator: Emulator,
    fal_url: str,
    database_url: str,
    broker_url: str,
) -> dict[str, str]:
    host, port = listener.getsockname()
    return {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        "FAL_KEY": "emulator-key",
        "FAL_QUEUE_URL": fal_url,
        "FAL_JWKS_URL": f"{emulator.url}/.well-known/jwks.json",
        "FAL_PLATFORM_URL": f"{emulator.url}/v1",
        "FAL_MEDIA_HOSTS": fal_url.removeprefix("http://"),
        "WEBHOOK_BASE_URL": f"http://{host}:{port}",
        "ARCHIVE_URL": f"file:{directory / 'archive'}",
        "SWEEP_SECONDS": "1",
        "LEASE_SECONDS": "3",
    }


def bind_listener() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener
