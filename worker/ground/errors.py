"""The error tree: everything this project raises on purpose.

    ExtendVideoError
    ├── RetryableError                  the same step may be tried again later
    │   ├── KeysUnavailableError        keys_unavailable      fal's signing keys cannot be read
    │   ├── MediaUnavailableError       media_unavailable     a video cannot be downloaded now
    │   ├── MediaMismatchError          media_mismatch        what came is no video, or damaged
    │   ├── StoreUnavailableError       store_unavailable     the archive cannot be written now
    │   ├── SubmissionPostponedError    submission_postponed  (these and those marked with a star
    │   ├── RequestPendingError         request_pending       are of `FalClient`, and in
    │   ├── RequestUnclearError         request_unclear       fal/errors.py)
    │   ├── RunFailedError *            run_failed            also a RequestFailedError
    │   ├── MigrationBlockedError       migration_blocked     a migration did not get a lock
    │   └── UploadUnavailableError      upload_unavailable    a file cannot be uploaded now
    ├── SubmissionUnknownError *        submission_unknown    it may be paid: neither of the two
    ├── RequestFailedError *            request_failed        never raised itself
    └── PermanentError                  trying again changes nothing
        ├── InvalidSettingsError        invalid_settings
        ├── InvalidInputError           invalid_input
        ├── IdempotencyConflictError    idempotency_conflict
        ├── JobNotFoundError            job_not_found
        ├── InvalidSignatureError       invalid_signature
        │   └── StaleSignatureError     stale_signature       (in fal/webhooks.py)
        ├── InvalidDeliveryError        invalid_delivery
        ├── TooLateError                too_late              the job is past what was asked for
        ├── PaysAgainError              pays_again            it costs money nobody agreed to
        ├── ClaimLostError              claim_lost            another worker has taken the job over
        ├── InvalidResultError          invalid_result        fal's result names no video
        ├── ForeignArchiveError         foreign_archive       another host's or table's archive
        ├── MediaGoneError              media_gone            its host has the video no more
        ├── MediaRefusedError           media_refused         a URL we may not download from
        │   └── MediaBoundError         media_bound           a file that takes too much to decode
        ├── UnarchivableError           unarchivable          fetched again, still no whole video
        ├── NameTakenError              name_taken            its name in the archive is another's
        ├── InvalidRecipeError          invalid_recipe        a sidecar that cannot be replayed
        ├── SchemaUnreadableError       schema_unreadable     no OpenAPI document to compare with
        ├── StoreObjectMissingError     object_missing        the archive has no such object
        ├── UploadRefusedError          upload_refused        fal does not take a file
        ├── OutdatedSchemaError         outdated_schema
        ├── UnsuitableDatabaseError     unsuitable_database   it cannot store every text
        ├── MissingProgramError         missing_program
        ├── SubmissionRefusedError *    submission_refused
        ├── AccountRefusedError *       account_refused
        ├── RequestNotFoundError *      request_not_found
        ├── InputRefusedError *         input_refused         also a RequestFailedError
        ├── RequestCancelledError *     request_cancelled     also a RequestFailedError
        └── DaemonError                 daemon_failed

Each class has a stable `code`, which is what lands in `jobs.error_code`, in logs and in answers.
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


class KeysUnavailableError(RetryableError):
    code = "keys_unavailable"


class MediaUnavailableError(RetryableError):
    code = "media_unavailable"


class MediaMismatchError(RetryableError):
    """A downloaded file that is no video or a damaged one, with the proof."""

    code = "media_mismatch"

    def __init__(self, evidence: tuple[Finding, ...]) -> None:
        super().__init__("; ".join(map(str, evidence)))
        self.evidence = evidence


class StoreUnavailableError(RetryableError):
    code = "store_unavailable"


class UploadUnavailableError(RetryableError):
    code = "upload_unavailable"


class MigrationBlockedError(RetryableError):
    code = "migration_blocked"


class InvalidSettingsError(ViolationsError):
    code = "invalid_settings"


class InvalidInputError(ViolationsError):
    code = "invalid_input"


class IdempotencyConflictError(PermanentError):
    code = "idempotency_conflict"


class JobNotFoundError(PermanentError):
    code = "job_not_found"


class InvalidSignatureError(PermanentError):
    code = "invalid_signature"


class InvalidDeliveryError(PermanentError):
    code = "invalid_delivery"


class TooLateError(PermanentError):
    code = "too_late"


class PaysAgainError(PermanentError):
    code = "pays_again"


class ClaimLostError(PermanentError):
    code = "claim_lost"


class InvalidResultError(PermanentError):
    code = "invalid_result"


class MediaRefusedError(PermanentError):
    code = "media_refused"


class MediaBoundError(MediaRefusedError):
    """A file that takes more to decode than is allowed; says nothing of whether it is whole."""

    code = "media_bound"


class MediaGoneError(PermanentError):
    code = "media_gone"


class UnarchivableError(PermanentError):
    """Fetched again and still no whole video; `evidence` as the last file gave it."""

    code = "unarchivable"

    def __init__(self, evidence: tuple[Finding, ...], quarantine_uri: str) -> None:
        told = "; ".join(map(str, evidence))
        super().__init__(f"no video that can be read: {told}; its bytes are {quarantine_uri}")
        self.evidence = evidence
        self.quarantine_uri = quarantine_uri


class NameTakenError(PermanentError):
    code = "name_taken"


class InvalidRecipeError(ViolationsError):
    code = "invalid_recipe"


class SchemaUnreadableError(PermanentError):
    code = "schema_unreadable"


class StoreObjectMissingError(PermanentError):
    code = "object_missing"


class UploadRefusedError(PermanentError):
    code = "upload_refused"


class ForeignArchiveError(PermanentError):
    code = "foreign_archive"


class OutdatedSchemaError(PermanentError):
    code = "outdated_schema"


class UnsuitableDatabaseError(PermanentError):
    code = "unsuitable_database"


class MissingProgramError(PermanentError):
    code = "missing_program"


class DaemonError(PermanentError):
    code = "daemon_failed"
