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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, MemoryStore, ObjectStore, S3Store

from worker.ground.errors import StoreObjectMissingError, StoreUnavailableError
from worker.media.layout import ListedObject, StoredObject, check_name, is_name
from worker.media.spool import Spool, SpoolFile

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, ObjectMeta

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

# What is known by a store's error code or HTTP status; of an error without an answer, by what its
# message contains. The first that fits: the cause, and what to do about it.
CAUSES = {
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "ExpiredToken|TokenRefreshRequired": "the session token has expired; renew the credentials",
    "AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocation|HTTP 301": (
        "the bucket is in another region; set AWS_REGION"
    ),
    "InvalidAccessKeyId": "the access key is not known; check the credentials",
    "SignatureDoesNotMatch|AuthenticationFailed": "the secret key is wrong; check the credentials",
    "HTTP 401": "the credentials are refused",
    "HTTP 403": "the credentials do not allow it",
    "NoSuchBucket|ContainerNotFound|HTTP 404": "there is no such bucket",
    "HTTP 429|HTTP 503": "it limits the rate of requests, or is unavailable",
    "HTTP 507": "it is full",
    r"^HTTP 4": "it refuses the request",
    r"^HTTP \d": "it failed",
    "BadScheme": "its endpoint is plain http, which has to be allowed (AWS_ALLOW_HTTP=true)",
    r"169\.254\.169\.254|metadata\.google": "no credentials were found in the environment",
    "TimedOut|Timeout": "it did not answer in time",
    "dns error": "the name of its host is not known",
    "ConnectionReset|BrokenPipe": "the connection to it broke",
    "Connect": "no connection to it",
    "error sending request|error decoding response body": "the connection to it broke",
}
CONTAINER = "<Code>(NoSuchBucket|ContainerNotFound)</Code>"
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")


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
            size = file.path.stat().st_size
            if size != file.bytes:
                reason = f"the spool's file has {size} bytes, {file.bytes} were written"
                raise StoreUnavailableError(reason)
            obstore.put(
                self.remote,
                name,
                file.path,
                attributes={"Content-Type": content_type, "sha256": file.sha256()},
                chunk_size=choose_part_size(file.bytes),
                max_concurrency=PARTS_AT_ONCE,
            )
        return StoredObject(self.base + name, file.sha256(), file.bytes)

    def create(self, name: str, body: bytes, content_type: str) -> bool:
        """By If-None-Match. False also for one's own object, if its answer was lost on the way."""
        for _ in range(MOST_CREATIONS):
            try:
                self._put(name, body, content_type, "create")
            except AlreadyExistsError:
                # S3 says the same of a conflict with a deletion: then the name may be free.
                if self.stat(name) is not None:
                    return False
            else:
                return True
        raise StoreUnavailableError(f"{UNWRITABLE}: others write and delete the same name")

    def put(self, name: str, body: bytes, content_type: str) -> StoredObject:
        return self._put(name, body, content_type, "overwrite")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """By ranges, each a request of its own; a replacement meanwhile is noticed."""
        found = self._head(name)
        if found is None:
            raise StoreObjectMissingError(f"the archive has no {name}")
        end = found["size"] if stop is None else min(stop, found["size"])
        for at in range(start, end, READ_BYTES):
            options: GetOptions = {
                "range": (at, min(at + READ_BYTES, end)),
                "if_match": found["e_tag"],
            }
            try:
                with naming_refusal(UNREADABLE, name):
                    content = obstore.get(self.remote, name, options=options).bytes().to_bytes()
            except PreconditionError:
                raise StoreUnavailableError(f"{name} was replaced while it was read") from None
            yield content

    def stat(self, name: str) -> ListedObject | None:
        found = self._head(name)
        return None if found is None else _list_one(found)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """What has a name that we could not have given is left out."""
        below = check_name(prefix) if prefix else None
        with naming_refusal(UNREADABLE):
            for found in obstore.list(self.remote, below, chunk_size=LIST_SIZE):
                yield from (_list_one(one) for one in found if is_name(one["path"]))

    def delete(self, name: str) -> bool:
        """Checks first whether the object is there, for S3 does not say."""
        if self._head(name) is None:
            return False
        try:
            with naming_refusal(UNWRITABLE, name):
                obstore.delete(self.remote, name)
        except StoreObjectMissingError:
            return False
        return True

    def find_uri(self, name: str) -> str:
        return f"{self.base}{check_name(name)}"

    def find_name(self, uri: str) -> str | None:
        name = uri.removeprefix(self.base)
        return name if name != uri and is_name(name) else None

    def _put(
        self, name: str, body: bytes, content_type: str, mode: Literal["create", "overwrite"]
    ) -> StoredObject:
        digest = hashlib.sha256(body).hexdigest()
        attributes: Attributes = {"Content-Type": content_type, "sha256": digest}
        with naming_refusal(UNWRITABLE):
            obstore.put(
                self.remote,
                check_name(name),
                body,
                attributes=attributes,
                mode=mode,
                use_multipart=False,
            )
        return StoredObject(self.base + name, digest, len(body))

    def _head(self, name: str) -> "ObjectMeta | None":
        try:
            with naming_refusal(UNREADABLE, check_name(name)):
                try:
                    return obstore.head(self.remote, name)
                except FileNotFoundError:
                    # HEAD has no body, which alone distinguishes a missing bucket from an object.
                    obstore.get(self.remote, name, options={"range": (0, 1)})
        except StoreObjectMissingError:
            pass
        return None


