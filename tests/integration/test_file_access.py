"""A private result, read by a signed URL from the emulator's CDN; by nothing else."""

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from pydantic import SecretStr

from tests.emulator.processes import Emulator
from worker.fal.client import FalClient
from worker.fal.options import parse_options
from worker.fal.platform import PlatformClient
from worker.ground.errors import MediaRefusedError

KEY = SecretStr("emulator-key")
ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"


@pytest.fixture
def signer(emulator) -> Iterator[PlatformClient]:
    signer = PlatformClient(f"{emulator.url}/v1", KEY)
    yield signer
    signer.close()


def make_private(emulator: Emulator, default: str) -> str:
    """The URL of a result that is made under this ACL."""
    options = parse_options({"initial_acl": {"default": default}})
    job_request = {"prompt": "p", "video_url": "https://example.com/a.mp4"}
    with FalClient(KEY, queue_url=emulator.url) as client:
        output = client.subscribe(ENDPOINT, job_request, options=options)
    video = output["video"]
    assert isinstance(video, dict)
    return str(video["url"])


def read(url: str) -> httpx.Response:
    """As anybody, without any credential."""
    return httpx.get(url, trust_env=False)


@pytest.mark.parametrize(("default", "code"), [("forbid", 403), ("hide", 404)])
def test_private_result_is_read_by_its_signed_url_alone(emulator, signer, default, code) -> None:
    url = make_private(emulator, default)

    signed = signer.sign_file(url, timedelta(hours=1))

    assert read(url).status_code == code
    reply = read(signed)
    assert (reply.status_code, reply.content[4:8]) == (200, b"ftyp")
    assert [read(one).status_code for one in (f"{signed}0", f"{url}?identity=0")] == [code] * 2
    assert emulator.client.get("/_emulator/leaks").json() == [], "the key never came to the CDN"


def test_file_that_is_not_there_is_refused(emulator, signer) -> None:
    with pytest.raises(MediaRefusedError, match="HTTP 404, not_found"):
        signer.sign_file(f"{emulator.url}/files/b/none.mp4", timedelta(hours=1))
