"""Data URIs are read strictly, and judged by size before anything is decoded."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.display import fold_files
from worker.fal.data_uri import count_characters, is_data_uri, parse_data_uri


def read(text: str, max_bytes: int = 1000) -> bytes:
    return parse_data_uri(text, kind="video", max_bytes=max_bytes).content


@given(st.binary(min_size=1, max_size=100))
def test_content_comes_back_as_it_was(content) -> None:
    text = "data:video/mp4;base64," + base64.b64encode(content).decode()
    assert read(text) == content
    assert count_characters(len(content)) == len(text.partition(",")[2])


@pytest.mark.parametrize(
    ("text", "content_type"),
    [
        ("data:video/mp4;base64,AAAA", "video/mp4"),
        ("DATA:Video/MP4;BASE64,AAAA", "video/mp4"),
        ("data:video/x-matroska;base64,AAAA", "video/x-matroska"),
    ],
)
def test_content_type_is_read_in_lower_case(text, content_type) -> None:
    assert parse_data_uri(text, kind="video", max_bytes=3).content_type == content_type


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:", "has the form"),
        ("data:,", "has the form"),
        ("data:,AAAA", "has the form"),
        ("data:;base64,AAAA", "has the form"),
        ("data:video/mp4,AAAA", "has the form"),
        ("data:video;base64,AAAA", "has the form"),
        ("data:video/mp4;codecs=avc1;base64,AAAA", "has the form"),
        ("data:video/mp4 ;base64,AAAA", "has the form"),
        ("data:video/mp4;base64;AAAA", "has the form"),
        ("data:video/" + "a" * 300 + ";base64,AAAA", "has the form"),
        ("data:image/png;base64,AAAA", "video/..., not of image/png"),
        ("data:video/mp4;base64,", "it is empty"),
        ("data:video/mp4;base64,A", "is base64"),
        ("data:video/mp4;base64,AAA", "is base64"),
        ("data:video/mp4;base64,AA=A", "is base64"),
        ("data:video/mp4;base64,AAAA=", "is base64"),
        ("data:video/mp4;base64,AAAA====", "is base64"),
        ("data:video/mp4;base64,AA AA", "is base64"),
        ("data:video/mp4;base64,AAAA\n", "is base64"),
        ("data:video/mp4;base64,AA-_", "is base64"),
        ("data:video/mp4;base64,AA%3D%3D", "is base64"),
        ("data:video/mp4;base64,ÄÄÄÄ", "is base64"),
        ("data:video/mp4;base64,AB==", "canonical"),
        ("data:video/mp4;base64,AAB=", "canonical"),
        ("data:video/mp4;base64,====", "base64"),
    ],
)
def test_data_uri_of_another_form_is_refused_with_the_reason(text, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        read(text)


def test_people_are_shown_the_beginning_only() -> None:
    uri = "data:video/mp4;base64," + "A" * 1000
    shown = fold_files({"video_url": uri, "prompt": "A" * 1000, "inner": {"url": uri}, "n": 7})
    folded = uri[:64] + "… (1022 characters)"
    assert shown == {
        "video_url": folded,
        "prompt": "A" * 1000,
        "inner": {"url": folded},
        "n": 7,
    }


@pytest.mark.parametrize(("size", "is_taken"), [(8, True), (9, True), (10, False), (1000, False)])
def test_size_is_bounded(size, is_taken) -> None:
    text = "data:video/mp4;base64," + base64.b64encode(bytes(size)).decode()
    if is_taken:
        assert len(read(text, max_bytes=9)) == size
    else:
        with pytest.raises(ValueError, match="at most 9 bytes"):
            read(text, max_bytes=9)


@pytest.mark.parametrize(
    ("text", "holds"),
    [("data:x", True), ("DATA:x", True), ("", False), ("https://data:1/", False), ("dat", False)],
)
def test_data_uri_is_known_by_its_scheme(text, holds) -> None:
    assert is_data_uri(text) is holds
