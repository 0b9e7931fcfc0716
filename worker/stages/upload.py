"""0. upload: bring a request's files to fal, so that its input holds URLs. Nothing is bought here.

A step of its own, before the row is written: what is tried again later, the job's submission or a
redrive, finds the URL in the job's input. Next: `enqueue.py`, which knows nothing of files.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from dataclasses import field as default
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeAlias

from uuid_utils.compat import uuid7

from worker.fal.model import complete_input
from worker.fal.storage import OnProgress, UploadFile
from worker.ground.clock import Clock, read_clock
from worker.ground.data_uri import is_data_uri, parse_data_uri
from worker.ground.db import Database
from worker.ground.errors import (
    InvalidInputError,
    MediaRefusedError,
    MediaUnavailableError,
    UploadUnavailableError,
    Violation,
)
from worker.ground.validation import show_value
from worker.jobs import table
from worker.jobs.uploads import Uploaded, find_upload, record_upload
from worker.media.examiner import Examiner, get_examiner
from worker.media.local_file import LocalFile, Readable, keep_stream, take_file
from worker.stages.enqueue import JobRequest, name_job_request, parse_job_request

# fal keeps files for seven days at least; a job may wait for some of them.
FRESH_FOR = timedelta(days=6)
# The fields that a file may be given for, and what it is.
FILE_FIELDS = {"video_url": "video", "end_image_url": "image"}
# Stands for a file's URL while the fields are checked: nothing is uploaded for a wrong request.
PLACEHOLDER = "https://upload.invalid/file"


class Storage(Protocol):
    """What this stage needs of fal's storage."""

    def upload(self, file: UploadFile, on_progress: OnProgress | None = None) -> str:
        """The file's URL. Raises UploadUnavailableError and UploadRefusedError."""

    def has_lost(self, url: str) -> bool:
        """Whether a file that was there is surely gone."""


OpenStorage: TypeAlias = Callable[[], AbstractContextManager[Storage]]


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """How large a data URI may be to go inline, and any file to be uploaded at all."""

    inline_bytes: int
    max_bytes: int
    examiner: Examiner = default(default_factory=get_examiner)


def has_inline(fields: Mapping[str, object]) -> bool:
    """Whether a file stands in the fields themselves, and will be decoded; pure."""
    values = (fields.get(name) for name in FILE_FIELDS)
    return any(isinstance(value, str) and is_data_uri(value) for value in values)


def make_job_request(  # noqa: PLR0913 - as its callers have them
    fields: Mapping[str, object],
    wrong: Sequence[Violation],
    *,
    db: Database,
    open_storage: OpenStorage,
    policy: FilePolicy,
    on_checked: Callable[[], object] | None = None,
    on_progress: OnProgress | None = None,
    clock: Clock = read_clock,
) -> JobRequest:
    """The checked request; a path, bytes, open file or large data URI in it is uploaded.

    Text is a URL or a data URI and never names a file of this machine. The same bytes are not
    uploaded again for FRESH_FOR. Raises InvalidInputError with what is `wrong` already and with
    all else, before anything is uploaded; UploadUnavailableError and UploadRefusedError.

    `on_checked` is called in between: all files have been decoded, and none is uploaded.
    """
    with TemporaryDirectory(prefix="extend-video-") as scratch:
        job_request, files = _check(fields, wrong, policy, Path(scratch))
        if on_checked is not None:
            on_checked()
        return _place_files(job_request, files, db, open_storage, on_progress, clock)


def make_job_requests(
    requested: Sequence[Mapping[str, object]],
    *,
    db: Database,
    open_storage: OpenStorage,
    policy: FilePolicy,
    name: Callable[[int], str] = name_job_request,
    clock: Clock = read_clock,
) -> list[JobRequest]:
    """The checked requests. No file is uploaded before all of them have been found good.

    Raises InvalidInputError with what is wrong in any of them: `requests.3.prompt` is a field of
    the fourth; UploadUnavailableError and UploadRefusedError.
    """
    with TemporaryDirectory(prefix="extend-video-") as scratch:
        checked, wrong = [], list[Violation]()
        for place, fields in enumerate(requested):
            try:
                checked.append(_check(fields, (), policy, Path(scratch)))
            except InvalidInputError as error:
                found = error.violations
                wrong += (replace(one, field=f"{name(place)}.{one.field}") for one in found)
        if wrong:
            raise InvalidInputError(tuple(wrong))
        return [_place_files(*one, db, open_storage, None, clock) for one in checked]