def open_remote_store(url: str, spool: Spool) -> RemoteStore:
    """The store in `s3://bucket/prefix`, `gs://`, `az://` or `memory:`; nothing is sent yet.

    Raises ValueError with the reason.
    """
    parts = urlsplit(url)
    if parts.scheme == MEMORY:
        if url.rstrip("/").lower() != f"{MEMORY}:":
            raise ValueError("memory: has no place in it")
        return RemoteStore(f"{MEMORY}:///", MemoryStore(), spool)
    prefix = parts.path.strip("/")
    is_name_wrong = prefix and (not is_name(prefix) or len(prefix.encode()) > MOST_PREFIX_BYTES)
    if not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment or is_name_wrong:
        raise ValueError(
            f"must be {parts.scheme}://bucket/prefix without user, port, query and fragment; the "
            f"prefix has at most {MOST_PREFIX_BYTES} bytes, no part of it begins with a dot"
        )
    variables = VARIABLES[parts.scheme]
    allow_http = os.environ.get(f"{variables}ALLOW_HTTP", "").lower() in {"1", "true", "yes", "on"}
    try:
        remote: ObjectStore = CLOUDS[parts.scheme](
            parts.netloc,
            prefix=prefix or None,
            client_options={
                "connect_timeout": CONNECT_TIME,
                "timeout": REQUEST_TIME,
                "allow_http": allow_http,
                "user_agent": "extend-video",
            },
            retry_config={
                "max_retries": MOST_RETRIES,
                "retry_timeout": RETRY_TIME,
                "backoff": {"init_backoff": FIRST_PAUSE, "max_backoff": LONGEST_PAUSE, "base": 2},
            },
        )
    except (BaseError, ValueError, OSError) as error:
        text = str(error).partition("\n")[0]
        for name, value in os.environ.items():
            if name.startswith(tuple(VARIABLES.values())) and len(value) > 1:
                text = text.replace(value, f"${name}")
        reason = f"the environment variables {variables}... do not make a store: {text}"
        raise ValueError(reason) from None
    base = f"{parts.scheme}://{parts.netloc}/" + (f"{prefix}/" if prefix else "")
    return RemoteStore(base, remote, spool)


def choose_part_size(size: int) -> int:
    return max(LEAST_PART_BYTES, -(-size // MOST_PARTS))


def _list_one(found: "ObjectMeta") -> ListedObject:
    return ListedObject(found["path"], found["size"], found["last_modified"])


@contextmanager
def naming_refusal(trouble: str, name: str | None = None) -> Iterator[None]:
    """Turn what `obstore` raises into a StoreUnavailableError: the trouble and its reason.

    AlreadyExistsError and PreconditionError pass: they are answers. With a name, so is that there
    is no such object: StoreObjectMissingError.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, OSError) as error:
        # Not chained: the message may hold signed URLs.
        is_missing = isinstance(error, FileNotFoundError) and not re.search(CONTAINER, str(error))
        if name is not None and is_missing:
            raise StoreObjectMissingError(f"the archive has no {name}") from None
        raise StoreUnavailableError(f"{trouble}: {describe_refusal(error)}") from None


def describe_refusal(error: Exception) -> str:
    """Why, with the HTTP status and the store's own code in brackets where it answered.

    Nothing else of the message is shown: `obstore` puts the whole exchange into it.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__  # of the spool's file on local disk
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    said = [f"HTTP {status[1]}" if status else "", code[1] if code else ""]
    answer = ", ".join(filter(None, said))
    causes = (cause for mark, cause in CAUSES.items() if re.search(mark, answer or text))
    cause = next(causes, type(error).__name__)
    return f"{cause} ({answer})" if answer else cause
