"""Foreign files are decoded by processes of their own, so that no file can harm this one.

A few bytes can announce gigabytes, or hours of work, and a decoder may crash. The processes
(`child.py`) set their own limits. A few are kept for many files, as starting one takes longer than
a small video; one that has exceeded a bound, or ended, is replaced.
"""

import atexit
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Semaphore
from typing import Any, TypeAlias, TypeVar

import structlog

from worker.ground.errors import (
    MediaBoundError,
    MediaMismatchError,
    MediaRefusedError,
    MediaUnavailableError,
)
from worker.media.facts import (
    Answer,
    Bounds,
    Examined,
    FileKind,
    Question,
    Stated,
    VideoFacts,
)

PROCESSES = 4
CHECK_SECONDS = 0.25
# The child's own timer comes first; this is for one that is stopped.
LATE = timedelta(seconds=10)
MOST_ANSWER_BYTES = 64 * 1024 * 1024
# Of the environment nothing else: a decoder needs no key.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "TZ", "SYSTEMROOT")
_PASSED_ON_BEGINNINGS = ("COVERAGE", "COV_CORE")

Check: TypeAlias = Callable[[], object]
Process: TypeAlias = "subprocess.Popen[bytes]"
Value = TypeVar("Value")

log = structlog.stdlib.get_logger(__name__)


class Examiner:
    """Has files decoded by the processes; any thread may call it.

    Every method raises MediaBoundError for a file that takes more than `bounds`, and
    MediaUnavailableError if no process can work. `check` is called while it waits; what it raises
    ends the decoding.
    """

    def __init__(self, bounds: Bounds, processes: int) -> None:
        self.bounds = bounds
        self._processes = processes
        self._idle: list[Process] = []
        self._room = Semaphore(processes)
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def verify(self, path: Path, stated: Stated, check: Check = lambda: None) -> Examined:
        """As `verify_video`."""
        return _require(self._request(path, check, subject="verify", stated=stated).examined)

    def draw_poster(self, path: Path, facts: VideoFacts, check: Check = lambda: None) -> bytes:
        return _require(self._request(path, check, subject="poster", facts=facts).picture)

    def inspect_video(self, path: Path) -> FileKind:
        return _require(self._request(path, subject="input_video").kind)

    def inspect_image(self, path: Path) -> FileKind:
        return _require(self._request(path, subject="input_image").kind)

    def close(self) -> None:
        """End the processes that are kept; the next file starts another."""
        while self._idle:
            _end(self._idle.pop())

    def _request(
        self,
        path: Path,
        check: Check = lambda: None,
        **fields: Any,  # noqa: ANN401 - those of Question
    ) -> Answer:
        question = Question(name=os.fsencode(path.absolute()), bounds=self.bounds, **fields)
        while not self._room.acquire(timeout=CHECK_SECONDS):
            check()
        try:
            try:
                process = self._idle.pop()
            except IndexError:
                process = _start()
            # Killed from outside, or ended for its age, is no fault of the file: once more.
            answer = self._send(process, question, check) or self._send(_start(), question, check)
        finally:
            self._room.release()
        if answer is None:
            answer = Answer(bound="the process that decodes it ended twice without an answer")
        if answer.bound is not None:
            log.warning("media_bound_exceeded", file=path.name, reason=answer.bound)
            raise MediaBoundError(answer.bound)
        if answer.mismatch is not None:
            raise MediaMismatchError(answer.mismatch)
        if answer.refused is not None:
            raise MediaRefusedError(answer.refused)
        return answer

    def _send(self, process: Process, question: Question, check: Check) -> Answer | None:
        """None if the process ended in a way that says nothing of the file."""
        try:
            line = _exchange(process, question.to_line(), self.bounds.wall + LATE, check)
            answer = Answer.model_validate_json(line) if line else self._explain_end(process.wait())
        except BaseException:
            _end(process)
            raise
        if not line or (answer is not None and answer.is_last):
            _end(process)
        else:
            self._idle.append(process)
        return answer

    def _explain_end(self, code: int) -> Answer | None:
        if code > 0:
            raise MediaUnavailableError(f"the process that decodes ended with exit code {code}")
        if -code in {0, signal.SIGKILL}:
            return None
        name = signal.Signals(-code).name
        bounds = {
            "SIGXCPU": f"decoding it takes more than {self.bounds.cpu} of CPU time",
            "SIGALRM": f"decoding it takes more than {self.bounds.wall}",
        }
        return Answer(bound=bounds.get(name, f"the decoder crashed with {name}"))

    def _forget(self) -> None:
        """In a forked process: they belong to its parent."""
        self._room = Semaphore(self._processes)
        for process in self._idle:
            _close(process)
            process.returncode = 0
        self._idle = []


@cache
def get_examiner(bounds: Bounds = Bounds(), processes: int = PROCESSES) -> Examiner:  # noqa: B008 - frozen
    """One for all of this process."""
    return Examiner(bounds, processes)


def _start() -> Process:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(_PASSED_ON_BEGINNINGS)
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    # Of malloc's arenas, one for each thread, each takes address space.
    environment["MALLOC_ARENA_MAX"] = "1"
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.media.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        reason = f"no process that decodes can be started: {error.strerror}"
        raise MediaUnavailableError(reason) from error


def _exchange(process: Process, line: bytes, timeout: timedelta, check: Check) -> bytes:
    """The answer's line; nothing if the process ended. Raises what `check` raises meanwhile."""
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):  # the end of its stdout says so, too
        process.stdin.write(line)
    until, answer = time.monotonic() + timeout.total_seconds(), bytearray()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while not answer.endswith(b"\n"):
        check()
        if time.monotonic() > until:
            return Answer(bound="the decoding process gave no answer", is_last=True).to_line()
        if poll.poll(CHECK_SECONDS * 1000):
            chunk = os.read(process.stdout.fileno(), 1024 * 1024)
            if not chunk:
                return b""
            answer += chunk
            if len(answer) > MOST_ANSWER_BYTES:
                raise MediaUnavailableError("the process that decodes answers without end")
    return bytes(answer)


def _close(process: Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    _close(process)


def _require(value: Value | None) -> Value:
    if value is None:
        raise MediaUnavailableError("the process that decodes gave another answer")
    return value
