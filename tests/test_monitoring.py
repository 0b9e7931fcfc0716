"""Dashboard and alert rules against what `/metrics` really tells, and the alerts' runbook."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.logs import preserved_logging
from webhook import create_app
from webhook.metrics import DELIVERIES
from worker.ground.settings import load_settings
from worker.jobs.states import JobEvent, JobState

PROMTOOL = shutil.which("promtool")
MONITORING = Path(__file__).parents[1] / "docs" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [*QUERIES, *(rule["expr"] for rule in RULES)]
STATES, REASONS = set(map(str, JobState)), set(map(str, JobEvent))


@pytest.fixture
def told(sqlite_url) -> set[str]:
    """The name of each sample."""
    with preserved_logging():
        client = create_app(load_settings(database_url=sqlite_url)).test_client()
        DELIVERIES.labels("refused", "invalid_signature").inc(0)
        client.get("/healthz")
        text = client.get("/metrics").text
    return {one.name for family in text_string_to_metric_families(text) for one in family.samples}


def list_names(expression: str) -> set[str]:
    return set(re.findall(r"\bextend_video_\w+", expression))


def test_dashboard_and_alerts_name_metrics_that_there_are_and_dashboard_each(told) -> None:
    used = set().union(*map(list_names, EXPRESSIONS))
    assert len(used) > 15
    assert used - told == set()
    shown = set().union(*map(list_names, QUERIES))
    missing = {
        name for name in told if not {name, re.sub(r"_(sum|count)$", "_bucket", name)} & shown
    }
    assert missing == set()


@pytest.mark.parametrize(("label", "known"), [("state", STATES), ("reason", REASONS)])
def test_labels_in_expressions_are_those_that_there_are(label, known) -> None:
    told = [
        word
        for expression in EXPRESSIONS
        for words in re.findall(rf'\b{label}[!=]~?"([^"]+)"', expression)
        for word in words.split("|")
    ]
    assert told
    assert set(told) - known == set()


def read_runbook() -> dict[str, list[str]]:
    """The paragraphs below each heading of a rule, by its name."""
    text = (MONITORING.parent / "operations.md").read_text()
    chapter = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    entries = re.split(r"^### ", chapter, flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"^- \*\*(\w+):\*\* \S", rest, re.MULTILINE)
        for name, rest in map(cut, entries)
    }


def cut(entry: str) -> tuple[str, str]:
    name, _, rest = entry.partition("\n")
    return name, rest


def test_each_alert_has_an_entry_in_the_runbook_and_none_is_left_over() -> None:
    parts = ["Means", "Look", "Do"]
    assert list(read_runbook().items()) == [(rule["alert"], parts) for rule in RULES]


def test_each_alert_says_what_it_is_and_how_urgent() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_brackets_of_expressions_are_closed() -> None:
    """All that a parser of ours would see; promtool says the rest where it is installed."""
    pairs = {")": "(", "}": "{", "]": "["}
    for expression in EXPRESSIONS:
        opened: list[str] = []
        for character in re.sub(r'"[^"]*"', '""', expression):
            if character in pairs.values():
                opened.append(character)
            elif character in pairs:
                assert opened[-1:] == [pairs[character]], expression
                opened.pop()
        assert opened == [], expression


def test_extra_charge_is_compared_with_nothing_where_its_series_has_just_begun() -> None:
    """What it evaluates to: the next test, where there is a promtool."""
    (expression,) = (rule["expr"] for rule in RULES if rule["alert"] == "ExtendVideoExtraCharge")
    assert "offset 1h" in expression
    assert expression.endswith("or vector(0))")
    assert not re.search(r"delta|increase|rate", expression)


@pytest.mark.skipif(PROMTOOL is None, reason="NOT RUN: no promtool; its form is looked at above")
@pytest.mark.parametrize(
    ("values", "fires"),
    [("1x10", [5]), ("0x90 1x200", [95, 145]), ("3x300", [5]), ("0x300", [])],
    ids=["first-appears-at-1", "rises-to-1", "stays", "none"],
)
def test_extra_charge_alert_fires_for_an_hour_after_each(tmp_path, values, fires) -> None:
    labels = {"severity": "ticket"}
    summary = next(
        rule["annotations"]["summary"]
        for rule in RULES
        if rule["alert"] == "ExtendVideoExtraCharge"
    )
    expected = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
    test = {
        "interval": "1m",
        "input_series": [{"series": "extend_video_extra_charges", "values": values}],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": "ExtendVideoExtraCharge",
                "exp_alerts": [expected] if minute in fires else [],
            }
            for minute in (5, 95, 145, 200)
        ],
    }
    path = tmp_path / "test.yml"
    rules = [str(MONITORING / "alerts.yml")]
    path.write_text(yaml.safe_dump({"rule_files": rules, "tests": [test]}))
    command = [str(PROMTOOL), "test", "rules", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="NOT RUN: no promtool; parsed above")
def test_promtool_accepts_the_rules() -> None:
    command = [str(PROMTOOL), "check", "rules", str(MONITORING / "alerts.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
