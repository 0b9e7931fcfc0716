"""0. upload: bring a wish's files to fal, so that its input holds URLs. Nothing is bought here.

A step of its own, before the row is written: whatever is tried again later, the job's submission
or a redrive, finds the URL in the job's input. Next: `enqueue.py`.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from dataclasses import field as default
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeAlias

from sqlalchemy import Connection

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
from worker.stages.enqueue import JobOptions, JobRequest, parse_job_request

# fal keeps files for seven days at least; a job may wait for some of them.
FRESH_FOR = timedelta(days=6)
# Stands where a URL will be, while all other fields are checked.
STAND_IN = "https://upload.invalid/file"


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


@dataclass(frozen=True, slots=True)
class _FileField:
    name: str
    kind: str

    def take(self, path: Path, policy: FilePolicy) -> LocalFile:
        """Decoded elsewhere. Raises MediaRefusedError, and UploadUnavailableError if it cannot."""
        examiner = policy.examiner
        inspect = examiner.inspect_video if self.kind == "video" else examiner.inspect_image
        try:
            return take_file(path, inspect, policy.max_bytes)
        except MediaUnavailableError as error:
            raise UploadUnavailableError(str(error)) from error


_FILE_FIELDS = (_FileField("video_url", "video"), _FileField("end_image_url", "image"))


def has_inline(fields: Mapping[str, object]) -> bool:
    """Whether a file stands in the fields themselves, and will be decoded; pure."""
    values = (fields.get(field.name) for field in _FILE_FIELDS)
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
    """The checked wish; what it gives as path, bytes, open file or large data URI is uploaded.

    Text is a URL or a data URI and never names a file of this machine. The same bytes are not
    uploaded again for FRESH_FOR. Raises InvalidInputError with what is `wrong` already and with
    all else, before anything is uploaded; UploadUnavailableError and UploadRefusedError.

    `on_checked` is called in between: all files have been decoded, and none is uploaded.
    """
    with scratch() as make_scratch:
        job_request, files = check_job_request(fields, wrong, policy, make_scratch)
        if on_checked is not None:
            on_checked()
        return place_files(
            job_request,
            files,
            db=db,
            open_storage=open_storage,
            on_progress=on_progress,
            clock=clock,
        )


def place_files(
    job_request: JobRequest,
    files: Mapping[str, LocalFile],
    *,
    db: Database,
    open_storage: OpenStorage,
    on_progress: OnProgress | None = None,
    clock: Clock = read_clock,
) -> JobRequest:
    """The wish with the URLs of its files, which are uploaded as far as they have to be."""
    if not files:
        return job_request
    urls = _Placing(db, open_storage, clock, job_request).place_all(files, on_progress)
    completed = complete_input({**job_request.input, **urls})
    return JobRequest(completed.to_json(), job_request.options, job_request.seed_drawn)


def check_job_request(
    fields: Mapping[str, object],
    wrong: Sequence[Violation],
    policy: FilePolicy,
    make_scratch: Callable[[], Path],
) -> tuple[JobRequest, dict[str, LocalFile]]:
    """The wish, and its files by field. Everything that can be wrong is found here, all at once."""
    files: dict[str, LocalFile] = {}
    stand_ins: dict[str, str] = {}
    refused: list[Violation] = []
    for field in _FILE_FIELDS:
        value = fields.get(field.name)
        try:
            file = _take(field, value, policy, make_scratch)
        except (MediaRefusedError, ValueError) as error:
            refused.append(Violation(field.name, _show(value), str(error)))
            stand_ins[field.name] = STAND_IN
            continue
        if file is not None:
            files[field.name] = file
            stand_ins[field.name] = STAND_IN
    try:
        job_request = parse_job_request({**fields, **stand_ins})
    except InvalidInputError as error:
        raise InvalidInputError((*refused, *error.violations, *wrong)) from None
    if refused or wrong:
        raise InvalidInputError((*refused, *wrong))
    return job_request, files


def _take(
    field: _FileField, value: object, policy: FilePolicy, make_scratch: Callable[[], Path]
) -> LocalFile | None:
    """The file to upload; None for what is sent as it is, or judged by the field's type.

    Raises MediaRefusedError and ValueError with the reason.
    """
    if isinstance(value, str) and is_data_uri(value):
        content = parse_data_uri(value, kind=field.kind, max_bytes=policy.max_bytes).content
        file = _take_bytes(field, content, policy, make_scratch)
        return None if file.size <= policy.inline_bytes else file
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        return _take_bytes(field, value, policy, make_scratch)
    if isinstance(value, Path):
        return field.take(value, policy)
    if isinstance(value, Readable):
        target = make_scratch()
        keep_stream(value, target, policy.max_bytes)
        return field.take(target, policy)
    return None


def _take_bytes(
    field: _FileField,
    content: bytes | bytearray | memoryview,
    policy: FilePolicy,
    make_scratch: Callable[[], Path],
) -> LocalFile:
    target = make_scratch()
    target.write_bytes(content)
    return field.take(target, policy)


@dataclass(frozen=True, slots=True)
class _Placing:
    """Brings the files of one wish to fal."""

    db: Database
    open_storage: OpenStorage
    clock: Clock
    job_request: JobRequest

    def place_all(
        self, files: Mapping[str, LocalFile], on_progress: OnProgress | None
    ) -> dict[str, str]:
        with self.db.reading() as connection:
            known = {name: find_upload(connection, file.sha256) for name, file in files.items()}
            inputs = list(_find_inputs(connection, self.job_request.options))
        urls = {
            name: uploaded.url
            for name, uploaded in known.items()
            # The very job that is wished again: nothing will be done with its files.
            if uploaded and any(one.get(name) == uploaded.url for one in inputs)
        }
        if len(urls) < len(files):
            with self.open_storage() as storage:
                rest = {name: file for name, file in files.items() if name not in urls}
                urls |= self._bring(storage, rest, known, on_progress)
        return urls

    def _bring(
        self,
        storage: Storage,
        files: Mapping[str, LocalFile],
        known: Mapping[str, Uploaded | None],
        on_progress: OnProgress | None,
    ) -> dict[str, str]:
        """The URLs of what is at fal still, and of what is uploaded now."""
        urls = {
            name: uploaded.url
            for name in files
            if (uploaded := known[name]) and self._is_good(storage, uploaded)
        }
        missing = {name: file for name, file in files.items() if name not in urls}
        total, before = sum(file.size for file in missing.values()), 0
        for name, file in missing.items():
            url = self._upload(storage, name, file, _share(on_progress, before, total))
            urls[name] = self._record(file, url, known[name])
            before += file.size
        return urls

    def _is_good(self, storage: Storage, uploaded: Uploaded) -> bool:
        return uploaded.uploaded_at >= self._fresh_since() and not storage.has_lost(uploaded.url)

    def _upload(
        self, storage: Storage, name: str, file: LocalFile, on_progress: OnProgress | None
    ) -> str:
        # Named by its content: what it is called here is nobody else's business.
        file_name = f"{file.sha256[:32]}.{file.kind.extension}"
        source = UploadFile(file.path, file.size, file.kind.content_type, file_name)
        url = storage.upload(source, on_progress)
        if not file.is_unchanged():
            changed = Violation(name, str(file.path), "it was changed while it was uploaded")
            raise InvalidInputError((changed,))
        return url

    def _record(self, file: LocalFile, url: str, lost: Uploaded | None) -> str:
        """The URL that counts: of two who upload the same at once, both take the first."""
        new = Uploaded(file.sha256, file.size, file.kind.content_type, url, self.clock())
        lost_url = None if lost is None else lost.url
        with self.db.transaction() as connection:
            kept = record_upload(connection, new, self._fresh_since(), lost_url=lost_url)
        return kept.url

    def _fresh_since(self) -> datetime:
        return self.clock() - FRESH_FOR


def _find_inputs(connection: Connection, options: JobOptions) -> Iterator[Mapping[str, object]]:
    """The inputs of the jobs that have this wish's key or id."""
    key, job_id = options.idempotency_key, options.job_id
    if key is not None and (job := table.find_job_by_key(connection, options.tenant, key)):
        yield job.input
    if job_id is not None and (job := table.find_job(connection, job_id)):
        yield job.input


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


@contextmanager
def scratch() -> Iterator[Callable[[], Path]]:
    """Names for files that are gone afterwards; without a call, nothing is made."""
    made: list[tempfile.TemporaryDirectory[str]] = []

    def make() -> Path:
        made.append(tempfile.TemporaryDirectory(prefix="extend-video-"))
        return Path(made[-1].name) / "file"

    try:
        yield make
    finally:
        for directory in made:
            directory.cleanup()
