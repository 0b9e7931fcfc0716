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
from worker.media.child import Answer, Bounds, Question, Subject
from worker.media.local_file import FileKind
from worker.media.probe import Examined, VideoFacts
from worker.media.verify import Stated

PROCESSES = 4
LOOK_SECONDS = 0.25
# The child's own timer comes first; this is for one that is stopped.
GRACE = timedelta(seconds=10)
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
        """Raises OSError."""
        command = [sys.executable, "-P", "-m", "worker.media.child"]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_choose_environment(),
            start_new_session=True,
        )

    def ask(self, line: bytes, patience: timedelta, check: Check) -> bytes:
        """The answer's line. Raises ChildEndedError, and what `check` raises while it waits."""
        assert self.process.stdin is not None  # noqa: S101 - both are pipes
        assert self.process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):  # told by the end of its stdout
            self.process.stdin.write(line)
        output = self.process.stdout.fileno()
        until, answer = time.monotonic() + patience.total_seconds(), bytearray()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while not answer.endswith(b"\n"):
            check()
            if time.monotonic() > until:
                raise ChildEndedError(-signal.SIGALRM)
            if poll.poll(LOOK_SECONDS * 1000):
                chunk = os.read(output, 1024 * 1024)
                if not chunk or len(answer) > MOST_ANSWER_BYTES:
                    raise ChildEndedError(self.process.wait())
                answer += chunk
        return bytes(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def disown(self) -> None:
        """In a forked process: it belongs to the parent."""
        self.close()
        self.process.returncode = 0


class Examiner:
    """Asks the processes; any thread may call it."""

    def __init__(self, bounds: Bounds, processes: int) -> None:
        self.bounds = bounds
        self._processes = processes
        self._idle: list[Child] = []
        self._room = Semaphore(processes)
        self._lock = Lock()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def verify(self, path: Path, stated: Stated, check: Check = lambda: None) -> Examined:
        """As `verify_video`; also raises MediaBoundError and MediaUnavailableError, as all here.

        `check` is called while it waits; what it raises ends the decoding.
        """
        answer = self._ask(self._build(Subject.VERIFY, path, stated=stated), check)
        return _require(answer.examined)

    def draw_poster(self, path: Path, facts: VideoFacts, check: Check = lambda: None) -> bytes:
        return _require(self._ask(self._build(Subject.POSTER, path, facts), check).picture)

    def inspect_video(self, path: Path) -> FileKind:
        return _require(self._ask(self._build(Subject.INPUT_VIDEO, path)).kind)

    def inspect_image(self, path: Path) -> FileKind:
        return _require(self._ask(self._build(Subject.INPUT_IMAGE, path)).kind)

    def close(self) -> None:
        """End the processes that are kept; the next question starts another."""
        while self._idle:
            self._idle.pop().end()

    def _build(
        self,
        subject: Subject,
        path: Path,
        facts: VideoFacts | None = None,
        stated: Stated | None = None,
    ) -> Question:
        return Question(
            subject=subject,
            name=os.fsencode(path.absolute()),
            bounds=self.bounds,
            stated=stated or Stated(),
            facts=facts,
        )

    def _ask(self, question: Question, check: Check = lambda: None) -> Answer:
        while not self._room.acquire(timeout=LOOK_SECONDS):
            check()
        try:
            return self._ask_twice(question, check)
        finally:
            self._room.release()

    def _ask_twice(self, question: Question, check: Check) -> Answer:
        """A process that was ended by somebody else, or for its age, is no fault of the file."""
        try:
            answer = self._ask_once(self._take(), question, check)
        except ChildEndedError as first:
            answer = _explain(first.code, self.bounds) or self._ask_again(question, check)
        if answer.bound is not None:
            log.warning("media_bound_exceeded", file=question.path.name, reason=answer.bound)
            raise MediaBoundError(answer.bound)
        if answer.mismatch is not None:
            raise MediaMismatchError(answer.mismatch)
        if answer.refused is not None:
            raise MediaRefusedError(answer.refused)
        return answer

    def _ask_again(self, question: Question, check: Check) -> Answer:
        try:
            return self._ask_once(_start(), question, check)
        except ChildEndedError as again:
            told = f"the process that decodes it ended twice with {again.code}"
            return _explain(again.code, self.bounds) or Answer(bound=told)

    def _ask_once(self, child: Child, question: Question, check: Check) -> Answer:
        patience = self.bounds.wall + GRACE
        try:
            answer = Answer.model_validate_json(child.ask(question.to_line(), patience, check))
        except BaseException:
            child.end()
            raise
        if answer.is_last:
            child.end()
        else:
            with self._lock:
                self._idle.append(child)
        return answer

    def _take(self) -> Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _start()

    def _forget(self) -> None:
        self._room, self._lock = Semaphore(self._processes), Lock()
        for child in self._idle:
            child.disown()
        self._idle = []


@cache
def get_examiner(bounds: Bounds = Bounds(), processes: int = PROCESSES) -> Examiner:  # noqa: B008 - frozen
    """One for all of this process."""
    return Examiner(bounds, processes)


def _start() -> Child:
    """Raises MediaUnavailableError."""
    try:
        return Child()
    except OSError as error:
        reason = f"no process that decodes can be started: {error.strerror}"
        raise MediaUnavailableError(reason) from error


def _explain(code: int, bounds: Bounds) -> Answer | None:
    """What the end of a process says of the file; None if another try may end otherwise.

    Raises MediaUnavailableError for one that cannot work at all.
    """
    if code > 0:
        raise MediaUnavailableError(f"the process that decodes ended with exit code {code}")
    if -code in SIGNALS:
        return Answer(bound=SIGNALS[signal.Signals(-code)].format(bounds))
    if -code in {0, signal.SIGKILL}:
        return None
    return Answer(bound=f"the decoder crashed with {signal.Signals(-code).name}")


def _choose_environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(_PASSED_ON_BEGINNINGS)
    }
    # Of malloc's arenas, one for each thread, each takes address space.
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}


def _require(value: Value | None) -> Value:
    if value is None:
        raise MediaUnavailableError("the process that decodes gave another answer")
    return value
