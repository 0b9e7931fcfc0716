"""The options of a request besides the model's input: typed, and as HTTP headers.

An option that is not given is not sent, and fal decides (fal-api, section 2.3).
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    WithJsonSchema,
)

from worker.ground import validation as violations

MAX_START_TIMEOUT = timedelta(days=7)
# fal takes less. A result has to outlive webhook, poll and download: it is paid for.
MIN_EXPIRATION = timedelta(hours=1)
MAX_EXPIRATION = timedelta(days=3650)
MAX_TAGS = 10
MAX_TAGS_CHARACTERS = 1024
MAX_RULES = 32


class Priority(StrEnum):
    """Low waits for all that is normal; there is nothing above normal."""

    NORMAL = "normal"
    LOW = "low"


class Decision(StrEnum):
    """What fal's CDN answers to a request for a file: 200, 403 or 404."""

    ALLOW = "allow"
    FORBID = "forbid"
    HIDE = "hide"


def _read_seconds(least: timedelta, most: timedelta, *, whole: bool = False) -> BeforeValidator:
    def read(value: object) -> timedelta:
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A number that no duration holds is out of bounds as well.
            within = least.total_seconds() <= value <= most.total_seconds()
            value = timedelta(seconds=value) if within else None
        if not isinstance(value, timedelta) or not least <= value <= most:
            raise ValueError(value)
        if whole and value.microseconds:
            raise ValueError(value)
        return value

    return BeforeValidator(read)


def _write_seconds(value: timedelta) -> int | float:
    seconds = value.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


def _say(allowed: str) -> Any:  # noqa: ANN401 - pydantic's own type of a field
    return Field(json_schema_extra={"allowed": allowed})


def _say_seconds(noun: str, least: timedelta, most: timedelta) -> WithJsonSchema:
    words = f"{noun} of seconds from {_write_seconds(least)} to {_write_seconds(most)}"
    return WithJsonSchema({"type": "number", "allowed": words})


def join_tags(tags: Mapping[str, str]) -> str:
    """As fal reads them, and as the setting `FAL_TAGS` is written."""
    return ",".join(f"{name}={value}" for name, value in tags.items())


def split_tags(text: str) -> dict[str, str]:
    """The tags in `name=value,name=value`. Raises ValueError."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(mark for _, mark, _ in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(TAGS_WORDS)
    return {name: value for name, _, value in pairs}


def _check_tags(tags: dict[str, str]) -> dict[str, str]:
    if len(join_tags(tags)) > MAX_TAGS_CHARACTERS:
        raise ValueError(tags)
    if any(name.startswith("fal.") for name in tags):
        raise ValueError(tags)
    return tags


TAGS_WORDS = (
    f"at most {MAX_TAGS} tags, name=value, of at most {MAX_TAGS_CHARACTERS} characters together: "
    "names of 1 to 64 of a-z, 0-9 and . _ -, not beginning with fal. (it is reserved); values "
    "of 1 to 256 visible ASCII characters, inner spaces allowed, commas not"
)
_HINT_WORDS = "1 to 256 visible ASCII characters without spaces"
_RULES_WORDS = (
    f'at most {MAX_RULES} rules {{"user": 1 to 128 visible ASCII characters without spaces, '
    '"decision": allow, forbid or hide}'
)

Seconds = Annotated[
    timedelta,
    _read_seconds(timedelta(seconds=1), MAX_START_TIMEOUT),
    PlainSerializer(_write_seconds),
    _say_seconds("a number", timedelta(seconds=1), MAX_START_TIMEOUT),
]
Expiration = Annotated[
    timedelta,
    _read_seconds(MIN_EXPIRATION, MAX_EXPIRATION, whole=True),
    PlainSerializer(_write_seconds),
    _say_seconds("a whole number", MIN_EXPIRATION, MAX_EXPIRATION),
]
TagName = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}\z")]
TagValue = Annotated[str, Field(pattern=r"^[!-+\--~]([ -+\--~]{0,254}[!-+\--~])?\z")]
Tags = Annotated[
    dict[TagName, TagValue],
    Field(max_length=MAX_TAGS),
    AfterValidator(_check_tags),
    _say(TAGS_WORDS),
]
Hint = Annotated[str, Field(pattern=r"^[!-~]{1,256}\z"), _say(_HINT_WORDS)]


class AclRule(BaseModel):
    """What one fal user gets to see, regardless of the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: Annotated[str, Field(pattern=r"^[!-~]{1,128}\z")]
    decision: Annotated[Decision, Field(strict=False)]


