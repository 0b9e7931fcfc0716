"""The process that decodes: `python -m worker.media.child`, started by `examiner.py`.

It answers one question after the other and sets its own limits for each: memory, CPU and time. It
ends when its stdin ends, even while it decodes; so it does not outlive its parent. It ends by
itself after a pause, and after an error that may have left it in disorder.
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
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import av

from worker.ground.errors import Finding, MediaBoundError, MediaMismatchError, MediaRefusedError
from worker.media.facts import Answer, Bounds, Examined, FileKind, Question, Stated, Subject
from worker.media.layout import HEAD_BYTES, VIDEO_TYPES, choose_extension
from worker.media.poster import make_poster
from worker.media.probe import READ_OPTIONS, check_pixels, examine_video, find_picture
from worker.media.verify import compare_bytes, compare_facts, find_missing_bytes

QUOTED_BYTES = 80
# How a picture begins, what stands at its ninth byte, and FFmpeg's name for reading it.
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", b"", "png_pipe", FileKind("image/png", "png")),
    (b"\xff\xd8\xff", b"", "jpeg_pipe", FileKind("image/jpeg", "jpg")),
    (b"RIFF", b"WEBP", "webp_pipe", FileKind("image/webp", "webp")),
    (b"GIF8", b"", "gif", FileKind("image/gif", "gif")),
)
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
    # Bytes; 0 where it is not known, which is where RLIMIT_AS does not work either.
    fresh = int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else 0
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
    """The answer within the question's bounds, unless the process is ended for exceeding them.

    `fresh` is how many bytes of address space the process had when it started.
    """
    path, bounds = question.path, question.bounds
    if fresh and path.exists():
        # The file itself is mapped while its container is walked, which takes no memory.
        most = fresh + bounds.memory + path.stat().st_size
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    seconds = math.ceil(time.process_time() + bounds.cpu.total_seconds())
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, bounds.wall.total_seconds())
    try:
        return ANSWERS[question.subject](question)
    except Exception as error:  # noqa: BLE001 - any file may cause any error
        return describe_error(error, bounds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def describe_error(error: Exception, bounds: Bounds) -> Answer:
    """That memory was lacking comes first: then nothing else is proven."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            reason = f"decoding it takes more than {bounds.memory} bytes of memory"
            return Answer(bound=reason, is_last=True)
        cause = cause.__cause__
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


def verify_video(path: Path, stated: Stated) -> Examined:
    """What the video is; what differs from what was stated is among its oddities.

    Raises MediaMismatchError with the proof, and all that differs beside it; MediaBoundError for
    what takes too much to decode, which proves nothing.
    """
    size = path.stat().st_size
    lengths = tuple(compare_bytes(stated, size))
    short = tuple(find_missing_bytes(stated, size))
    try:
        examined = examine_video(path)
    except MediaBoundError:
        raise
    except MediaRefusedError as error:
        with path.open("rb") as file:
            head = ascii(file.read(QUOTED_BYTES).decode("latin-1"))
        expected, found = stated.media_type or "a video", f"{head} ({error})"
        message = f"stated {expected}, found {found}"
        other = Finding("no_video", message, "media type", expected, found)
        raise MediaMismatchError((*short, other, *lengths)) from error
    differences = (*lengths, *compare_facts(stated, examined))
    if short or examined.damages:
        raise MediaMismatchError((*short, *examined.damages, *differences))
    return replace(examined, oddities=(*differences, *examined.oddities))


def inspect_video(path: Path) -> FileKind:
    """Whether the file may be an input video: its first frame is decoded, however long it is.

    Raises MediaRefusedError with the reason.
    """
    extension = choose_extension(None, None, _see_frame(path, "video", READ_OPTIONS))
    return FileKind(VIDEO_TYPES.get(extension, "video/mp4"), extension)


def inspect_image(path: Path) -> FileKind:
    """As `inspect_video`, for a picture."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for begins, mark, demuxer, kind in _PICTURES:
        if head.startswith(begins) and mark in head[8:12]:
            _see_frame(path, "image", {"protocol_whitelist": "file"}, demuxer)
            return kind
    raise MediaRefusedError("not a readable image: neither PNG, JPEG, WebP nor GIF")


def _see_frame(path: Path, what: str, options: dict[str, str], demuxer: str | None = None) -> bytes:
    """The head of a file of which a frame was decoded; a cover beside sound is no video stream."""
    try:
        with av.open(path.absolute(), format=demuxer, container_options=options) as container:
            stream = find_picture(container)
            if stream is None:
                raise MediaRefusedError("it has no video stream")
            check_pixels(stream.codec_context.width, stream.codec_context.height)
            frame = next(iter(container.decode(stream)), None)
            if frame is None:
                raise MediaRefusedError("no frame of it can be decoded")
            check_pixels(frame.width, frame.height)
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable {what}: {error.strerror}") from error


ANSWERS: dict[Subject, Callable[[Question], Answer]] = {
    "verify": lambda asked: Answer(examined=verify_video(asked.path, asked.stated)),
    "poster": lambda asked: Answer(picture=make_poster(asked.path, asked.facts)),
    "input_video": lambda asked: Answer(kind=inspect_video(asked.path)),
    "input_image": lambda asked: Answer(kind=inspect_image(asked.path)),
}


def _read_lines(lines: Queue[bytes]) -> None:
    """End the process where the lines end, even while it decodes: its parent is gone."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
