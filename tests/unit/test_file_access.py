"""Signing the URL of a file that not everybody may read: what is asked of whom, and what comes."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from pydantic import SecretStr

from tests.harness.brokers import find_closed_port
from tests.harness.web import ScriptedServer, break_off, run_server, send_body, send_json
from worker.fal.options import needs_signing, parse_options
from worker.fal.platform import PlatformClient
from worker.ground.errors import MediaRefusedError, MediaUnavailableError

FILE = "https://v3b.fal.test/files/b/1/a%20b.mp4"
SIGNED = f"{FILE}?identity=secret"
HOUR = timedelta(hours=1)


@pytest.fixture
def fal() -> Iterator[ScriptedServer]:
    with run_server(send_json({"signed_url": SIGNED})) as server:
        yield server


@pytest.fixture
def signer(fal) -> Iterator[PlatformClient]:
    signer = PlatformClient(f"{fal.url}/v1", SecretStr("the-key"))
    yield signer
    signer.close()


def test_file_is_signed_by_the_platform_with_the_key(fal, signer) -> None:
    assert signer.sign_file(FILE, HOUR) == SIGNED
    [asked] = fal.asked
    assert (asked.method, asked.path) == ("POST", "/v1/storage/files/sign")
    assert asked.query == {"url": [FILE]}
    assert asked.body == b'{"expiration_seconds":3600}'
    assert asked.headers["Authorization"] == "Key the-key"


@pytest.mark.parametrize(
    ("life", "seconds"),
    [
        (timedelta(seconds=0.9), 1),
        (timedelta(days=30), 604_800),
    ],
)
def test_life_of_a_signed_url_is_within_fals_bounds(fal, signer, life, seconds) -> None:
    signer.sign_file(FILE, life)
    assert fal.asked[0].body == b'{"expiration_seconds":%d}' % seconds


@pytest.mark.parametrize("status", [408, 429, 503])
def test_what_passes_by_itself_may_be_tried_again(fal, signer, status) -> None:
    fal.answer = send_json({"error": {"type": "server_error", "message": "later"}}, status)
    with pytest.raises(MediaUnavailableError, match=f"HTTP {status}, server_error: later"):
        signer.sign_file(FILE, HOUR)
    assert len(fal.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_account_may_be_tried_again_once_people_have_mended_it(fal, signer, status) -> None:
    fal.answer = send_body(b"no", status)
    with pytest.raises(MediaUnavailableError, match=f"HTTP {status}"):
        signer.sign_file(FILE, HOUR)


@pytest.mark.parametrize("status", [307, 400, 404])
def test_file_that_fal_does_not_sign_is_refused(fal, signer, status) -> None:
    fal.answer = send_json({"error": {"type": "not_found", "message": "no file"}}, status)
    with pytest.raises(MediaRefusedError, match=f"HTTP {status}, not_found: no file"):
        signer.sign_file(FILE, HOUR)


@pytest.mark.parametrize("silence", [break_off(), break_off(b"{")])
def test_broken_answer_may_be_tried_again(fal, signer, silence) -> None:
    fal.answer = silence
    with pytest.raises(MediaUnavailableError):
        signer.sign_file(FILE, HOUR)


def test_unreachable_platform_may_be_tried_again() -> None:
    signer = PlatformClient(f"http://127.0.0.1:{find_closed_port()}", SecretStr("the-key"))
    with pytest.raises(MediaUnavailableError, match="ConnectError"):
        signer.sign_file(FILE, HOUR)
    signer.close()


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"signed_url": 7},
        {"signed_url": "https://[/"},
        {"signed_url": "https://elsewhere.test/files/b/1/a%20b.mp4?identity=secret"},
        {"signed_url": SIGNED.replace("https", "http")},
        {"signed_url": SIGNED.replace("v3b.fal.test", "user@v3b.fal.test")},
        {"signed_url": SIGNED.replace("/1/", "/2/")},
    ],
)
def test_url_that_leads_elsewhere_is_not_taken_and_never_told(fal, signer, answer) -> None:
    fal.answer = send_json(answer)
    with pytest.raises(MediaUnavailableError, match="no signed URL") as caught:
        signer.sign_file(FILE, HOUR)
    assert "secret" not in str(caught.value)


def test_signed_url_may_stand_under_its_other_name(fal, signer) -> None:
    fal.answer = send_json({"url": SIGNED})
    assert signer.sign_file(FILE, HOUR) == SIGNED


def test_only_files_closed_by_default_need_a_signed_url() -> None:
    rules = {"rules": [{"user": "a", "decision": "hide"}]}
    for acl in (None, {}, {"default": "allow"}, {"default": "allow", **rules}):
        assert not needs_signing(parse_options({"initial_acl": acl}))
    for acl in ({"default": "forbid"}, {"default": "hide"}, {"default": "hide", **rules}):
        assert needs_signing(parse_options({"initial_acl": acl}))
