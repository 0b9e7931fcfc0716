"""Defaults, bounds and refusals of the settings, and what daemons do with wrong ones."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from tests.harness.processes import BIN, EXTEND_VIDEO, Yard, run_yard
from worker.ground.errors import InvalidSettingsError, Violation
from worker.ground.settings import (
    Settings,
    UnknownPolicy,
    list_secrets,
    load_settings,
    require_settings,
)
from worker.runtime import Runtime

ROOT = Path(__file__).parents[2]
KEY = "the-secret-key"
PASSWORD = "s3cret"

# The contract with operators: these names, these defaults.
CONTRACT = {
    "DATABASE_URL": "sqlite:///extend-video.db",
    "BROKER_URL": "redis://127.0.0.1:6379/0",
    "FAL_KEY": None,
    "FAL_KEY_ID": None,
    "FAL_KEY_SECRET": None,
    "FAL_ENDPOINT": "fal-ai/ltx-2.3-22b/extend-video",
    "FAL_QUEUE_URL": "https://queue.fal.run",
    "FAL_REST_URL": "https://rest.fal.ai",
    "FAL_CDN_URL": "https://v3.fal.media",
    "FAL_PLATFORM_URL": "https://api.fal.ai/v1",
    "FAL_JWKS_URL": "https://rest.fal.ai/.well-known/jwks.json",
    "FAL_USER_ID": None,
    "FAL_MEDIA_HOSTS": "*.fal.media",
    "FAL_STORE_IO": True,
    "WEBHOOK_BASE_URL": None,
    "ARCHIVE_URL": "file:./archive",
    "LEASE_SECONDS": timedelta(seconds=60),
    "SWEEP_SECONDS": timedelta(seconds=5),
    "POLL_SECONDS": timedelta(seconds=120),
    "START_TIMEOUT_SECONDS": timedelta(seconds=3600),
    "UNKNOWN_SECONDS": timedelta(seconds=5400),
    "UNKNOWN_POLICY": UnknownPolicy.RESUBMIT,
}
KEYS = ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET")
DURATIONS = [name for name in CONTRACT if name.endswith("_SECONDS")]
URLS = [name for name in CONTRACT if name.endswith("_URL") and name.startswith(("FAL", "WEBHOOK"))]


def read(name: str) -> object:
    return getattr(load_settings(), name.lower())


def refuse(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Violation]:
    """The violations by name of variable; these variables are wrong, and all of them."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    by_name = {violation.field: violation for violation in caught.value.violations}
    assert by_name.keys() == variables.keys()
    assert len(by_name) == len(caught.value.violations)
    return by_name


def test_settings_without_variables_or_with_empty_ones_have_the_contracts_defaults(
    monkeypatch,
) -> None:
    assert {name: read(name) for name in CONTRACT} == CONTRACT
    for name in CONTRACT:
        monkeypatch.setenv(name, "")
    assert {name: read(name) for name in CONTRACT} == CONTRACT


@pytest.mark.parametrize(
    "given",
    [
        {
            "DATABASE_URL": ("postgresql+psycopg://u:p@h:5432/x", None),
            "BROKER_URL": ("amqp://u:p@h//", None),
            "FAL_ENDPOINT": ("fal-ai/ltx-2.3-22b/extend-video/lora", None),
            "FAL_QUEUE_URL": ("https://queue.fal.run/", "https://queue.fal.run"),
            "FAL_STORE_IO": ("false", False),
            "UNKNOWN_POLICY": ("hold", UnknownPolicy.HOLD),
            "LEASE_SECONDS": ("1.5", timedelta(seconds=1.5)),
            "WEBHOOK_MAX_BYTES": ("1024", 1024),
        },
        {
            "BROKER_URL": ("redis+socket:///tmp/r.sock", None),
            "FAL_QUEUE_URL": ("http://[::1]:8001", None),
            "FAL_STORE_IO": ("TRUE", True),
            "LEASE_SECONDS": ("604800", timedelta(days=7)),
        },
    ],
)
def test_setting_within_bounds_is_read(monkeypatch, given) -> None:
    for name, (text, _) in given.items():
        monkeypatch.setenv(name, text)
    expected = {name: text if value is None else value for name, (text, value) in given.items()}
    assert {name: read(name) for name in given} == expected


