"""No secret in a log line: not by type, not by name, not by form, not by value."""

import json
import logging
import time
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr

from tests.harness.logs import preserved_logging
from worker.ground.log import MASK, LogFormat, configure_logging, make_masker, mask_text, mask_value
from worker.ground.settings import list_secrets, load_settings

CANARY = "canary-5f1d"
FAL_KEY = "0b6c2f3e-1111-4222-8333-0123456789ab:0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([SecretStr(CANARY), {"deep": ({"deeper": SecretStr(CANARY)},)}], id="type"),
        pytest.param(
            [{"fal_key": CANARY, "webhook_token": CANARY, "db_password": CANARY}], id="name"
        ),
        pytest.param(
            [
                f"POST http://h/webhooks/fal/{CANARY}",
                f"POST http%3A/webhooks/fal/{CANARY}?x=1",
                f"b'/webhooks/fal/{CANARY}'".encode(),
            ],
            id="webhook path",
        ),
        pytest.param(
            [
                f"{{'Authorization': 'Key {CANARY}'}}",
                f"postgresql+psycopg://user:{CANARY}@db/x",
                f"redis://:{CANARY}@redis:6379/0",
                f"could not connect: host=db password={CANARY}",
            ],
            id="form",
        ),
    ],
)
def test_secret_is_masked_by_type_name_and_form(values) -> None:
    for value in values:
        masked = mask_value(value)
        assert CANARY not in repr(masked)
        assert MASK in repr(masked)


def test_fal_key_is_masked_by_its_form_wherever_it_stands() -> None:
    assert mask_text(f"the key {FAL_KEY}, of course") == f"the key {MASK}, of course"


def test_what_is_no_secret_stays_as_it_is() -> None:
    for value in (
        "job 0b6c2f3e-1111-4222-8333-0123456789ab is archived",
        {"idempotency_key": "order-7", "seed": 7, "ratio": 0.5, "held": True, "none": None},
        "http://127.0.0.1:8000/readyz",
    ):
        assert mask_value(value) == value


def test_names_of_secrets_are_masked_at_the_top_of_a_fact() -> None:
    fact = make_masker()(None, "info", {"event": "x", "key": CANARY, "token": "", "job_id": "j"})
    assert fact == {"event": "x", "key": MASK, "token": "", "job_id": "j"}


def test_endless_nesting_is_cut_off() -> None:
    endless: list[object] = [CANARY]
    endless.append(endless)
    assert MASK in repr(mask_value(endless))


def test_values_of_settings_are_masked_wherever_they_stand() -> None:
    settings = load_settings(
        fal_key=SecretStr(f"{CANARY}-key"),
        database_url=f"postgresql+psycopg://user:{CANARY}%21db@h/x",
        broker_url=f"redis://:{CANARY}-broker@h/0",
    )
    mask = make_masker(list_secrets(settings))
    words = f"{CANARY}-key {CANARY}%21db {CANARY}!db {CANARY}-broker"
    assert mask(None, "info", {"event": words})["event"] == f"{MASK} {MASK} {MASK} {MASK}"


def test_short_secrets_do_not_mask_usual_words() -> None:
    assert make_masker(["a"])(None, "info", {"event": "a day"})["event"] == "a day"


def crash() -> None:
    raise ValueError(f"cannot POST /webhooks/fal/{CANARY} nor {CANARY}-value")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_line_or_traceback_shows_a_secret(capsys, log_format: LogFormat) -> None:
    configure_logging("debug", log_format, [f"{CANARY}-value"])
    ours, theirs = structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")
    ours.info("fact", url=f"http://h/webhooks/fal/{CANARY}", key=SecretStr(CANARY))
    theirs.warning("asked %s with %s", f"http://u:{CANARY}@h", {"token": f"{CANARY}-value"})
    for log in (ours, theirs):
        try:
            crash()
        except ValueError:
            log.exception("crashed")
    printed = capsys.readouterr().err
    assert printed.count("ValueError: cannot POST") == 2
    assert CANARY not in printed


def test_masked_lines_stay_json(capsys) -> None:
    configure_logging("info", "json")
    structlog.stdlib.get_logger("a").info("x", headers={"Authorization": f"Key {CANARY}"}, n=1)
    fact = json.loads(capsys.readouterr().err)
    assert (fact["headers"], fact["n"]) == ({"Authorization": MASK}, 1)


@pytest.mark.parametrize(
    "text",
    [
        "authorization:" + " " * 50_000 + ",",
        "a.b:c@" * 5000,
        "://:" + "a" * 50_000,
    ],
)
def test_masking_takes_no_longer_than_the_text_is_long(text) -> None:
    """What fal quotes of a wish comes from outside, and no process may stand still to log it."""
    began = time.thread_time()
    mask_text(text)
    assert time.thread_time() - began < 1
