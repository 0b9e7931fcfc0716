"""One answer to "why is it not done?", wherever it is asked for."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape

import pytest

from tests.harness.commands import patch_runtime
from tests.harness.jobs import make_job
from tests.page.browser import TOKEN
from worker import cli
from worker.jobs.states import JobState
from worker.runtime import Runtime, build_runtime


@pytest.fixture
def shell(monkeypatch, capsys, database_url, redis_url) -> Iterator[Callable[..., str]]:
    """Runs a command in this process; gives what it has printed."""
    opened: list[Runtime] = []

    def build_and_keep() -> Runtime:
        opened.append(build_runtime())
        return opened[-1]

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["extend-video", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return str(capsys.readouterr().out)

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    patch_runtime(monkeypatch, build_and_keep)
    yield run
    for runtime in opened:
        runtime.db.close()


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.FAILED])
def test_sentence_is_one_on_page_on_terminal_and_in_json(open_site, shell, state) -> None:
    site = open_site()
    job = make_job(site.db, state, now=datetime.now(UTC))
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})

    told = json.loads(shell("show", str(job.id), "--json"))["wait"]["sentence"]
    printed = shell("show", str(job.id))
    found = re.search(r'<p class="wait"[^>]*>(.*?)</p>', client.get(f"/jobs/{job.id}").text)

    assert told.startswith("It waits for ")
    assert found is not None
    sentence = forget_clock(told)
    assert forget_clock(unescape(found[1])) == sentence
    assert [line for line in printed.splitlines() if forget_clock(line.strip()) == sentence]


def forget_clock(sentence: str) -> str:
    """Without how long it is until or since a time: seconds pass between two looks."""
    return re.sub(r" \((in [^)]*|[^()]* ago)\)", "", sentence)