@pytest.mark.parametrize("value", ["0.99", "604801", "-5", "1h", "nan", "inf"])
def test_duration_out_of_bounds_is_refused(monkeypatch, value) -> None:
    for violation in refuse(monkeypatch, **dict.fromkeys(DURATIONS, value)).values():
        assert violation.value == value
        assert violation.allowed == "must be a number of seconds from 1 to 604800"


@pytest.mark.parametrize(
    "value",
    [
        "queue.fal.run",
        "https://",
        "https://host/?a=b",
        "https://user@host",
        "https://ho st",
        "https://host:99999",
    ],
)
def test_url_of_wrong_form_is_refused(monkeypatch, value) -> None:
    for violation in refuse(monkeypatch, **dict.fromkeys(URLS, value)).values():
        assert "an http:// or https:// URL" in violation.allowed
        assert violation.value == value


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "DATABASE_URL": ("mysql://h/x", "must be sqlite:///FILE or postgresql+psycopg://"),
            "BROKER_URL": ("memory://", "must be a redis://"),
            "FAL_ENDPOINT": ("fal-ai/flux/dev", "must be an extend-video endpoint"),
            "FAL_STORE_IO": ("perhaps", "must be a valid boolean"),
            "UNKNOWN_POLICY": ("retry", "must be 'resubmit' or 'hold'"),
            "WEBHOOK_MAX_BYTES": ("1023", "must be greater than or equal to 1024"),
            "LOG_LEVEL": ("loud", "must be 'debug', 'info', 'warning' or 'error'"),
        },
        {
            "DATABASE_URL": ("postgresql://h/x", "must be sqlite:///FILE or postgresql+psycopg://"),
            "WEBHOOK_MAX_BYTES": (
                str(256 * 1024**2 + 1),
                "must be less than or equal to 26843",
            ),
        },
        {
            "DATABASE_URL": ("postgresql+psycopg://h:x/y", "must be sqlite:///FILE or postgresql+"),
            "FAL_ENDPOINT": ("fal-ai/../extend-video", "must be an extend-video endpoint"),
            "WEBHOOK_MAX_BYTES": ("1 MiB", "must be a valid integer"),
        },
        {
            "DATABASE_URL": (
                "postgresql+psycopg://h/x?search_path=a",
                'must be a URL that libpq understands (invalid connection option "search_path"',
            ),
        },
    ],
)
def test_wrong_settings_are_all_named_at_once_with_what_is_allowed(monkeypatch, wrong) -> None:
    found = refuse(monkeypatch, **{name: value for name, (value, _) in wrong.items()})
    for name, (value, allowed) in wrong.items():
        assert found[name].value == value
        assert str(found[name]).startswith(f"{name}={value}: {allowed}")


@pytest.mark.parametrize("text", [f"{KEY}\n", f"{KEY}\u00e9", f"two {KEY}", f"{KEY}\x7f"])
def test_key_that_fits_into_no_header_is_refused(monkeypatch, text) -> None:
    """Such a key would spoil the paid POST itself, after the attempt is written."""
    for violation in refuse(monkeypatch, **dict.fromkeys(KEYS, text)).values():
        assert violation.value == "****"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://u:{PASSWORD}@h/x"),
        ("DATABASE_URL", f"mysql://u:a@{PASSWORD}@h/x"),
        ("DATABASE_URL", f"mysql://u:a/{PASSWORD}@h/x"),
        ("DATABASE_URL", f"u:{PASSWORD}@h/x"),
        ("DATABASE_URL", f"postgresql://h/x?user=u&password={PASSWORD}"),
        ("BROKER_URL", f"kafka://u:{PASSWORD}@h:1,h2:2/0"),
        ("FAL_QUEUE_URL", f"https://u:{PASSWORD}@h"),
    ],
)
def test_wrong_url_is_shown_without_password(monkeypatch, name, value) -> None:
    violation = refuse(monkeypatch, **{name: value})[name]
    assert PASSWORD not in violation.value
    assert "****" in violation.value


