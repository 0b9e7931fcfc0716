"""0. upload: bring a request's files to fal, so that its input holds URLs. Nothing is bought here.

A step of its own, before the row is written: what is tried again later, the job's submission or a
redrive, finds the URL in the job's input. Next: `enqueue.py`, which knows nothing of files.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from dataclasses import field as default
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeAlias

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
        """Whether a file that was there is surely there no more."""


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
    with ExitStack() as scratch:
        job_request, files = _check(fields, wrong, policy, scratch)
        if on_checked is not None:
            on_checked()
        return _place_files(job_request, files, db, open_storage, on_progress, clock)


def make_job_requests(
    wished: Sequence[Mapping[str, object]],
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
    with ExitStack() as scratch:
        checked, wrong = [], list[Violation]()
        for place, fields in enumerate(wished):
            try:
                checked.append(_check(fields, (), policy, scratch))
            except InvalidInputError as error:
                wrong += (
                    replace(one, field=f"{name(place)}.{one.field}") for one in error.violations
                )
        if wrong:
            raise InvalidInputError(tuple(wrong))
        return [
            _place_files(job_request, files, db, open_storage, None, clock)
            for job_request, files in checked
        ]


def _check(
    fields: Mapping[str, object],
    wrong: Sequence[Violation],
    policy: FilePolicy,
    scratch: ExitStack,
) -> tuple[JobRequest, dict[str, LocalFile]]:
    """The request, and its files by field. All that can be wrong is found here, at once."""
    files: dict[str, LocalFile] = {}
    refused: list[Violation] = []
    for name, kind in FILE_FIELDS.items():
        value = fields.get(name)
        try:
            file = _take_file(value, kind, policy, scratch)
        except (MediaRefusedError, ValueError) as error:
            refused.append(Violation(name, _show(value), str(error)))
        else:
            files |= {} if file is None else {name: file}
    placeholders = dict.fromkeys([*files, *(one.field for one in refused)], PLACEHOLDER)
    try:
        job_request = parse_job_request({**fields, **placeholders})
    except InvalidInputError as error:
        raise InvalidInputError((*refused, *error.violations, *wrong)) from None
    if refused or wrong:
        raise InvalidInputError((*refused, *wrong))
    return job_request, files


def _take_file(
    value: object, kind: str, policy: FilePolicy, scratch: ExitStack
) -> LocalFile | None:
    """The file to upload; None for what is sent as it is, or judged by the field's type.

    Decoded elsewhere. Raises MediaRefusedError and ValueError with the reason, and
    UploadUnavailableError if the file cannot be decoded now.
    """

    def make_path() -> Path:
        return Path(scratch.enter_context(TemporaryDirectory(prefix="extend-video-"))) / "file"

    match value:
        case str() if is_data_uri(value):
            content = parse_data_uri(value, kind=kind, max_bytes=policy.max_bytes).content
            path = make_path()
            path.write_bytes(content)
        case bytes() | bytearray() | memoryview():
            path = make_path()
            path.write_bytes(value)
        case Path():
            path = value
        case Readable():
            path = make_path()
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
    options, urls = job_request.options, dict[str, str]()
    key, job_id = options.idempotency_key, options.job_id
    with db.reading() as connection:
        known = {name: find_upload(connection, file.sha256) for name, file in files.items()}
        by_key = key and table.find_job_by_key(connection, options.tenant, key)
        by_id = job_id and table.find_job(connection, job_id)
    earlier = [job.input for job in (by_key, by_id) if job]
    for name, uploaded in known.items():
        # The very job that is requested again: nothing will be done with its files.
        if uploaded and any(one.get(name) == uploaded.url for one in earlier):
            urls[name] = uploaded.url
    if len(urls) < len(files):
        with open_storage() as storage:
            fresh_since = clock() - FRESH_FOR
            for name, uploaded in known.items():
                is_fresh = uploaded and uploaded.uploaded_at >= fresh_since
                if name not in urls and uploaded and is_fresh:
                    urls |= {} if storage.has_lost(uploaded.url) else {name: uploaded.url}
            missing = {name: file for name, file in files.items() if name not in urls}
            total, sent = sum(file.size for file in missing.values()), 0
            for name, file in missing.items():
                url = _upload(storage, name, file, _share(on_progress, sent, total))
                sent, now, lost = sent + file.size, clock(), known[name]
                new = Uploaded(file.sha256, file.size, file.kind.content_type, url, now)
                with db.transaction() as connection:
                    # Of two that upload the same at once, both take the first one's URL.
                    kept = record_upload(
                        connection, new, now - FRESH_FOR, lost_url=lost.url if lost else None
                    )
                urls[name] = kept.url
    completed = complete_input({**job_request.input, **urls})
    return replace(job_request, input=completed.to_json())


def _upload(storage: Storage, name: str, file: LocalFile, on_progress: OnProgress | None) -> str:
    # Named by its content: what it is called here is of no concern to fal.
    file_name = f"{file.sha256[:32]}.{file.kind.extension}"
    source = UploadFile(file.path, file.size, file.kind.content_type, file_name)
    url = storage.upload(source, on_progress)
    if not file.is_unchanged():
        changed = Violation(name, str(file.path), "it was changed while it was uploaded")
        raise InvalidInputError((changed,))
    return url


def _share(on_progress: OnProgress | None, before: int, total: int) -> OnProgress | None:
    """Progress of one file as progress of all of them."""
    if on_progress is None:
        return None
    return lambda sent, _: on_progress(before + sent, total)


def _show(value: object) -> str:
    match value:
        case Path():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case str():
            return show_value(value)
        case _:
            return f"<{type(value).__name__}>"
