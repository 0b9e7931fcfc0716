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

from worker.ground import validation

# fal takes less. A result has to outlive webhook, poll and download: it is paid for.
MIN_EXPIRATION = timedelta(hours=1)
MAX_TAGS = 10
MAX_TAGS_CHARACTERS = 1024
MAX_RULES = 32
TAGS_WORDS = (
    f"at most {MAX_TAGS} tags, name=value, of at most {MAX_TAGS_CHARACTERS} characters together: "
    "names of 1 to 64 of a-z, 0-9 and . _ -, not beginning with fal. (it is reserved); values "
    "of 1 to 256 visible ASCII characters, inner spaces allowed, commas not"
)
HINT_WORDS = "1 to 256 visible ASCII characters without spaces"
RULES_WORDS = (
    f'at most {MAX_RULES} rules {{"user": 1 to 128 visible ASCII characters without spaces, '
    '"decision": allow, forbid or hide}'
)


class Priority(StrEnum):
    """Low waits for all that is normal; there is nothing above normal."""

    NORMAL = "normal"
    LOW = "low"


class Decision(StrEnum):
    """What fal's CDN answers to a request for a file: 200, 403 or 404."""

    ALLOW = "allow"
    FORBID = "forbid"
    HIDE = "hide"


def _read_seconds(least: float, most: float, *, whole: bool = False) -> BeforeValidator:
    def read(value: object) -> timedelta:
        seconds: Any = value.total_seconds() if isinstance(value, timedelta) else value
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not least <= seconds <= most or (whole and seconds % 1):
            raise ValueError(value)
        return timedelta(seconds=seconds)

    return BeforeValidator(read)


def _write_seconds(value: timedelta) -> int | float:
    seconds = value.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


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
    is_long = len(join_tags(tags)) > MAX_TAGS_CHARACTERS
    if is_long or any(name.startswith("fal.") for name in tags):
        raise ValueError(tags)
    return tags


Seconds = Annotated[
    timedelta,
    _read_seconds(1, 604_800),
    PlainSerializer(_write_seconds),
    WithJsonSchema({"type": "number", "allowed": "a number of seconds from 1 to 604800"}),
]
Expiration = Annotated[
    timedelta,
    _read_seconds(MIN_EXPIRATION.total_seconds(), 315_360_000, whole=True),
    PlainSerializer(_write_seconds),
    WithJsonSchema(
        {"type": "number", "allowed": "a whole number of seconds from 3600 to 315360000"}
    ),
]
TagName = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}\z")]
TagValue = Annotated[str, Field(pattern=r"^[!-+\--~]([ -+\--~]{0,254}[!-+\--~])?\z")]
Tags = Annotated[
    dict[TagName, TagValue],
    Field(max_length=MAX_TAGS, json_schema_extra={"allowed": TAGS_WORDS}),
    AfterValidator(_check_tags),
]
Hint = Annotated[str, Field(pattern=r"^[!-~]{1,256}\z", json_schema_extra={"allowed": HINT_WORDS})]


class AclRule(BaseModel):
    """What one fal user gets to see, regardless of the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: Annotated[str, Field(pattern=r"^[!-~]{1,128}\z")]
    decision: Annotated[Decision, Field(strict=False)]


Rules = Annotated[
    tuple[AclRule, ...],
    Field(strict=False, max_length=MAX_RULES, json_schema_extra={"allowed": RULES_WORDS}),
]


class InitialAcl(BaseModel):
    """Who may read the files that the request makes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    default: Annotated[Decision, Field(strict=False)] = Decision.ALLOW
    rules: Rules = ()


class RequestOptions(BaseModel):
    """What may be said about one request. Build it by `parse_options`, or by name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    priority: Annotated[Priority | None, Field(strict=False)] = None
    """Low lets all normal requests of the endpoint go first."""
    start_timeout: Seconds | None = None
    """How long the request may wait for its start, with fal's retries, or fail."""
    object_expiration: Expiration | None = None
    """When fal deletes the files that the request makes; given as null: never."""
    initial_acl: InitialAcl | None = None
    """Who may read these files."""
    tags: Tags | None = None
    """Labels by which fal's dashboard distinguishes requests."""
    no_retry: bool | None = None
    """Have fal not start the request again on another runner when one dies."""
    disable_fallback: bool | None = None
    """Have fal not turn to an equivalent model when this one cannot be started."""
    store_io: bool | None = None
    """Have fal keep input and output JSON for 30 days."""
    runner_hint: Hint | None = None
    """Requests with the same hint go to the same runner, if fal can."""

    def to_json(self) -> dict[str, JsonValue]:
        """The options that were given, and no others: what is stored."""
        return self.model_dump(mode="json", exclude_unset=True)

    def fill_in(self, defaults: "RequestOptions") -> "RequestOptions":
        """These options, and the defaults where nothing was given."""
        return RequestOptions.model_validate(defaults.to_json() | self.to_json())

    def to_headers(self) -> dict[str, str]:
        """As fal reads them; both names where its pages and clients disagree about one."""
        given = self.to_json()
        start_timeout = given.get("start_timeout")
        lifecycle = {}
        if "object_expiration" in given:
            lifecycle["expiration_duration_seconds"] = given["object_expiration"]
        if self.initial_acl is not None:
            lifecycle["initial_acl"] = self.initial_acl.model_dump(mode="json")
        headers = {
            "X-Fal-Queue-Priority": self.priority and self.priority.value,
            # The second name is the older one; fal lets the first win.
            "X-Fal-Request-Start-Timeout": start_timeout and str(start_timeout),
            "X-Fal-Request-Timeout": start_timeout and str(start_timeout),
            "X-Fal-No-Retry": "1" if self.no_retry else None,
            "x-app-fal-disable-fallback": "true" if self.disable_fallback else None,
            "x-fal-disable-fallbacks": "true" if self.disable_fallback else None,
            "X-Fal-Store-IO": None if self.store_io is None else str(int(self.store_io)),
            "X-Fal-Runner-Hint": self.runner_hint,
            "X-Fal-Tags": join_tags(self.tags or {}),
            "X-Fal-Object-Lifecycle-Preference": json.dumps(lifecycle) if lifecycle else None,
        }
        return {name: str(value) for name, value in headers.items() if value}


def needs_signing(options: RequestOptions) -> bool:
    """Whether the files of a request with these options are read by a signed URL only."""
    return options.initial_acl is not None and options.initial_acl.default is not Decision.ALLOW


def parse_options(fields: object) -> RequestOptions:
    """The options by name. Raises InvalidInputError with every violation at once."""
    return validation.validate_fields(RequestOptions, fields)


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
    return validation.parse_text(RequestOptions, name, text)