def test_settings_show_no_secret_however_they_are_written(monkeypatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("DATABASE_URL", f"postgresql+psycopg://u:{PASSWORD}@h/x")
    monkeypatch.setenv("BROKER_URL", f"redis://:{PASSWORD}@h/0")
    settings = load_settings()

    shown = (repr(settings), str(settings), settings.model_dump_json(), repr(Runtime(settings)))
    for text in shown:
        assert KEY not in text
        assert PASSWORD not in text
    assert PASSWORD in settings.database_url, "the value itself is whole"


def test_settings_are_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.fal_endpoint = "a/b"  # type: ignore[misc]  # that it is refused is what is tested


def test_variable_of_others_is_passed_over(monkeypatch) -> None:
    monkeypatch.setenv("FAL_SOMETHING_ELSE", "1")
    Path(".env").write_text("UNRELATED=1\n")
    assert load_settings() == load_settings()


def test_dotenv_is_read_and_environment_wins(monkeypatch) -> None:
    # Some editors begin a file with a byte order mark.
    Path(".env").write_text(
        "\ufeffFAL_ENDPOINT=a/file/extend-video\nLEASE_SECONDS=7\nFAL_USER_ID=\n"
    )
    assert load_settings().fal_endpoint == "a/file/extend-video"
    monkeypatch.setenv("FAL_ENDPOINT", "a/environment/extend-video")
    settings = load_settings()

    assert settings.fal_endpoint == "a/environment/extend-video"
    assert settings.lease_seconds == timedelta(seconds=7)
    assert settings.fal_user_id is None


def test_dotenv_of_wrong_value_is_refused_by_name() -> None:
    Path(".env").write_text("LEASE_SECONDS=soon\n")
    with pytest.raises(InvalidSettingsError, match="LEASE_SECONDS=soon"):
        load_settings()


def test_dotenv_that_is_no_text_is_refused_by_name() -> None:
    Path(".env").write_bytes(b"FAL_USER_ID=\xff\xfe\n")
    with pytest.raises(InvalidSettingsError, match=r"\.env"):
        load_settings()


def test_credentials_are_joined_from_both_halves(monkeypatch) -> None:
    monkeypatch.setenv("FAL_KEY_ID", "id")
    assert load_settings().fal_credentials is None
    monkeypatch.setenv("FAL_KEY_SECRET", "secret")
    assert load_settings().fal_credentials == SecretStr("id:secret")
    monkeypatch.setenv("FAL_KEY", "whole")
    assert load_settings().fal_credentials == SecretStr("whole")


def test_require_settings_names_every_missing_one() -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        require_settings(load_settings(), ["webhook_base_url", "fal_credentials", "fal_user_id"])

    lines = [str(violation) for violation in caught.value.violations]
    assert [line.partition("=")[0] for line in lines] == [
        "WEBHOOK_BASE_URL",
        "FAL_KEY",
        "FAL_USER_ID",
    ]
    assert all("(not set)" in line for line in lines)
    assert "FAL_KEY_ID and FAL_KEY_SECRET" in lines[1]
    require_settings(load_settings(fal_key=SecretStr(KEY)), ["fal_credentials", "archive_url"])


def test_settings_have_a_description_each() -> None:
    assert all(field.description for field in Settings.model_fields.values())


# ------------------------------------------------------------------ daemons with wrong settings


@pytest.fixture
def yard(tmp_path) -> Iterator[Yard]:
    with run_yard(tmp_path) as running:
        yield running


CELERY = [str(BIN / "celery"), "-A", "worker"]
WRONG = {
    "LEASE_SECONDS": "soon",
    "DATABASE_URL": f"mysql://u:{PASSWORD}@h/x",
    "FAL_KEY": KEY,
}


@pytest.mark.parametrize(
    "command",
    [
        [*CELERY, "worker", "-P", "solo"],
        [*CELERY, "beat"],
        [
            str(BIN / "gunicorn"),
            "--no-control-socket",
            "--bind",
            "127.0.0.1:0",
            "webhook:create_app()",
        ],
        [EXTEND_VIDEO, "up", "--port", "0"],
        [str(BIN / "alembic"), "-c", str(ROOT / "pyproject.toml"), "upgrade", "head"],
    ],
    ids=["worker", "beat", "gunicorn", "up", "alembic"],
)
def test_command_with_wrong_settings_ends_naming_them(yard, command) -> None:
    ended = yard.run(command, WRONG)

    printed = ended.stdout + ended.stderr
    assert ended.returncode not in {0, None}
    assert re.search(r"LEASE_SECONDS=soon: must be a number of seconds from 1 to 604800", printed)
    assert re.search(r"DATABASE_URL=mysql://u:\*\*\*\*@h/x: must be sqlite:///FILE", printed)
    assert "Traceback" not in printed
    assert not [secret for secret in (KEY, PASSWORD) if secret in printed]


def test_worker_without_needed_settings_ends_naming_them(yard, sqlite_url) -> None:
    ended = yard.run([*CELERY, "worker", "-P", "solo"], {"DATABASE_URL": sqlite_url})

    printed = ended.stdout + ended.stderr
    assert ended.returncode not in {0, None}
    assert "WEBHOOK_BASE_URL=(not set): must be the public URL of the receiver" in printed
    assert "FAL_KEY=(not set): must be set, or FAL_KEY_ID and FAL_KEY_SECRET together" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///empty.db", "extend-video migrate"),
        ("sqlite:////nowhere/at/all.db", "database_unavailable: "),
    ],
)
def test_worker_without_usable_database_ends_with_reason(yard, redis_url, url, message) -> None:
    settings = {
        "DATABASE_URL": url,
        "BROKER_URL": redis_url,
        "FAL_KEY": KEY,
        "WEBHOOK_BASE_URL": "https://hooks.example.com",
    }
    ended = yard.run([*CELERY, "worker", "-P", "solo"], settings)

    printed = ended.stdout + ended.stderr
    assert ended.returncode not in {0, None}
    assert message in printed
    assert "Traceback" not in printed
    assert KEY not in printed


def test_import_of_worker_reads_no_settings(yard) -> None:
    ended = yard.run([sys.executable, "-c", "import worker, worker.producer, worker.cli"], WRONG)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_worker_package_has_no_other_names() -> None:
    import worker

    with pytest.raises(AttributeError, match="no attribute 'applications'"):
        _ = worker.applications
    assert os.environ.get("FAL_KEY") is None


@pytest.mark.parametrize("text", ["n" * 31, f"{'n' * 32},", f"{'n' * 32},short", f"{'n' * 32}, x"])
def test_token_secret_that_is_too_short_is_refused_without_being_shown(monkeypatch, text) -> None:
    violation = refuse(monkeypatch, TOKEN_SECRET=text)["TOKEN_SECRET"]
    assert text not in str(violation)


def test_each_token_secret_is_masked_by_itself(monkeypatch) -> None:
    secrets = ["n" * 32, "o" * 40]
    monkeypatch.setenv("TOKEN_SECRET", ",".join(secrets))
    settings = load_settings()
    assert [one.get_secret_value() for one in settings.token_secrets] == secrets
    assert set(secrets) <= set(list_secrets(settings))
