"""Names in the archive: the template, and that nothing of a job leads out of it."""

import re
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ground.settings import DEFAULT_LAYOUT
from worker.media.layout import (
    ArchiveNames,
    QuarantineNames,
    check_name,
    encode_tenant,
    name_quarantine,
    parse_layout,
)

JOB = UUID("019a9f6e-0000-7000-8000-000000000001")
AT = datetime(2026, 3, 1, 4, 5, 6, tzinfo=UTC)
LAYOUTS = [
    DEFAULT_LAYOUT,
    "{job_id}.{ext}",
    "{tenant}/{yyyy}-{mm}-{dd}/{hh}/{job_id}.{ext}",
    "videos/{tenant}{tenant}/x{tenant}y/{job_id}.{ext}",
    "{job_id}/{tenant}.{ext}",
    "{tenant}{job_id}.{ext}",
    "year={yyyy}/tenant={tenant}/{job_id}.{ext}",
]
anything = st.text(max_size=300) | st.sampled_from(
    [
        ".",
        "..",
        "../..",
        "/",
        "//",
        "\\",
        "quarantine",
        ".partial",
        "a/../b",
        "%2E%2E",
        "~",
        "\ud800",
        "",
    ]
)
FIRST, LAST = (datetime.fromisoformat(f"{year}-01-01") for year in (2000, 2100))
moments = st.datetimes(FIRST, LAST, timezones=st.timezones())
whose = st.tuples(st.uuids(), anything, moments)


def test_default_layout_names_by_the_day_of_the_wish() -> None:
    stem = f"2026/03/01/{JOB}"
    assert parse_layout(DEFAULT_LAYOUT).name(JOB, "default", AT, "mp4") == ArchiveNames(
        f"{stem}.mp4", f"{stem}.json", f"{stem}.jpg"
    )


def test_layout_may_use_every_field() -> None:
    layout = parse_layout("{tenant}/{yyyy}{mm}{dd}T{hh}-{job_id}.{ext}")
    assert layout.name(JOB, "acme", AT, "webm").video == f"acme/20260301T04-{JOB}.webm"


def test_layout_counts_days_and_hours_in_utc() -> None:
    east = datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    layout = parse_layout("{yyyy}{mm}{dd}{hh}{job_id}.{ext}")
    assert layout.name(JOB, "a", east, "mp4").video == f"2026022823{JOB}.mp4"


def test_names_beside_the_video_do_not_depend_on_its_kind() -> None:
    layout = parse_layout(DEFAULT_LAYOUT)
    one, other = (layout.name(JOB, "a", AT, extension) for extension in ("mp4", "webm"))
    assert one.video != other.video
    assert (one.sidecar, one.poster) == (other.sidecar, other.poster)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{job_id}{ext}", "{ext}/{job_id}.{ext}", "{yyyy}.{ext}", "{job_id.hex}.{ext}"),
        *("{}/{job_id}.{ext}", "{job_id!r}.{ext}", "{job_id.{ext}", "{{job_id}}.{ext}"),
        *("/{job_id}.{ext}", "../{job_id}.{ext}", ".partial/{job_id}.{ext}", "a//{job_id}.{ext}"),
        *("quarantine/{job_id}.{ext}", "a b/{job_id}.{ext}", "{job_id}\n.{ext}"),
    ],
)
def test_layout_that_makes_no_good_names_is_refused(text) -> None:
    with pytest.raises(ValueError, match="must be a relative path"):
        parse_layout(text)


@pytest.mark.parametrize("text", ["x" * 300 + "{job_id}.{ext}", "x/" * 500 + "{job_id}.{ext}"])
def test_layout_that_makes_long_names_is_refused(text) -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse_layout(text)


@pytest.mark.parametrize("extension", ["json", "jpg", "", "MP4", "../x", "x" * 11])
def test_extension_that_would_change_what_the_name_is_becomes_bin(extension) -> None:
    names = parse_layout(DEFAULT_LAYOUT).name(JOB, "a", AT, extension)
    assert names.video == f"2026/03/01/{JOB}.bin"
    assert name_quarantine(JOB, extension).video == f"quarantine/{JOB}.bin"


def test_quarantine_lies_apart() -> None:
    assert name_quarantine(JOB, "mp4") == QuarantineNames(
        f"quarantine/{JOB}.mp4", f"quarantine/{JOB}.json"
    )


@pytest.mark.parametrize(
    ("tenant", "encoded"),
    [
        ("default", "default"),
        ("acme.com", "acme.com"),
        ("a/b", "a%2Fb"),
        (".hidden", "%2Ehidden"),
        ("50%", "50%25"),
        ("~", "%7E"),
        ("", "_"),
    ],
)
def test_tenant_is_readable_where_it_may_be(tenant, encoded) -> None:
    assert encode_tenant(tenant) == encoded


def test_long_tenants_are_cut_and_stay_apart() -> None:
    one, other = encode_tenant("ü" * 127 + "a"), encode_tenant("ü" * 127 + "b")
    assert one != other
    assert len(one) == len(other) == 100


def test_tenant_named_quarantine_lies_apart_from_it() -> None:
    layout = parse_layout("{tenant}/{job_id}.{ext}")
    assert layout.name(JOB, "quarantine", AT, "mp4").video == f"%71uarantine/{JOB}.mp4"


@given(st.sampled_from(LAYOUTS), anything, st.uuids(), moments, anything)
def test_no_value_of_a_job_leads_out_of_the_archive(text, tenant, job_id, at, extension) -> None:
    names = parse_layout(text).name(job_id, tenant, at, extension)

    for name in (names.video, names.sidecar, names.poster):
        parts = name.split("/")
        assert all(parts), "no part is empty, so none is absolute either"
        assert not any(part.startswith(".") for part in parts)
        assert parts[0] != "quarantine"
        assert len(parts) == text.count("/") + 1
        assert re.fullmatch(r"[A-Za-z0-9._=%~/-]+", name)
        assert str(job_id) in name
        assert check_name(name) == name


@given(st.sampled_from(LAYOUTS), whose, whose)
def test_no_two_jobs_share_a_name(text, job, other_job) -> None:
    def name(job_id: UUID, tenant: str, at: datetime) -> ArchiveNames:
        return parse_layout(text).name(job_id, tenant, at, "mp4")

    one, other = name(*job), name(*other_job)
    if job[0] != other_job[0]:
        assert not {one.video, one.sidecar, one.poster} & {
            other.video,
            other.sidecar,
            other.poster,
        }
