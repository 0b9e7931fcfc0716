"""The sidecar beside each video: what it was made of, and enough to make it again.

JSON in UTF-8 with sorted keys and two spaces of indent, so that the same job gives the same
bytes. `recipe` is the version; a new field does not change it, an older reader passes it over.

URLs stand as they were sent, with their query: a signed link is part of the input, and without it
the input cannot be made again. So a reader of a sidecar may fetch what its links allow, for as long
as they hold. Of our own there is no secret in it, neither a key nor a webhook's token. Instead
of a data URI stands a marker with the hash and length of its content.
"""

import json
from datetime import UTC
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
)

from worker.ground.errors import InvalidSidecarError, Violation
from worker.ground.validation import list_violations, show_value
from worker.media.facts import VideoFacts

VERSION = 1
VERSION_WORDS = f"{VERSION}, the version that this software reads"


def _say(allowed: str) -> Any:  # noqa: ANN401 - pydantic's own type of a field
    return Field(json_schema_extra={"allowed": allowed})


Time = Annotated[
    AwareDatetime,
    AfterValidator(lambda time: time.astimezone(UTC)),
    _say("a time with its offset, such as 2026-01-31T12:00:00Z"),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z"), _say("64 hexadecimal digits")]
Bytes = Annotated[int, Field(ge=0), _say("a number of bytes")]
JsonObject = Annotated[dict[str, JsonValue], _say("a JSON object")]
Texts = Annotated[dict[str, str], _say("an object of texts")]
Id = Annotated[UUID, _say("a UUID")]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, ser_json_timedelta="float"
    )


class FileRecord(_Part):
    """A file of the archive: its name there, its length, its hash."""

    name: str
    bytes: Bytes
    sha256: Sha256


class VideoRecord(FileRecord):
    media: Annotated[VideoFacts, _say("what decoding has shown of the video")] | None
    """None of a file that was not decoded."""


class AttemptRecord(_Part):
    """One paid submission, or one that may have been paid."""

    number: int
    started_at: Time
    ended_at: Time | None = None
    outcome: str | None = None
    ending: str | None = None
    request_id: str | None = None
    extra_charge_at: Time | None = None


class Times(_Part):
    """The job's way up to its result. When it was archived stands in the job table."""

    enqueued_at: Time
    submitted_at: Time | None = None
    completed_at: Time | None = None


class Sidecar(_Part):
    """How a video came about. `input` and `options` are those of the request that made it."""

    recipe: Annotated[Literal[1], _say(VERSION_WORDS)]
    software: str
    job_id: Id
    tenant: str
    labels: Texts
    endpoint: str
    request_id: str | None
    input: JsonObject
    options: JsonObject
    result: JsonObject
    seed: int | None
    attempts: Annotated[tuple[AttemptRecord, ...], _say("a list of attempts, each with its number")]
    times: Times
    video: Annotated[VideoRecord, _say("the video's name, bytes, sha256 and media")]
    poster: FileRecord | None = None
    archive_warnings: Annotated[tuple[dict[str, str], ...], _say("a list of warnings")] = ()

    def to_bytes(self) -> bytes:
        """The sidecar's content; `parse_sidecar` gives the same sidecar again."""
        fields = self.model_dump(mode="json")
        text = json.dumps(fields, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        return f"{text}\n".encode()


def describe_file(name: str, content: bytes) -> FileRecord:
    return FileRecord(name=name, bytes=len(content), sha256=sha256(content).hexdigest())


def parse_sidecar(content: bytes) -> Sidecar:
    """Read a sidecar. Raises InvalidSidecarError, which names each wrong field and its reason.

    What is no sidecar is not quoted: anybody's file may have been named.
    """
    try:
        fields = json.loads(content, parse_constant=int)  # which refuses NaN: it is no JSON
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        wrong = Violation("sidecar", f"{len(content)} bytes that are not", "a JSON object in UTF-8")
        raise InvalidSidecarError((wrong,))
    version = fields.get("recipe")
    if version != VERSION:
        # Of another version every other field may be wrong as well.
        shown = show_value(version) if isinstance(version, int) else "no number"
        raise InvalidSidecarError((Violation("recipe", shown, VERSION_WORDS),))
    try:
        return Sidecar.model_validate(fields)
    except ValidationError as error:
        raise InvalidSidecarError(list_violations(Sidecar, error)) from None
