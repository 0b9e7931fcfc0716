"""The process that decodes: `python -m worker.media.child`, started by `examiner.py`.

It answers one question after the other and sets its own limits for each: memory, CPU and time. It
ends when its stdin ends, even while it decodes; so it does not outlive its parent. It ends by
itself after a pause, and after whatever may have left it in disorder.
"""

import errno
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from pydantic import BaseModel, ConfigDict

from worker.ground.errors import Finding, MediaBoundError, MediaMismatchError, MediaRefusedError
from worker.media.local_file import FileKind, inspect_image, inspect_video
from worker.media.poster import make_poster
from worker.media.probe import Examined, VideoFacts
from worker.media.verify import Stated, verify_video


class Subject(StrEnum):
    """What is asked about a file."""

    VERIFY = "verify"
    POSTER = "poster"
    INPUT_VIDEO = "input_video"
    INPUT_IMAGE = "input_image"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one question may take; `memory` counts bytes beyond those of a process just started."""

    memory: int = 256 * 1024 * 1024
    cpu: timedelta = timedelta(seconds=60)
    wall: timedelta = timedelta(minutes=3)


class _Line(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
    )

    def to_line(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


class Question(_Line):
    subject: Subject
    name: bytes
    bounds: Bounds
    stated: Stated = Stated()
    facts: VideoFacts | None = None

    @property
    def path(self) -> Path:
        """Any name that the file system has, not only those that are UTF-8."""
        return Path(os.fsdecode(self.name))


class Answer(_Line):
    """One of these; `bound` says which bound was exceeded, and then this may be the last answer."""

    examined: Examined | None = None
    picture: bytes | None = None
    kind: FileKind | None = None
    mismatch: tuple[Finding, ...] | None = None
    refused: str | None = None
    bound: str | None = None
    is_last: bool = False


IDLE_SECONDS = 300.0
_STATM, _OOM_SCORE = Path("/proc/self/statm"), Path("/proc/self/oom_score_adj")


def main() -> None:
    # A terminal's or a service manager's signal is the parent's to follow.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _OOM_SCORE.exists():
        # Where memory runs out all the same, this process is to end and not its parent.
        _OOM_SCORE.write_text("1000")
    lines: Queue[bytes] = Queue()
    Thread(target=_read_lines, args=(lines,), daemon=True).start()
    fresh = _count_address_space()
    while True:
        try:
            line = lines.get(timeout=IDLE_SECONDS)
        except Empty:
            break
        answer = answer_question(Question.model_validate_json(line), fresh)
        sys.stdout.buffer.write(answer.to_line())
        sys.stdout.buffer.flush()
        if answer.is_last:
            break
    # Python's own end would abort: a thread holds the lock of stdin, which it waits for.
    os._exit(0)


def answer_question(question: Question, fresh: int) -> Answer:
    """The answer within the question's bounds, unless the process is ended for exceeding them."""
    _limit(question.path, question.bounds, fresh)
    try:
        return ANSWERS[question.subject](question)
    except Exception as error:  # noqa: BLE001 - no error of ours is proof against a file
        return describe_error(error, question.bounds)
    finally:
        _lift()


def describe_error(error: Exception, bounds: Bounds) -> Answer:
    if _lacked_memory(error):
        told = f"decoding it takes more than {bounds.memory} bytes of memory"
        return Answer(bound=told, is_last=True)
    match error:
        case MediaBoundError():
            return Answer(bound=str(error))
        case MediaMismatchError():
            return Answer(mismatch=error.evidence)
        case MediaRefusedError():
            return Answer(refused=str(error))
        case _:
            traceback.print_exception(error)
            return Answer(bound=f"the decoder failed: {type(error).__name__}", is_last=True)


def _verify(question: Question) -> Answer:
    return Answer(examined=verify_video(question.path, question.stated))


def _draw(make: Callable[[Path, VideoFacts], bytes]) -> Callable[[Question], Answer]:
    def draw(question: Question) -> Answer:
        assert question.facts is not None  # noqa: S101 - asked with them
        return Answer(picture=make(question.path, question.facts))

    return draw


ANSWERS: dict[Subject, Callable[[Question], Answer]] = {
    Subject.VERIFY: _verify,
    Subject.POSTER: _draw(make_poster),
    Subject.INPUT_VIDEO: lambda question: Answer(kind=inspect_video(question.path)),
    Subject.INPUT_IMAGE: lambda question: Answer(kind=inspect_image(question.path)),
}


def _read_lines(lines: Queue[bytes]) -> None:
    """End the process where the lines end, whatever it is doing: its parent is gone."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def _limit(path: Path, bounds: Bounds, fresh: int) -> None:
    """The file itself is mapped while its container is walked, which takes no memory."""
    if fresh and path.exists():
        most = fresh + bounds.memory + path.stat().st_size
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    seconds = math.ceil(time.process_time() + bounds.cpu.total_seconds())
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, bounds.wall.total_seconds())


def _lift() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _count_address_space() -> int:
    """Bytes; 0 where it is not known, which is where RLIMIT_AS does not work either."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[0]) * resource.getpagesize()


def _lacked_memory(error: BaseException | None) -> bool:
    """Whether the error came from memory that was not given."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    main()