def _check(
    fields: Mapping[str, object], wrong: Sequence[Violation], policy: FilePolicy, scratch: Path
) -> tuple[JobRequest, dict[str, LocalFile]]:
    """The request, and its files by field. All that can be wrong is found here, at once."""
    sent, files, found, job_request = dict(fields), dict[str, LocalFile](), list[Violation](), None
    for name, kind in FILE_FIELDS.items():
        value = fields.get(name)
        try:
            file = _take_file(value, kind, policy, scratch / uuid7().hex)
        except (MediaRefusedError, ValueError) as error:
            found.append(Violation(name, _show(value), str(error)))
            sent[name] = PLACEHOLDER
        else:
            if file is not None:
                sent[name], files[name] = PLACEHOLDER, file
    try:
        job_request = parse_job_request(sent)
    except InvalidInputError as error:
        found += error.violations
    if job_request is None or found or wrong:
        raise InvalidInputError((*found, *wrong))
    return job_request, files


def _take_file(value: object, kind: str, policy: FilePolicy, path: Path) -> LocalFile | None:
    """The file to upload; None for what is sent as it is, or judged by the field's type.

    Its bytes are written to `path`, and decoded elsewhere. Raises MediaRefusedError and ValueError
    with the reason, and UploadUnavailableError if the file cannot be decoded now.
    """
    match value:
        case str() if is_data_uri(value):
            path.write_bytes(parse_data_uri(value, kind=kind, max_bytes=policy.max_bytes).content)
        case bytes() | bytearray() | memoryview():
            path.write_bytes(value)
        case Path():
            path = value
        case Readable():
            keep_stream(value, path, policy.max_bytes)
        case _:
            return None
    examiner = policy.examiner
    inspect = examiner.inspect_video if kind == "video" else examiner.inspect_image
    try:
        file = take_file(path, inspect, policy.max_bytes)
    except MediaUnavailableError as error:
        raise UploadUnavailableError(str(error)) from error
    fits_inline = isinstance(value, str) and file.size <= policy.inline_bytes
    return None if fits_inline else file


def _place_files(
    job_request: JobRequest,
    files: Mapping[str, LocalFile],
    db: Database,
    open_storage: OpenStorage,
    on_progress: OnProgress | None,
    clock: Clock,
) -> JobRequest:
    """The request with the URLs of its files, which are uploaded unless fal has them still."""
    if not files:
        return job_request
    options = job_request.options
    key, job_id = options.idempotency_key, options.job_id
    with db.reading() as connection:
        known = {name: find_upload(connection, file.sha256) for name, file in files.items()}
        by_key = key and table.find_job_by_key(connection, options.tenant, key)
        by_id = job_id and table.find_job(connection, job_id)
    # The very job that is requested again: nothing will be done with its files.
    again = {job.input.get(name) for job in (by_key, by_id) if job for name in files}
    urls = {name: one.url for name, one in known.items() if one and one.url in again}
    if len(urls) < len(files):
        with open_storage() as storage:
            fresh_since = clock() - FRESH_FOR
            for name, one in known.items():
                is_fresh = one is not None and one.uploaded_at >= fresh_since
                if one and is_fresh and name not in urls and not storage.has_lost(one.url):
                    urls[name] = one.url
            missing = {name: file for name, file in files.items() if name not in urls}
            total, sent = sum(file.size for file in missing.values()), 0
            for name, file in missing.items():
                # Progress of one file is shown as progress of all of them.
                share = on_progress and partial(_report, on_progress, sent, total)
                new = _upload(storage, name, file, share, clock)
                lost = known[name]
                with db.transaction() as connection:
                    # Of two that upload the same at once, both take the first one's URL.
                    since, lost_url = new.uploaded_at - FRESH_FOR, lost.url if lost else None
                    urls[name] = record_upload(connection, new, since, lost_url=lost_url).url
                sent += file.size
    return replace(job_request, input=complete_input({**job_request.input, **urls}).to_json())


def _upload(
    storage: Storage, name: str, file: LocalFile, on_progress: OnProgress | None, clock: Clock
) -> Uploaded:
    # Named by its content: what it is called here is of no concern to fal.
    file_name, media_type = f"{file.sha256[:32]}.{file.kind.extension}", file.kind.content_type
    url = storage.upload(UploadFile(file.path, file.size, media_type, file_name), on_progress)
    if not file.is_unchanged():
        changed = Violation(name, str(file.path), "it was changed while it was uploaded")
        raise InvalidInputError((changed,))
    return Uploaded(file.sha256, file.size, media_type, url, clock())


def _report(on_progress: OnProgress, before: int, total: int, sent: int, _: int) -> None:
    on_progress(before + sent, total)


def _show(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return show_value(value)
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"
