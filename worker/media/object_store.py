"""An archive in an object store, by `obstore`.

It may be S3 or what speaks like it, Google Cloud Storage, Azure Blob Storage, or (for tests) the
memory of this process. Region, endpoint and credentials come from the environment of the process,
by the names that each cloud uses (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
`AWS_ALLOW_HTTP`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, ...), or from the metadata
service of its machine.

Every request has `CONNECT_TIME` and `REQUEST_TIME`, and is repeated at most `MOST_RETRIES` times
within `RETRY_TIME`: only after 5xx, 429 and a broken connection, with growing jittered pauses. What
then still fails is the caller's to postpone.

The first request starts threads that no fork survives: a process that forks must make none before.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, MemoryStore, ObjectStore, S3Store

from worker.ground.errors import StoreObjectMissingError, StoreUnavailableError
from worker.media.objects import ListedObject, StoredObject, check_name, is_name
from worker.media.refusals import describe_configuration, is_about_container, naming_refusal
from worker.media.spool import Spool, SpoolFile

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIME = timedelta(seconds=5)
REQUEST_TIME = timedelta(seconds=60)
RETRY_TIME = timedelta(seconds=90)
MOST_RETRIES = 3
FIRST_PAUSE = timedelta(milliseconds=200)
LONGEST_PAUSE = timedelta(seconds=5)

# A part is as small as S3 allows, unless the file needs more parts than it allows.
LEAST_PART_BYTES = 5 * 1024 * 1024
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4
READ_BYTES = 4 * 1024 * 1024
LIST_SIZE = 1000
MOST_CREATIONS = 3
MOST_PREFIX_BYTES = 100

UNWRITABLE = "the archive cannot be written"
UNREADABLE = "the archive cannot be read"
MEMORY = "memory"
CLOUDS = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """A Store whose objects lie in a bucket; `base` is the beginning of all their URIs.

    Each object has its content type, and in its metadata `sha256`.
    """

    base: str
    remote: ObjectStore
    spool: Spool

    def publish(self, file: SpoolFile, name: str, content_type: str) -> StoredObject:
        """Copy the file, in parts if it is large: `PARTS_AT_ONCE` of them are in memory.

        The object appears whole, with its last part. A killed process leaves parts that nobody
        sees, but pays for: the bucket should have a rule that removes unfinished uploads.
        """
        check_name(name)
        with naming_refusal(UNWRITABLE):
            _check_file(file)
            obstore.put(
                self.remote,
                name,
                file.path,
                attributes=_describe(content_type, file.sha256()),
                chunk_size=choose_part_size(file.bytes),
                max_concurrency=PARTS_AT_ONCE,
            )
        return StoredObject(self.base + name, file.sha256(), file.bytes)

    def create(self, name: str, body: bytes, content_type: str) -> bool:
        """By If-None-Match. False also for one's own object, if its answer was lost on the way."""
        for _ in range(MOST_CREATIONS):
            try:
                self._put(name, body, content_type, is_new=True)
            except AlreadyExistsError:
                # S3 says the same of a conflict with a deletion: then the name may be free.
                if self.stat(name) is not None:
                    return False
            else:
                return True
        raise StoreUnavailableError(f"{UNWRITABLE}: others write and delete the same name")

    def put(self, name: str, body: bytes, content_type: str) -> StoredObject:
        digest = self._put(name, body, content_type, is_new=False)
        return StoredObject(self.base + name, digest, len(body))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """By ranges, each a request of its own; a replacement meanwhile is noticed."""
        found = self._look_at(name)
        if found is None:
            raise StoreObjectMissingError(f"the archive has no {name}")
        end = found["size"] if stop is None else min(stop, found["size"])
        for at in range(start, end, READ_BYTES):
            yield self._read_range(found, at, min(at + READ_BYTES, end))

    def stat(self, name: str) -> ListedObject | None:
        found = self._look_at(name)
        return None if found is None else _list_one(found)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """What has a name that we could not have given is left out."""
        below = check_name(prefix) if prefix else None
        with naming_refusal(UNREADABLE):
            for found in obstore.list(self.remote, below, chunk_size=LIST_SIZE):
                yield from (_list_one(one) for one in found if is_name(one["path"]))

    def delete(self, name: str) -> bool:
        """Asks before whether the object is there, for S3 does not tell."""
        if self._look_at(name) is None:
            return False
        with naming_refusal(UNWRITABLE):
            try:
                obstore.delete(self.remote, name)
            except FileNotFoundError as error:
                if is_about_container(error):
                    raise
                return False
        return True

    def find_uri(self, name: str) -> str:
        return f"{self.base}{check_name(name)}"

    def find_name(self, uri: str) -> str | None:
        name = uri.removeprefix(self.base)
        return name if name != uri and is_name(name) else None

    def _put(self, name: str, body: bytes, content_type: str, *, is_new: bool) -> str:
        digest = hashlib.sha256(body).hexdigest()
        with naming_refusal(UNWRITABLE):
            obstore.put(
                self.remote,
                check_name(name),
                body,
                attributes=_describe(content_type, digest),
                mode="create" if is_new else "overwrite",
                use_multipart=False,
            )
        return digest

    def _look_at(self, name: str) -> "ObjectMeta | None":
        with naming_refusal(UNREADABLE):
            try:
                return obstore.head(self.remote, check_name(name))
            except FileNotFoundError:
                self._check_container(name)
        return None

    def _check_container(self, name: str) -> None:
        """The answer to HEAD has no body, which alone tells a missing bucket from an object."""
        try:
            obstore.get(self.remote, name, options={"range": (0, 1)})
        except FileNotFoundError as error:
            if is_about_container(error):
                raise

    def _read_range(self, found: "ObjectMeta", start: int, end: int) -> bytes:
        with naming_refusal(UNREADABLE):
            try:
                options: GetOptions = {"range": (start, end), "if_match": found["e_tag"]}
                return obstore.get(self.remote, found["path"], options=options).bytes().to_bytes()
            except FileNotFoundError as error:
                if is_about_container(error):
                    raise
                raise StoreObjectMissingError(f"the archive has no {found['path']}") from None
            except PreconditionError:
                reason = f"{found['path']} was replaced while it was read"
                raise StoreUnavailableError(reason) from None


