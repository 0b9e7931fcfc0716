"""Log lines of ours and of libraries: one format, one line per fact, and no secret in them."""

import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import httpx
import pytest
import structlog

from tests.harness.logs import preserved_logging
from tests.harness.web import run_server, send_json
from worker.ground.log import LogFormat, configure_logging

SECRET = "the-secret-key"


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


def read_facts(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to what a command prints"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_our_facts_are_json_lines_with_time_level_and_logger(capsys) -> None:
    configure_logging("info", "json")
    structlog.stdlib.get_logger("worker.x").info("job_enqueued", job_id="j-1", prompt="ü\n")

    (fact,) = read_facts(capsys)
    at = datetime.fromisoformat(str(fact.pop("timestamp")))
    assert at.utcoffset() == timedelta()
    assert fact == {
        "event": "job_enqueued",
        "job_id": "j-1",
        "prompt": "ü\n",
        "level": "info",
        "logger": "worker.x",
    }


def test_lines_of_libraries_have_the_same_format(capsys) -> None:
    configure_logging("info", "json")
    logging.getLogger("celery.worker").warning("lost %s of %d", "one", 2)

    (fact,) = read_facts(capsys)
    assert (fact["event"], fact["level"], fact["logger"]) == (
        "lost one of 2",
        "warning",
        "celery.worker",
    )
    assert "timestamp" in fact


def test_fact_below_level_is_not_logged(capsys) -> None:
    configure_logging("warning", "json")
    structlog.stdlib.get_logger("a").info("quiet")
    logging.getLogger("b").info("quiet")
    logging.getLogger("b").error("loud")

    assert [fact["event"] for fact in read_facts(capsys)] == ["loud"]


def test_bound_context_is_on_each_line(capsys) -> None:
    configure_logging("info", "json")
    with structlog.contextvars.bound_contextvars(job_id="j-2"):
        structlog.stdlib.get_logger("a").info("ours")
        logging.getLogger("b").info("theirs")

    assert [fact["job_id"] for fact in read_facts(capsys)] == ["j-2", "j-2"]


def test_configured_twice_logs_once(capsys) -> None:
    configure_logging("info", "json")
    configure_logging("info", "json")
    logging.getLogger("a").info("once")
    assert len(read_facts(capsys)) == 1


def test_auto_without_terminal_is_json(capsys) -> None:
    configure_logging("info", "auto")
    logging.getLogger("a").info("fact")
    assert len(read_facts(capsys)) == 1


def test_text_is_for_people(capsys) -> None:
    configure_logging("info", "text")
    structlog.stdlib.get_logger("a").info("job_enqueued", job_id="j-1")
    line = capsys.readouterr().err
    assert "job_enqueued" in line
    assert "job_id=j-1" in line
    assert "\x1b" not in line, "no colour where there is no terminal"


def fail_with_secret() -> None:
    key = SECRET
    headers = {"Authorization": f"Key {key}"}
    raise ValueError(f"{len(headers)} header")


def test_control_characters_in_text_are_written_and_not_obeyed(capsys) -> None:
    configure_logging("info", "text")
    forged = "a\n2026-11-24 [info] forged \x1b[31mred\x1b[0m \x9b2J\u202e"
    log = structlog.stdlib.get_logger("worker.x")
    log.info(forged, prompt=forged)
    logging.getLogger("celery.worker").warning("lost %s", forged)
    log.error("broken", exc_info=ValueError(forged))
    # Some values are quoted besides, which doubles their backslashes.
    *lines, last = capsys.readouterr().err.replace("\\\\", "\\").splitlines()
    told = "a\\n2026-11-24 [info] forged \\x1b[31mred\\x1b[0m \\x9b2J\\u202e"
    assert lines[0].count(told) == 2
    assert told in lines[1]
    assert "forged \\x1b[31mred" in last
    assert not [one for one in "\n".join([*lines, last]) if not one.isprintable() and one != "\n"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_traceback_shows_no_local_variable(capsys, log_format: LogFormat) -> None:
    """Locals of a crash hold keys and webhook tokens."""
    configure_logging("info", log_format)
    for logger in (structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")):
        try:
            fail_with_secret()
        except ValueError:
            logger.exception("crashed")

    printed = capsys.readouterr().err
    assert printed.count("ValueError: 1 header") >= 2
    assert SECRET not in printed


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_urls_that_httpx_asks_for_are_not_logged(capsys, log_format: LogFormat) -> None:
    configure_logging("debug", log_format)
    with run_server(send_json({})) as server, httpx.Client() as client:
        client.post(server.url, params={"fal_webhook": f"https://h/webhooks/fal/{SECRET}"})

    assert SECRET not in capsys.readouterr().err


def test_fact_that_json_cannot_hold_is_logged_all_the_same(capsys) -> None:
    configure_logging("info", "json")
    structlog.stdlib.get_logger("a").info("odd", value=object(), half="\ud800", raw=b"\xff")
    (fact,) = read_facts(capsys)
    assert fact["event"] == "odd"
