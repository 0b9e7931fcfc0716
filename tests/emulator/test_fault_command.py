"""`python -m emulator faults …`: faults by shell."""

import json

import pytest

from emulator.__main__ import main
from emulator.fault_command import read_short


def test_faults_are_set_shown_and_cleared_by_shell(faulty, capsys):
    fault = "submit/status:code=503:times=2:match.prompt=fox"
    assert main(["faults", faulty.url, "set", fault, "jwks/drop"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == faulty.client.get("/_emulator/faults").json()
    assert [(one["point"], one["kind"], one["times"]) for one in told] == [
        ("submit", "status", 2),
        ("jwks", "drop", None),
    ]
    assert (told[0]["code"], told[0]["match"]) == (503, {"prompt": "fox"})
    assert main(["faults", f"{faulty.url}/", "show"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main(["faults", faulty.url, "clear"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("text", ['{"point": "status", "kind": "stuck"}', "status/stuck"])
def test_fault_may_be_json_or_short(faulty, capsys, text):
    assert main(["faults", faulty.url, "set", text]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert (told["point"], told["kind"]) == ("status", "stuck")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cdn/truncate:bytes=100", {"point": "cdn", "kind": "truncate", "bytes": 100}),
        (
            "submit/foreign_urls:base=https://queue.fal.invalid",
            {"point": "submit", "kind": "foreign_urls", "base": "https://queue.fal.invalid"},
        ),
        (
            "webhook/stale:also=true:rate=0.5",
            {"point": "webhook", "kind": "stale", "also": True, "rate": 0.5},
        ),
    ],
)
def test_short_form_means_what_its_json_would(text, expected):
    assert read_short(text) == expected


def test_refusal_of_the_emulator_is_told(faulty, capsys):
    assert main(["faults", faulty.url, "set", "door/drop"]) == 1
    assert "unknown point: 'door'" in capsys.readouterr().err


def test_silence_of_the_emulator_is_told(capsys):
    url = "http://127.0.0.1:1"
    assert main(["faults", url, "show"]) == 1
    assert url in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["URL", "set"],
        ["URL", "clear", "status/stuck"],
        ["URL", "set", "status/code:503"],
    ],
)
def test_wrong_usage_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["faults", *arguments])
    assert caught.value.code == 2
    assert "emulator faults: error" in capsys.readouterr().err