class InitialAcl(BaseModel):
    """Who may read the files that the request makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    default: Annotated[Decision, Field(strict=False)] = Decision.ALLOW
    rules: Annotated[
        tuple[AclRule, ...], Field(strict=False, max_length=MAX_RULES), _say(_RULES_WORDS)
    ] = ()


class RequestOptions(BaseModel):
    """What may be said about one request. Build it by `parse_options`, or by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    priority: Annotated[Priority | None, Field(strict=False)] = Field(
        None, description="Low lets all normal requests of the endpoint go first."
    )
    start_timeout: Seconds | None = Field(
        None,
        description="How long the request may wait for its start, with fal's retries, or fail.",
    )
    object_expiration: Expiration | None = Field(
        None, description="When fal deletes the files that the request makes; given as null: never."
    )
    initial_acl: InitialAcl | None = Field(None, description="Who may read these files.")
    tags: Tags | None = Field(
        None, description="Labels by which fal's dashboard distinguishes requests."
    )
    no_retry: bool | None = Field(
        None,
        description="Have fal not start the request again on another runner when one dies.",
    )
    disable_fallback: bool | None = Field(
        None,
        description="Have fal not turn to an equivalent model when this one cannot be started.",
    )
    store_io: bool | None = Field(
        None, description="Have fal keep input and output JSON for 30 days."
    )
    runner_hint: Hint | None = Field(
        None, description="Requests with the same hint go to the same runner, if fal can."
    )

    def to_json(self) -> dict[str, JsonValue]:
        """The options that were given, and no others: what is stored."""
        return self.model_dump(mode="json", exclude_unset=True)

    def fill_in(self, defaults: "RequestOptions") -> "RequestOptions":
        """These options, and the defaults where nothing was given."""
        return RequestOptions.model_validate(defaults.to_json() | self.to_json())

    def to_headers(self) -> dict[str, str]:
        """As fal reads them; both names where its pages and clients disagree about one."""
        headers: dict[str, str] = {}
        if self.priority is not None:
            headers["X-Fal-Queue-Priority"] = self.priority.value
        if self.start_timeout is not None:
            seconds = str(_write_seconds(self.start_timeout))
            # The second name is the older one; fal lets the first win.
            headers["X-Fal-Request-Start-Timeout"] = seconds
            headers["X-Fal-Request-Timeout"] = seconds
        if self.no_retry:
            headers["X-Fal-No-Retry"] = "1"
        if self.disable_fallback:
            headers["x-app-fal-disable-fallback"] = "true"
            headers["x-fal-disable-fallbacks"] = "true"
        if self.store_io is not None:
            headers["X-Fal-Store-IO"] = "1" if self.store_io else "0"
        if self.runner_hint is not None:
            headers["X-Fal-Runner-Hint"] = self.runner_hint
        if self.tags:
            headers["X-Fal-Tags"] = join_tags(self.tags)
        if lifecycle := self._build_lifecycle():
            headers["X-Fal-Object-Lifecycle-Preference"] = json.dumps(lifecycle)
        return headers

    def _build_lifecycle(self) -> dict[str, JsonValue]:
        lifecycle: dict[str, JsonValue] = {}
        if "object_expiration" in self.model_fields_set:
            expiration = self.object_expiration
            seconds = None if expiration is None else _write_seconds(expiration)
            lifecycle["expiration_duration_seconds"] = seconds
        if self.initial_acl is not None:
            lifecycle["initial_acl"] = self.initial_acl.model_dump(mode="json")
        return lifecycle


def needs_signing(options: RequestOptions) -> bool:
    """Whether the files of a request with these options are read by a signed URL only."""
    return options.initial_acl is not None and options.initial_acl.default is not Decision.ALLOW


def parse_options(fields: object) -> RequestOptions:
    """The options by name. Raises InvalidInputError with every violation at once."""
    return violations.validate_fields(RequestOptions, fields)


def parse_option(name: str, text: str) -> object:
    """Turn the text of `--fal-option name=text` into a JSON value of the option's type.

    Tags are `name=value,name=value` or a JSON object, an ACL is a JSON object or its default.
    What is wrong with it is left to `parse_options`.
    """
    if name == "tags" and not text.startswith("{"):
        try:
            return split_tags(text)
        except ValueError:
            return text
    if name == "initial_acl" and not text.startswith("{"):
        return {"default": text}
    return violations.parse_text(RequestOptions, name, text)
