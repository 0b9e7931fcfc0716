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
from threading import Lock, Semaphore
from typing import TypeAlias, TypeVar

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
    Subject,
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
SIGNALS = {
    signal.SIGXCPU: "decoding it takes more than {0.cpu} of CPU time",
    signal.SIGALRM: "decoding it takes more than {0.wall}",
}

Check: TypeAlias = Callable[[], object]
Value = TypeVar("Value")

log = structlog.stdlib.get_logger(__name__)


class ChildEndedError(Exception):
    """The process ended without an answer; `code` as of subprocess."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Child:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        """Raises MediaUnavailableError."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in PASSED_ON or name.startswith(_PASSED_ON_BEGINNINGS)
        }
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        # Of malloc's arenas, one for each thread, each takes address space.
        environment["MALLOC_ARENA_MAX"] = "1"
        try:
            self.process = subprocess.Popen(
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

    def send(self, line: bytes, timeout: timedelta, check: Check) -> bytes:
        """The answer's line. Raises ChildEndedError, and what `check` raises while it waits."""
        assert self.process.stdin is not None  # noqa: S101 - both are pipes
        assert self.process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):  # the end of its stdout says so, too
            self.process.stdin.write(line)
        output = self.process.stdout.fileno()
        until, answer = time.monotonic() + timeout.total_seconds(), bytearray()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while not answer.endswith(b"\n"):
            check()
            if time.monotonic() > until:
                raise ChildEndedError(-signal.SIGALRM)
            if poll.poll(CHECK_SECONDS * 1000):
                chunk = os.read(output, 1024 * 1024)
                if not chunk or len(answer) > MOST_ANSWER_BYTES:
                    raise ChildEndedError(self.process.wait())
                answer += chunk
        return bytes(answer)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def disown(self) -> None:
        """In a forked process: it belongs to the parent."""
        self.close()
        self.process.returncode = 0


class Examiner:
    """Has files decoded by the processes; any thread may call it.

    Every method raises MediaBoundError for a file that takes more than `bounds`, and
    MediaUnavailableError if no process can work. `check` is called while it waits; what it raises
    ends the decoding.
    """

    def __init__(self, bounds: Bounds, processes: int) -> None:
        self.bounds = bounds
        self._processes = processes
        self._idle: list[Child] = []
        self._room = Semaphore(processes)
        self._lock = Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def verify(self, path: Path, stated: Stated, check: Check = lambda: None) -> Examined:
        """As `verify_video`."""
        return _require(self._request(Subject.VERIFY, path, check, stated=stated).examined)

    def draw_poster(self, path: Path, facts: VideoFacts, check: Check = lambda: None) -> bytes:
        return _require(self._request(Subject.POSTER, path, check, facts=facts).picture)

    def inspect_video(self, path: Path) -> FileKind:
        return _require(self._request(Subject.INPUT_VIDEO, path).kind)

    def inspect_image(self, path: Path) -> FileKind:
        return _require(self._request(Subject.INPUT_IMAGE, path).kind)

    def close(self) -> None:
        """End the processes that are kept; the next file starts another."""
        while self._idle:
            self._idle.pop().end()

    def _request(
        self,
        subject: Subject,
        path: Path,
        check: Check = lambda: None,
        *,
        stated: Stated = Stated(),  # noqa: B008 - frozen
        facts: VideoFacts | None = None,
    ) -> Answer:
        name = os.fsencode(path.absolute())
        question = Question(
            subject=subject, name=name, bounds=self.bounds, stated=stated, facts=facts
        )
        while not self._room.acquire(timeout=CHECK_SECONDS):
            check()
        try:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            try:
                answer = self._send(child or Child(), question, check)
            except ChildEndedError as first:
                # Killed from outside, or ended for its age: no fault of the file.
                answer = self._explain_end(first.code) or self._send_again(question, check)
        finally:
            self._room.release()
        if answer.bound is not None:
            log.warning("media_bound_exceeded", file=path.name, reason=answer.bound)
            raise MediaBoundError(answer.bound)
        if answer.mismatch is not None:
            raise MediaMismatchError(answer.mismatch)
        if answer.refused is not None:
            raise MediaRefusedError(answer.refused)
        return answer

    def _send_again(self, question: Question, check: Check) -> Answer:
        try:
            return self._send(Child(), question, check)
        except ChildEndedError as again:
            reason = f"the process that decodes it ended twice with {again.code}"
            return self._explain_end(again.code) or Answer(bound=reason)

    def _send(self, child: Child, question: Question, check: Check) -> Answer:
        try:
            line = child.send(question.to_line(), self.bounds.wall + LATE, check)
            answer = Answer.model_validate_json(line)
        except BaseException:
            child.end()
            raise
        if answer.is_last:
            child.end()
        else:
            with self._lock:
                self._idle.append(child)
        return answer

    def _explain_end(self, code: int) -> Answer | None:
        """What the end of a process says of the file; None if another try may end otherwise.

        Raises MediaUnavailableError for one that cannot work at all.
        """
        if code > 0:
            raise MediaUnavailableError(f"the process that decodes ended with exit code {code}")
        if -code in SIGNALS:
            return Answer(bound=SIGNALS[signal.Signals(-code)].format(self.bounds))
        if -code in {0, signal.SIGKILL}:
            return None
        return Answer(bound=f"the decoder crashed with {signal.Signals(-code).name}")

    def _forget(self) -> None:
        self._room, self._lock = Semaphore(self._processes), Lock()
        for child in self._idle:
            child.disown()
        self._idle = []


@cache
def get_examiner(bounds: Bounds = Bounds(), processes: int = PROCESSES) -> Examiner:  # noqa: B008 - frozen
    """One for all of this process."""
    return Examiner(bounds, processes)


def _require(value: Value | None) -> Value:
    if value is None:
        raise MediaUnavailableError("the process that decodes gave another answer")
    return value
