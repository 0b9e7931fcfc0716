"""Settings from the environment or `.env`: one frozen value, read once, checked at start.

`NAME_FILE` names a file that holds the value of the setting `NAME`, as the secrets of Docker,
Kubernetes and systemd do. The names are fixed by the contract with operators;
docs/configuration.md is generated from this class.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_serializer,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from worker.ground.errors import InvalidSettingsError, Violation
from worker.ground.log import MASK, mask_url
from worker.ground.money import parse_usd
from worker.ground.network import read_network

MAX_SECONDS = 7 * 24 * 3600
DEFAULT_LAYOUT = "{yyyy}/{mm}/{dd}/{job_id}.{ext}"


class UnknownPolicy(StrEnum):
    """What follows once an unknown submission is confirmed as not accepted."""

    RESUBMIT = "resubmit"
    HOLD = "hold"


# ------------------------------------------------------------------ types: errors say "must be ..."


def read_usd(value: object) -> object:
    """An amount as text, as nano-USD."""
    if not isinstance(value, str):
        return value
    return parse_usd(value)


def matching(pattern: str, allowed: str) -> AfterValidator:
    """Text, or a secret, of this form; of another one the error says what is allowed."""

    def check(value: Any) -> Any:  # noqa: ANN401 - text or a secret
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not re.fullmatch(pattern, text):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def read_seconds(value: object) -> timedelta:
    """Seconds as text or number; nothing else, so that `1h` is refused instead of guessed."""
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(str(value))
    except ValueError:
        seconds = float("nan")
    if not 1 <= seconds <= MAX_SECONDS:
        raise ValueError(f"a number of seconds from 1 to {MAX_SECONDS}")
    return timedelta(seconds=seconds)


def check_database_url(value: str) -> str:
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        url = make_url("none://")
    if url.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise ValueError("sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    if url.drivername == "postgresql+psycopg" and url.query:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo

        try:
            make_conninfo(**dict.fromkeys(url.query, ""))
        except ProgrammingError as error:
            raise ValueError(
                f"a URL that libpq understands ({str(error).strip()}); settings of the server go "
                "into options=, such as options=-csearch_path%3DNAME"
            ) from None
    return value


Seconds = Annotated[timedelta, BeforeValidator(read_seconds)]
Usd = Annotated[int, BeforeValidator(read_usd)]
"""Integer nano-USD, written as dollars."""
# Stricter than pydantic's own type, which takes a user, a query and a fragment, too.
HTTP_URL = matching(
    r"https?://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:([0-5]?[0-9]{1,4}|6[0-5][0-9]{3}))?(/[^\s?#]*)?",
    "an http:// or https:// URL without user, query and fragment",
)
HttpUrl = Annotated[str, HTTP_URL, AfterValidator(lambda url: url.rstrip("/"))]
Key = Annotated[SecretStr, matching(r"[!-~]+", "visible ASCII characters without spaces")]
# A secret that opens a page on the internet has to be hard to guess.
PageToken = Annotated[SecretStr, matching(r"[!-~]{16,}", "at least 16 visible ASCII characters")]
# Each as long as the digest that it is the key of.
TokenSecrets = Annotated[
    SecretStr,
    matching(
        r"[!-+\--~]{32,}(,[!-+\--~]{32,})*",
        "a comma list of secrets of at least 32 characters each",
    ),
]
PasswordHash = Annotated[
    SecretStr, matching(r"(scrypt|pbkdf2):\S+\$\S+\$[0-9a-f]+", "a password hash of werkzeug's")
]
BROKER_URL = matching(
    r"((rediss?|amqps?|sentinel)://|redis\+socket://).*",
    "a redis://, rediss://, sentinel:// or amqp:// URL",
)
# A variant such as `/lora` too; no other model takes these fields.
ENDPOINT = matching(
    r"(\w[\w.-]*/){2,}extend-video(/\w[\w.-]*)?",
    "an extend-video endpoint such as owner/app/extend-video",
)


class Settings(BaseSettings):
    """Every setting, with its unit, bounds and meaning."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    database_url: Annotated[str, AfterValidator(check_database_url)] = Field(
        "sqlite:///extend-video.db", repr=False
    )
    """SQLAlchemy URL of the job table: `sqlite:///FILE`, or in production
    `postgresql+psycopg://USER:PASSWORD@HOST/NAME`."""
    broker_url: Annotated[str, BROKER_URL] = Field("redis://127.0.0.1:6379/0", repr=False)
    """Celery broker (Redis, Valkey or RabbitMQ): `redis://`, `rediss://`, `redis+socket://`,
    `sentinel://`, `amqp://`, `amqps://`."""
    fal_key: Key | None = None
    """fal key; required by the worker."""
    fal_key_id: Key | None = None
    """With `FAL_KEY_SECRET`, replaces `FAL_KEY`: the part before the colon."""
    fal_key_secret: Key | None = None
    """With `FAL_KEY_ID`, replaces `FAL_KEY`: the part after the colon."""
    fal_admin_key: Key | None = None
    """Key with the scope ADMIN, for fal's billing events; without it `FAL_KEY` is tried.
    `extend-video costs --reconcile` needs it."""
    fal_endpoint: Annotated[str, ENDPOINT] = "fal-ai/ltx-2.3-22b/extend-video"
    """Model endpoint: `owner/app/extend-video`, or a variant below it."""
    fal_queue_url: HttpUrl = "https://queue.fal.run"
    """Base URL of the queue API."""
    fal_rest_url: HttpUrl = "https://rest.fal.ai"
    """Base URL of the storage API, which signs upload URLs. These must be https at a public
    address of fal, or at a host of this setting, `FAL_CDN_URL` or `FAL_MEDIA_HOSTS`."""
    fal_cdn_url: HttpUrl = "https://v3.fal.media"
    """Base URL for CDN uploads, used if the storage API signs no upload URLs."""
    fal_platform_url: HttpUrl = "https://api.fal.ai/v1"
    """Base URL of the platform API: request listing, price, billing events, and the model's
    OpenAPI document."""
    fal_jwks_url: HttpUrl = "https://rest.fal.ai/.well-known/jwks.json"
    """URL of the keys that webhooks are signed with."""
    fal_user_id: str | None = None
    """If set, webhooks for any other fal user id are refused."""
    fal_media_hosts: str = "*.fal.media"
    """Hosts that results may be downloaded from: comma-separated `host`, `host:port` or
    `*.host`. An entry with a port also allows plain http."""
    fal_store_io: bool = True
    """Ask fal to keep input and output JSON, so that results can be read for 30 days instead of
    one hour; `false` for privacy."""
    fal_priority: Literal["normal", "low"] = "normal"
    """fal's queue priority; `low` runs after all normal requests."""
    fal_no_retry: bool = False
    """Ask fal not to restart a request on another runner."""
    fal_disable_fallback: bool = False
    """Ask fal not to fall back to an equivalent model."""
    fal_object_expiration_seconds: int | None = Field(None, ge=3600, le=315_360_000)
    """Seconds until fal deletes the files of a result; default: the account's setting."""
    fal_initial_acl: str | None = None
    """Who may read the files of a result: `allow`, `forbid`, `hide`, or JSON; default: the
    account's setting."""
    fal_tags: str | None = None
    """Tags of each request in fal's dashboard: `name=value,name=value`. Tags of a job replace
    them."""
    fal_runner_hint: str | None = None
    """Requests with the same hint run on the same runner, if possible."""
    webhook_base_url: HttpUrl | None = None
    """Public URL of the receiver; required by the worker. fal calls
    `{WEBHOOK_BASE_URL}/webhooks/fal/{token}`."""
    token_secret: TokenSecrets | None = None
    """Signs the tokens of webhook URLs, so that a webhook is recorded even if a restore has
    lost its row. Comma-separated, newest first, each of 32 characters or more; must be the same
    for receivers and workers. Default: random tokens."""
    webhook_max_bytes: int = Field(1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest webhook body in bytes. Raise it for `sync_mode`, whose deliveries are a third
    larger than their videos."""
    webhook_read_seconds: Seconds = timedelta(seconds=10)
    """Time limit for a request to arrive completely at the receiver."""
    archive_url: str = "file:./archive"
    """Where videos are stored: `file:./directory`, `s3://bucket/prefix`, `gs://bucket/prefix`
    or `az://container/prefix`. A cloud's region, endpoint and credentials come from its own
    variables (`AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), set in the
    environment, not in `.env`."""
    max_video_bytes: int = Field(8 * 1024**3, ge=1)
    """Largest video that is downloaded, in bytes."""
    # At most 10 000 parts of 10 MiB.
    max_upload_bytes: int = Field(8 * 1024**3, ge=1, le=100_000 * 1024 * 1024)
    """Largest file that is uploaded as input, in bytes."""
    # At most what a field of the model's input takes.
    data_uri_max_bytes: int = Field(256 * 1024, ge=0, le=8 * 1024 * 1024)
    """Data URIs with more bytes are uploaded instead of sent inline."""
    lease_seconds: Seconds = timedelta(seconds=60)
    """How long a claimed step may go without a heartbeat before another worker takes it over."""
    sweep_seconds: Seconds = timedelta(seconds=5)
    """Interval between sweeps."""
    poll_seconds: Seconds = timedelta(seconds=120)
    """How long a submitted job waits for its webhook before fal is polled, and the least
    interval between polls. Capped at 15 minutes, since fal may keep a result for only an hour,
    and at under a minute where fal keeps it for six minutes."""
    start_timeout_seconds: Seconds = timedelta(hours=1)
    """Start timeout sent with each submission: fal drops a request that has not started by then."""
    unknown_seconds: Seconds = timedelta(seconds=5400)
    """Minimum observed time before a submission of unknown outcome may be sent again, and only
    if it is missing from a complete listing of fal's. What exceeds `START_TIMEOUT_SECONDS` is
    the time for a run."""
    unknown_policy: UnknownPolicy = UnknownPolicy.RESUBMIT
    """What follows then: `resubmit` makes a new attempt, `hold` waits for an operator (`redrive
    --pay-again` or `cancel`)."""
    max_attempts: int = Field(3, ge=1, le=100)
    """A job fails after this many lost submissions; waiting does not count."""
    retry_seconds: Seconds = timedelta(days=1)
    """How long a job may be declined (fal unreachable or unavailable, or not started in time)
    before it fails; pauses of the account do not count."""
    max_in_flight: int = Field(40, ge=1, le=10_000)
    """Maximum number of attempts that are, or may be, at fal at once, over all workers; further
    jobs wait as `queued`. `extend-video limits set account` overrides it without a restart, as it
    does the rate and the budget."""
    submits_per_minute: int | None = Field(None, ge=1, le=100_000)
    """Maximum number of paid POSTs a minute, over all workers; default: no limit."""
    fal_unit_price_usd: Usd | None = None
    """Price of a megapixel, in USD; default: the platform's, read again every hour."""
    daily_budget_usd: Usd | None = None
    """Maximum spending in a UTC day, in USD, reservations included; jobs beyond it wait. Default:
    no limit."""
    probe_seconds: Seconds = timedelta(seconds=60)
    """How long all submissions pause after fal refused the account, or after three ambiguous
    replies in a row, before one job is tried."""
    archive_deadline_seconds: Seconds = timedelta(hours=1)
    """A job not archived this long after its completion is given top priority and logged once
    as `archive_deadline_near`; earlier if three quarters of its `object_expiration` have
    passed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum log level."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`json`, `text`, or `auto`: text on a terminal, else JSON."""
    broker_ca_file: FilePath | None = None
    """PEM file of the authorities that the broker's certificate is checked against
    (`rediss://`, `amqps://`), instead of the system's."""
    broker_sentinel_master: str = Field("mymaster", min_length=1)
    """Name of the master for a `sentinel://` URL."""
    remote_control: bool = False
    """Enable Celery's remote control (`celery inspect`, `shutdown`, `rate_limit`) for anybody
    with access to the broker; nothing here needs it."""
    drain_seconds: Seconds = timedelta(seconds=20)
    """How long a step may continue after SIGTERM before its row is released; the worker exits
    at most 10 seconds later."""
    spool_dir: str = "./spool"
    """Directory on local disk for files on their way into a remote archive; `file:` archives
    have their own."""
    archive_layout: str = DEFAULT_LAYOUT
    """Template of names in the archive, with `{yyyy}`, `{mm}`, `{dd}`, `{hh}` (time of
    enqueueing, UTC), `{tenant}` and `{job_id}`; has `{job_id}` and ends with `.{ext}`. A change
    applies to new videos."""
    archive_max_downloads: int = Field(32, ge=1, le=10_000)
    """Concurrent downloads over all workers."""
    archive_min_free_bytes: int = Field(1024**3, ge=0, le=1024**5)
    """Bytes that must be free on the disk of the archive, or of the spool before an object store;
    with less nothing is bought."""
    archive_bytes_per_second: int | None = Field(None, ge=1024, le=1024**4)
    """Download rate limit of a worker process, in bytes per second; default: none."""
    media_memory_bytes: int = Field(256 * 1024 * 1024, ge=64 * 1024 * 1024, le=1024**4)
    """Memory limit for decoding one file, in bytes beyond the 60 MB of the process. A paid
    video that exceeds it is archived undecoded, an input is refused."""
    media_processes: int = Field(4, ge=1, le=64)
    """Maximum number of decoding processes of a worker process; they start on demand."""
    watchdog_seconds: Seconds = timedelta(seconds=120)
    """Exit with code 70 if the worker has free capacity but consumes nothing, or its event loop
    is blocked, for this long while the broker is reachable."""
    monitor_token: PageToken | None = None
    """Token that opens the page `GET /jobs`, of 16 or more visible ASCII characters. With
    neither it nor a password hash the page does not exist."""
    monitor_password_hash: PasswordHash | None = None
    """Hash by `werkzeug.security` of a password that opens the page, as an alternative to the
    token."""
    monitor_session_seconds: Seconds = timedelta(hours=12)
    """How long a login to the page is valid."""
    trusted_proxies: int = Field(0, ge=0, le=10)
    """Number of trusted reverse proxies (`X-Forwarded-For`, `-Proto`). Setting it too high lets
    clients spoof their address."""

    @field_serializer("database_url", "broker_url", "archive_url")
    def _mask(self, value: str) -> str:
        return mask_url(value)

    @property
    def fal_credentials(self) -> SecretStr | None:
        """The whole fal key, whichever way it was given."""
        if self.fal_key is None and self.fal_key_id and self.fal_key_secret:
            halves = (self.fal_key_id, self.fal_key_secret)
            return SecretStr(":".join(half.get_secret_value() for half in halves))
        return self.fal_key

    @property
    def token_secrets(self) -> tuple[SecretStr, ...]:
        """The first one signs webhook tokens, all of them verify."""
        if self.token_secret is None:
            return ()
        return tuple(map(SecretStr, self.token_secret.get_secret_value().split(",")))


# By their type, so that a new one is masked from its first day.
SECRET_FIELDS = {
    name for name, field in Settings.model_fields.items() if "SecretStr" in repr(field.annotation)
}


NEEDED_AS = {
    "webhook_base_url": (
        "WEBHOOK_BASE_URL",
        "must be the public URL of the receiver, such as https://hooks.example.com",
    ),
    "fal_credentials": ("FAL_KEY", "must be set, or FAL_KEY_ID and FAL_KEY_SECRET together"),
}


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - any field's value
    """Read the environment and `.env`; InvalidSettingsError names every wrong variable at once.

    Proxies and authorities are checked, too: later, wrong ones would stop each job.
    """
    try:
        dotenv, environ = DotEnvSettingsSource(Settings), EnvSettingsSource(Settings)
        files = _read_files({**dotenv.env_vars, **environ.env_vars})
        settings = Settings(**{**files, **overrides})
    except ValidationError as error:
        wrong = []
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            value = MASK if name in SECRET_FIELDS else mask_url(str(detail["input"]))
            reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            wrong.append(Violation(name.upper(), value, f"must be {reason}"))
        raise InvalidSettingsError(tuple(wrong)) from None
    except UnicodeDecodeError:
        raise InvalidSettingsError((Violation(".env", "(not text)", "must be UTF-8"),)) from None
    read_network()
    return settings


def _read_files(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """The values of settings whose `variables` (in small letters) name a file.

    Raises InvalidSettingsError for files that cannot be read and settings that are given twice.
    """
    found: dict[str, Any] = {}
    wrong: list[Violation] = []
    for name in Settings.model_fields:
        path = variables.get(f"{name}_file")
        if not path:
            continue
        try:
            # Without the line end that editors add.
            found[name] = Path(path).read_text("utf-8-sig").removesuffix("\n")
            fault = None if found[name] else "must not be empty"
        except (OSError, ValueError) as error:
            fault = f"must be a readable file in UTF-8: {error}"
        if variables.get(name):
            fault = f"give either it or {name.upper()}, not both"
        if fault is not None:
            wrong.append(Violation(f"{name}_file".upper(), path, fault))
    if wrong:
        raise InvalidSettingsError(tuple(wrong))
    return found


def require_settings(settings: Settings, names: Sequence[str]) -> None:
    """Raise InvalidSettingsError naming each of `names` that has no value."""
    missing = [name for name in names if getattr(settings, name) is None]
    if missing:
        needed = [NEEDED_AS.get(name, (name.upper(), "must be set")) for name in missing]
        wrong = (Violation(variable, "(not set)", allowed) for variable, allowed in needed)
        raise InvalidSettingsError(tuple(wrong))


def list_secrets(settings: Settings) -> list[str]:
    """Every text in the settings that must be masked in logs."""
    held = [value for _, value in settings if isinstance(value, SecretStr)]
    held += settings.token_secrets
    keys = [one.get_secret_value() for one in (*held, settings.fal_credentials) if one is not None]
    urls = (settings.database_url, settings.broker_url, settings.archive_url)
    passwords = [word for url in urls if (word := urlsplit(url).password)]
    return [*keys, *passwords, *map(unquote, passwords)]
