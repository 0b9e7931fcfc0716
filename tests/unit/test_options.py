"""What fal is told about a request besides its input: what is allowed, and what is sent."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.fal.options import (
    Decision,
    InitialAcl,
    Priority,
    RequestOptions,
    join_tags,
    parse_option,
    parse_options,
    split_tags,
)
from worker.ground.errors import InvalidInputError, InvalidSettingsError, Violation
from worker.ground.settings import load_settings
from worker.runtime import OPTION_SETTINGS, read_request_options

LIFECYCLE = "X-Fal-Object-Lifecycle-Preference"
ALL: dict[str, Any] = {
    "priority": "low",
    "start_timeout": 30,
    "object_expiration": 86400,
    "initial_acl": {"default": "hide", "rules": [{"user": "u-1", "decision": "allow"}]},
    "tags": {"team": "video", "order.id": "47 11"},
    "no_retry": True,
    "disable_fallback": True,
    "store_io": False,
    "runner_hint": "sticky-1",
}


def refuse(fields: object) -> list[Violation]:
    with pytest.raises(InvalidInputError) as refused:
        parse_options(fields)
    return list(refused.value.violations)


def refuse_one(name: str, value: object) -> Violation:
    [violation] = refuse({name: value})
    return violation


# ------------------------------------------------------------------ headers


def test_options_all_given_become_these_headers() -> None:
    lifecycle = {"expiration_duration_seconds": 86400, "initial_acl": ALL["initial_acl"]}
    assert parse_options(ALL).to_headers() == {
        "X-Fal-Queue-Priority": "low",
        "X-Fal-Request-Start-Timeout": "30",
        "X-Fal-Request-Timeout": "30",
        LIFECYCLE: json.dumps(lifecycle),
        "X-Fal-Tags": "team=video,order.id=47 11",
        "X-Fal-No-Retry": "1",
        "x-app-fal-disable-fallback": "true",
        "x-fal-disable-fallbacks": "true",
        "X-Fal-Store-IO": "0",
        "X-Fal-Runner-Hint": "sticky-1",
    }


def test_options_not_given_are_not_sent() -> None:
    assert RequestOptions().to_headers() == {}
    assert RequestOptions().to_json() == {}


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"store_io": True}, {"X-Fal-Store-IO": "1"}),
        ({"no_retry": False, "disable_fallback": False, "tags": {}}, {}),
        ({"object_expiration": None}, {LIFECYCLE: '{"expiration_duration_seconds": null}'}),
        (
            {"initial_acl": {}},
            {LIFECYCLE: '{"initial_acl": {"default": "allow", "rules": []}}'},
        ),
        (
            {"start_timeout": 1.5},
            {"X-Fal-Request-Start-Timeout": "1.5", "X-Fal-Request-Timeout": "1.5"},
        ),
        ({name: None for name in ALL if name != "object_expiration"}, {}),
    ],
)
def test_option_becomes_its_headers(fields, headers) -> None:
    assert parse_options(fields).to_headers() == headers


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
tags = st.dictionaries(
    st.from_regex(r"\A[a-z0-9_-][a-z0-9._-]{0,20}\Z"),
    words.filter(lambda text: "," not in text),
    max_size=10,
).filter(lambda found: not any(name.startswith("fal.") for name in found))
acls = st.fixed_dictionaries(
    {},
    optional={
        "default": st.sampled_from(list(map(str, Decision))),
        "rules": st.lists(
            st.fixed_dictionaries(
                {"user": words, "decision": st.sampled_from(list(map(str, Decision)))}
            ),
            max_size=3,
        ),
    },
)
options = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from(list(map(str, Priority))) | st.none(),
        "start_timeout": st.integers(1, 604800) | st.floats(1, 604800) | st.none(),
        "object_expiration": st.integers(3600, 315360000) | st.none(),
        "initial_acl": acls | st.none(),
        "tags": tags | st.none(),
        "no_retry": st.booleans() | st.none(),
        "disable_fallback": st.booleans() | st.none(),
        "store_io": st.booleans() | st.none(),
        "runner_hint": words | st.none(),
    },
)


@given(options)
def test_options_written_and_read_again_are_the_same(fields) -> None:
    built = parse_options(fields)
    written = built.to_json()
    assert set(written) == set(fields)
    assert parse_options(json.loads(json.dumps(written))) == built
    assert parse_options(written).to_headers() == built.to_headers()


@given(options)
def test_headers_are_what_http_can_carry(fields) -> None:
    for name, value in parse_options(fields).to_headers().items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()


@given(options, options)
def test_fill_in_takes_what_was_given_before_what_is_usual(given_fields, usual) -> None:
    filled = parse_options(given_fields).fill_in(parse_options(usual)).to_json()
    expected = parse_options(usual).to_json() | parse_options(given_fields).to_json()
    assert filled == expected


def test_options_take_values_of_python_and_cannot_be_changed() -> None:
    built = RequestOptions(priority=Priority.LOW, start_timeout=timedelta(minutes=1))
    assert built.to_json() == {"priority": "low", "start_timeout": 60}
    with pytest.raises(ValidationError, match="frozen"):
        built.priority = Priority.LOW  # type: ignore[misc]  # that is the point


# ------------------------------------------------------------------ bounds

TAGS = {f"t{number}": "x" for number in range(10)}
LONG_TAGS = {f"t{number}": "x" * 256 for number in range(3)} | {"t3": "x" * 241}


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("start_timeout", [1, 1.0, 604800], [0, 0.999, -1, 604800.5, 604801]),
        ("object_expiration", [3600, 315360000], [0, 3599, 3600.5, 315360001, -1]),
        ("runner_hint", ["x", "x" * 256], ["", "x" * 257, "a b", "ü", "a\n"]),
        ("tags", [{}, TAGS], [TAGS | {"t10": "x"}]),
        ("tags", [{"k" * 64: "x"}, {"a._-9": "x"}], [{"k" * 65: "x"}, {"": "x"}, {"A": "x"}]),
        ("tags", [{"k": "x" * 256}, {"k": "a b"}], [{"k": "x" * 257}, {"k": ""}, {"k": " a"}]),
        ("tags", [LONG_TAGS], [LONG_TAGS | {"t3": "x" * 242}]),
        ("tags", [{"fal": "x"}, {"falx": "x"}], [{"fal.x": "x"}, {"fal.": "x"}]),
        ("tags", [{"k": "a=b"}], [{"k": "a,b"}, {"k": "a\nb"}, {"k": "ü"}, {"k": 1}, {"k": None}]),
        (
            "initial_acl",
            [{"rules": [{"user": "u" * 128, "decision": "hide"}] * 32}],
            [
                {"rules": [{"user": "u", "decision": "hide"}] * 33},
                {"rules": [{"user": "u" * 129, "decision": "hide"}]},
                {"rules": [{"user": "", "decision": "hide"}]},
                {"rules": [{"user": "u"}]},
                {"rules": [{"user": "u", "decision": "maybe"}]},
                {"default": "maybe"},
                {"default": None},
                {"unknown": 1},
            ],
        ),
    ],
)
def test_option_within_its_bound_is_taken_and_beyond_it_refused(name, within, beyond) -> None:
    for value in within:
        assert name in parse_options({name: value}).to_json()
    for value in beyond:
        [violation, *_] = refuse({name: value})
        assert violation.field.split(".")[0] == name
        assert violation.allowed


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("priority", ["high", 1, ["low"]]),
        ("start_timeout", ["30", True, float("nan"), float("inf"), 10**400]),
        ("object_expiration", ["never", False]),
        ("initial_acl", ["hide", []]),
        ("tags", ["a=b", [["a", "b"]]]),
        ("no_retry", ["true", 1]),
        ("runner_hint", [7]),
    ],
)
def test_option_of_other_type_is_refused(name, values) -> None:
    for value in values:
        assert refuse_one(name, value).field.split(".")[0] == name


def test_options_with_many_errors_list_all_at_once() -> None:
    wrong = refuse(
        {
            "priority": "high",
            "start_timeout": 0,
            "tags": {"fal.x": "y"},
            "initial_acl": {"default": "maybe"},
            "no_retry": "yes",
            "prio": 1,
        }
    )
    told = {one.field: (one.value, one.allowed) for one in wrong}
    assert set(told) == {
        "priority",
        "start_timeout",
        "tags",
        "initial_acl.default",
        "no_retry",
        "prio",
    }
    assert told["priority"] == ('"high"', "'normal' or 'low'")
    assert told["start_timeout"] == ("0", "a number of seconds from 1 to 604800")
    assert told["initial_acl.default"] == ('"maybe"', "'allow', 'forbid' or 'hide'")
    assert told["prio"] == ("1", "no such field; did you mean priority?")
    assert "at most 10 tags" in told["tags"][1]


@pytest.mark.parametrize("fields", [None, ["priority"]])
def test_options_that_are_no_object_are_refused(fields) -> None:
    assert refuse(fields)[0].allowed == "an object with one value per field"


# ------------------------------------------------------------------ text of a shell


def test_parse_option_follows_the_options_type() -> None:
    for name, text, value in [
        ("priority", "low", "low"),
        ("start_timeout", "30", 30.0),
        ("object_expiration", "null", None),
        ("initial_acl", "hide", {"default": "hide"}),
        ("initial_acl", '{"rules": []}', {"rules": []}),
        ("tags", "a=b,c=d=e", {"a": "b", "c": "d=e"}),
        ("tags", '{"a": "b"}', {"a": "b"}),
        ("no_retry", "true", True),
        ("runner_hint", "x", "x"),
    ]:
        parsed = parse_option(name, text)
        assert (parsed, type(parsed)) == (value, type(value))
        assert parse_options({name: parsed}).to_json()


def test_text_of_another_form_is_refused() -> None:
    for name, text in (("start_timeout", "soon"), ("no_retry", "1"), ("tags", "{a}")):
        assert refuse({name: parse_option(name, text)})[0].field == name
    for text in ("", "a", "a=b,", "a=b,a=c"):
        with pytest.raises(ValueError, match="tags"):
            split_tags(text)


@given(tags.filter(bool))
def test_tags_joined_and_split_are_the_same(found) -> None:
    assert split_tags(join_tags(found)) == found


# ------------------------------------------------------------------ settings


def test_settings_without_choices_say_the_usual() -> None:
    assert read_request_options(load_settings()).to_json() == {
        "priority": "normal",
        "start_timeout": 3600,
        "no_retry": False,
        "disable_fallback": False,
        "store_io": True,
    }


def test_settings_say_every_option(monkeypatch) -> None:
    for name, text in {
        "FAL_PRIORITY": "low",
        "START_TIMEOUT_SECONDS": "90",
        "FAL_OBJECT_EXPIRATION_SECONDS": "7200",
        "FAL_INITIAL_ACL": '{"default": "hide", "rules": [{"user": "u", "decision": "allow"}]}',
        "FAL_TAGS": "team=video,stage=test",
        "FAL_NO_RETRY": "true",
        "FAL_DISABLE_FALLBACK": "true",
        "FAL_STORE_IO": "false",
        "FAL_RUNNER_HINT": "sticky",
    }.items():
        monkeypatch.setenv(name, text)
    assert read_request_options(load_settings()).to_json() == {
        "priority": "low",
        "start_timeout": 90,
        "object_expiration": 7200,
        "initial_acl": {"default": "hide", "rules": [{"user": "u", "decision": "allow"}]},
        "tags": {"team": "video", "stage": "test"},
        "no_retry": True,
        "disable_fallback": True,
        "store_io": False,
        "runner_hint": "sticky",
    }


def test_setting_of_the_acl_may_be_its_default_alone(monkeypatch) -> None:
    monkeypatch.setenv("FAL_INITIAL_ACL", "forbid")
    options = read_request_options(load_settings())
    assert options.initial_acl == InitialAcl(default=Decision.FORBID)


def test_each_option_has_its_setting() -> None:
    assert set(OPTION_SETTINGS) == set(RequestOptions.model_fields)


def test_settings_out_of_bounds_are_named_with_what_is_allowed(monkeypatch) -> None:
    by_form = {"FAL_OBJECT_EXPIRATION_SECONDS": "3599", "FAL_PRIORITY": "high"}
    by_bound = {"FAL_INITIAL_ACL": '{"rules": [{"user": "u"}]}', "FAL_TAGS": "fal.team=video"}
    for wrong in (by_form, by_bound | {"FAL_RUNNER_HINT": "two words"}):
        for name, text in wrong.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(InvalidSettingsError) as caught:
            read_request_options(load_settings())
        assert {one.field for one in caught.value.violations} == wrong.keys()
        assert all(one.allowed for one in caught.value.violations)
        for name in wrong:
            monkeypatch.delenv(name)
