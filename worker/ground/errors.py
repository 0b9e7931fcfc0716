"""The error tree: everything this project raises on purpose.

Each class has a stable `code`, which is what is stored in `jobs.error_code`, logged and answered.
docs/errors.md is made of the docstrings here: what the code means, and after a blank line what an
operator can do.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with one field: what it was given and what is allowed."""

    field: str
    value: str
    allowed: str

    @override
    def __str__(self) -> str:
        return f"{self.field}={self.value}: {self.allowed}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One odd or wrong thing about a result or its file, as `jobs.archive_warnings` lists them.

    `code` is stable, and `message` stands alone. `field` is a path in fal's result.
    """

    code: str
    message: str
    field: str | None = None
    stated: str | None = None
    found: str | None = None

    @override
    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, str]:
        """Without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class ExtendVideoError(Exception):
    """Root of the tree; never raised itself."""

    code: ClassVar[str]


class RetryableError(ExtendVideoError):
    """The same step may be tried again later."""


class PermanentError(ExtendVideoError):
    """Trying again changes nothing."""


class ViolationsError(PermanentError):
    """Refused input with every reason at once."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations


# ------------------------------------------------------------------ what may be tried again


class KeysUnavailableError(RetryableError):
    """fal's signing keys cannot be read.

    Check the network to `FAL_JWKS_URL`.
    """

    code = "keys_unavailable"


class MediaUnavailableError(RetryableError):
    """The download of a video broke off; it is retried.

    Nothing, unless it persists.
    """

    code = "media_unavailable"


class MediaMismatchError(RetryableError):
    """The downloaded file is no video, or damaged; it is fetched again.

    Nothing: the message lists the evidence.
    """

    code = "media_mismatch"

    def __init__(self, evidence: tuple[Finding, ...]) -> None:
        super().__init__("; ".join(map(str, evidence)))
        self.evidence = evidence


class BillingUnavailableError(RetryableError):
    """fal's platform does not answer with a price or with bills.

    It is asked again by itself; until then charges are estimates.
    """

    code = "billing_unavailable"


class StoreUnavailableError(RetryableError):
    """The archive cannot be written or read; it is retried.

    The message says why: disk space, permissions, credentials, bucket.
    """

    code = "store_unavailable"


class UploadUnavailableError(RetryableError):
    """A file could not be uploaded now; nothing was written. An enqueue message is retried.

    Check the network to `FAL_REST_URL`; if the account is refused, its key and balance.
    """

    code = "upload_unavailable"


class MigrationBlockedError(RetryableError):
    """`extend-video migrate` did not get a lock; the step was rolled back.

    Another migration runs, or a transaction holds a table: end the one that the message names, and
    run it again.
    """

    code = "migration_blocked"


# ------------------------------------------------------------------ what is refused for good


class InvalidSettingsError(ViolationsError):
    """A variable is missing or out of bounds.

    The message names each one and what is allowed ([configuration](configuration.md)).
    """

    code = "invalid_settings"


class InvalidInputError(ViolationsError):
    """A job request was refused; no job was written.

    The message lists every wrong field; `extend-video refused` lists requests that were messages.
    """

    code = "invalid_input"


class IdempotencyConflictError(PermanentError):
    """The idempotency key or job id belongs to a job with another input.

    Choose another key.
    """

    code = "idempotency_conflict"


class JobNotFoundError(PermanentError):
    """No job has this id.

    Check the id; a pruned job is gone.
    """

    code = "job_not_found"


class InvalidSignatureError(PermanentError):
    """The signature of a delivery is missing or wrong; it was refused.

    If all are refused: check `FAL_USER_ID`, the clock, and proxies that rewrite bodies.
    """

    code = "invalid_signature"


class InvalidDeliveryError(PermanentError):
    """A genuine delivery does not have the documented shape.

    Keep the log line and report it.
    """

    code = "invalid_delivery"


class TooLateError(PermanentError):
    """The job is past that point: a result cannot be cancelled, nor a live job be redriven.

    See `extend-video show ID`.
    """

    code = "too_late"


class PaysAgainError(PermanentError):
    """The redrive would cost money again.

    Add `--pay-again` if that is intended.
    """

    code = "pays_again"


class ClaimLostError(PermanentError):
    """Another worker has taken the job over.

    Nothing; a longer `LEASE_SECONDS` if it is frequent.
    """

    code = "claim_lost"


class InvalidResultError(PermanentError):
    """fal's output has no `video.url`; nothing else in it matters.

    See `jobs.result`.
    """

    code = "invalid_result"


class MediaRefusedError(PermanentError):
    """The input is no readable video, or the result's URL may not be downloaded from.

    Its host is not among `FAL_MEDIA_HOSTS` or not public, or the video exceeds `MAX_VIDEO_BYTES`.
    """

    code = "media_refused"


class MediaBoundError(MediaRefusedError):
    """A file takes more to decode than allowed; that says nothing of whether it is whole.

    An input is refused, a paid video archived undecoded with a warning; raise `MEDIA_MEMORY_BYTES`
    if such files are usual.
    """

    code = "media_bound"


class MediaGoneError(PermanentError):
    """The media host no longer has the video, or refuses it (403, 404, 410): its URL has expired.

    Run `redrive` soon, which asks fal for the result again.
    """

    code = "media_gone"


class UnarchivableError(PermanentError):
    """The video was fetched again and is still none, or provably damaged; it is in quarantine.

    Compare the message with the file in quarantine; `redrive` fetches once more; buy a new run only
    if fal's own file is broken.
    """

    code = "unarchivable"

    def __init__(self, evidence: tuple[Finding, ...], quarantine_uri: str) -> None:
        """`evidence` as the last file gave it."""
        shown = "; ".join(map(str, evidence))
        super().__init__(f"no video that can be read: {shown}; its bytes are {quarantine_uri}")
        self.evidence = evidence
        self.quarantine_uri = quarantine_uri


class NameTakenError(PermanentError):
    """The video's name in the archive belongs to another job or a foreign file; it is kept.

    The message names it: move it away or set another `ARCHIVE_LAYOUT`, then `redrive`.
    """

    code = "name_taken"


class InvalidSidecarError(ViolationsError):
    """A sidecar cannot be read or replayed; nothing was written.

    The message names each wrong field.
    """

    code = "invalid_recipe"


class SchemaUnreadableError(PermanentError):
    """`extend-video schema` found no OpenAPI document of the endpoint.

    The message says where it searched.
    """

    code = "schema_unreadable"


class StoreObjectMissingError(PermanentError):
    """The archive has no object of this name.

    Restore it, or run `extend-video rearchive` while fal still has the video.
    """

    code = "object_missing"


class UploadRefusedError(PermanentError):
    """fal refuses the file, or it changed while it was uploaded; nothing was written.

    The message says why; enqueue again.
    """

    code = "upload_refused"


class BillingRefusedError(PermanentError):
    """The key may not read fal's billing events.

    Set `FAL_ADMIN_KEY` to a key of the account with the scope ADMIN.
    """

    code = "billing_refused"


class ForeignArchiveError(PermanentError):
    """The archive is another host's, or its volume is not mounted: `.archive-id` differs.

    Mount the one archive on all hosts; if it is the right one (copied without hidden files), write
    the id from the message into that file. Until then `verify`, `rearchive` and `prune` refuse.
    """

    code = "foreign_archive"


class OutdatedSchemaError(PermanentError):
    """The job table is missing, or older or newer than the code.

    Run `extend-video migrate`.
    """

    code = "outdated_schema"


class UnsuitableDatabaseError(PermanentError):
    """The database's encoding is not UTF8, so some results could never be recorded.

    Create one with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`, move the rows there
    (`pg_dump`) and set `DATABASE_URL`.
    """

    code = "unsuitable_database"


class MissingProgramError(PermanentError):
    """A program that the demo needs is not installed.

    The message names it.
    """

    code = "missing_program"


class WorkersLostError(PermanentError):
    """A message ended three workers, one after the other; it is refused.

    See `extend-video refused`, and find out why they ended (memory?).
    """

    code = "workers_lost"


class DaemonError(PermanentError):
    """A daemon crashed repeatedly under `up`; or one runs that `restore` needs stopped.

    The message has its last log lines, or its name.
    """

    code = "daemon_failed"