def open_remote_store(url: str, spool: Spool) -> RemoteStore:
    """The store in `s3://bucket/prefix`, `gs://`, `az://` or `memory:`; nobody is asked yet.

    Raises ValueError with the reason.
    """
    parts = urlsplit(url)
    if parts.scheme == MEMORY:
        if url.rstrip("/").lower() != f"{MEMORY}:":
            raise ValueError("memory: has no place in it")
        return RemoteStore(f"{MEMORY}:///", MemoryStore(), spool)
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError("neither user nor port: both come from the environment")
    if not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"a bucket must be named: {parts.scheme}://bucket/prefix")
    if parts.query or parts.fragment:
        raise ValueError(f"an {parts.scheme}: URL has neither query nor fragment")
    prefix = _check_prefix(parts.path.strip("/"))
    base = f"{parts.scheme}://{parts.netloc}/" + (f"{prefix}/" if prefix else "")
    return RemoteStore(base, _connect(parts.scheme, parts.netloc, prefix), spool)


def choose_part_size(size: int) -> int:
    return max(LEAST_PART_BYTES, -(-size // MOST_PARTS))


def _check_file(file: SpoolFile) -> None:
    size = file.path.stat().st_size
    if size != file.bytes:
        raise StoreUnavailableError(f"the spool's file has {size} bytes, {file.bytes} were written")


def _check_prefix(prefix: str) -> str:
    if prefix and not is_name(prefix):
        raise ValueError("the prefix has an empty part, or one that begins with a dot")
    if len(prefix.encode()) > MOST_PREFIX_BYTES:
        raise ValueError(f"the prefix is longer than {MOST_PREFIX_BYTES} bytes")
    return prefix


def _connect(scheme: str, bucket: str, prefix: str) -> ObjectStore:
    variables = VARIABLES[scheme]
    try:
        remote: ObjectStore = CLOUDS[scheme](
            bucket,
            prefix=prefix or None,
            client_options=_build_client_options(variables),
            retry_config=_build_retries(),
        )
    except (BaseError, ValueError, OSError) as error:
        raise ValueError(describe_configuration(error, variables)) from None
    return remote


def _build_client_options(variables: str) -> "ClientConfig":
    allow_http = os.environ.get(f"{variables}ALLOW_HTTP", "").lower() in {"1", "true", "yes", "on"}
    return {
        "connect_timeout": CONNECT_TIME,
        "timeout": REQUEST_TIME,
        "allow_http": allow_http,
        "user_agent": "extend-video",
    }


def _build_retries() -> "RetryConfig":
    return {
        "max_retries": MOST_RETRIES,
        "retry_timeout": RETRY_TIME,
        "backoff": {"init_backoff": FIRST_PAUSE, "max_backoff": LONGEST_PAUSE, "base": 2},
    }


def _describe(content_type: str, sha256: str) -> "Attributes":
    return {"Content-Type": content_type, "sha256": sha256}


def _list_one(found: "ObjectMeta") -> ListedObject:
    return ListedObject(found["path"], found["size"], found["last_modified"])
