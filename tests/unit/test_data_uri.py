"""Data URIs are read strictly, and judged by size before anything is decoded."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.output import fold_files
from worker.ground.data_uri import count_characters, is_data_uri, parse_data_uri


def read(text: str, max_bytes: int = 1000) -> bytes:
    return parse_data_uri(text, kind="video", max_bytes=max_bytes).content


@given(st.binary(min_size=1, max_size=100))
def test_content_comes_back_as_it_was(content) -> None:
    text = "data:video/mp4;base64," + base64.b64encode(content).decode()
    assert read(text) == content
    assert count_characters(len(content)) == len(text.partition(",")[2])


def test_people_are_shown_the_beginning_only() -> None:
    uri = "data:video/mp4;base64," + "A" * 1000
    value = {"video_url": uri, "prompt": "A" * 1000, "inner": {"url": uri}, "n": 7}
    shown = json.loads(fold_files(json.dumps(value)))
    folded = uri[:64] + "… (1022 characters)"
    assert shown == {
        "video_url": folded,
        "prompt": "A" * 1000,
        "inner": {"url": folded},
        "n": 7,
    }


def test_scheme_and_content_type_are_read_in_any_case() -> None:
    text = "DATA:Video/X-Matroska;BASE64,AAAA"
    assert parse_data_uri(text, kind="video", max_bytes=3).content_type == "video/x-matroska"
    assert is_data_uri(text)
    assert not is_data_uri("https://data:1/")


VIDEO = "data:video/mp4;base64,"


@pytest.mark.parametrize(
    ("reason", "texts"),
    [
        ("has the form", ["data:", "data:,AAAA", "data:;base64,AAAA", "data:video/mp4,AAAA"]),
        ("has the form", ["data:video/mp4;codecs=avc1;base64,AAAA"]),
        ("has the form", ["data:video/" + "a" * 300 + ";base64,AAAA"]),
        ("video/..., not of image/png", ["data:image/png;base64,AAAA"]),
        ("not empty", [VIDEO]),
        ("is base64", [VIDEO + text for text in ("AAA", "AA=A", "ÄÄÄÄ", "AA AA", "AA-_")]),
        ("base64", [VIDEO + "AAAA="]),
        ("canonical", [VIDEO + text for text in ("AB==", "AAB=")]),
    ],
)
def test_data_uri_of_another_form_is_refused_with_the_reason(reason, texts) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=reason):
            read(text)


def test_size_is_bounded() -> None:
    assert len(read("data:video/mp4;base64,AAAAAAAAAAAA", max_bytes=9)) == 9
    for text in ("AAAAAAAAAAAAAA==", "A" * 1000):
        with pytest.raises(ValueError, match="at most 9 bytes"):
            read(f"data:video/mp4;base64,{text}", max_bytes=9)
