"""How long a result is known: short, long and stored ones."""

from collections.abc import Iterator, Mapping

import pytest

from emulator.queue import LARGE_BYTES
from tests.emulator.conftest import lay_out
from tests.emulator.processes import SHORT, Emulator, start_emulator, wait_until

STORE = {"X-Fal-Store-IO": "1"}
SYNC = {"sync_mode": True}
MARGIN = 400
"""Bytes of a result beside its prompt, and more."""


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory, sample) -> Iterator[Emulator]:
    """Forgets every result at once, unless it is to be stored."""
    options = ("--result-seconds", "0", "--large-result-seconds", "0")
    with start_emulator(
        lay_out(tmp_path_factory.mktemp("forgetful"), sample), "--render", "fake", *options
    ) as emulator:
        yield emulator


def wait_until_erased(emulator: Emulator, request_id: str) -> None:
    wait_until(lambda: emulator.find(request_id)["erased"])


def submit(
    emulator: Emulator, fields: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> str:
    """The id of a request that was completed."""
    request_id = str(emulator.post(fields, headers=headers).json()["request_id"])
    wait_until(lambda: emulator.find(request_id)["status"] == "COMPLETED")
    return request_id


def test_long_result_is_forgotten_after_the_shorter_time(unhurried):
    request_id = submit(unhurried, {"prompt": "a" * LARGE_BYTES})
    wait_until_erased(unhurried, request_id)
    response = unhurried.client.get(f"{SHORT}/requests/{request_id}")
    assert (response.status_code, response.json()) == (404, {"status": "NOT_FOUND"})


def test_shorter_result_is_known_when_a_later_long_one_is_forgotten(unhurried):
    short = submit(unhurried, {"prompt": "a" * (LARGE_BYTES - MARGIN - 200)})
    wait_until_erased(unhurried, submit(unhurried, SYNC))
    assert unhurried.get_result(short).status_code == 200


def test_stored_result_outlasts_the_time_of_others(forgetful):
    stored = submit(forgetful, {}, STORE)
    wait_until_erased(forgetful, submit(forgetful, {}, {"X-Fal-Store-IO": "0"}))
    assert forgetful.get_result(stored).status_code == 200


def test_result_in_sync_mode_is_never_stored(forgetful):
    request_id = submit(forgetful, SYNC, STORE)
    wait_until_erased(forgetful, request_id)
    listed = forgetful.client.get(
        "/v1/models/requests/by-endpoint",
        params={"endpoint_id": "fal-ai/ltx-2.3-22b/extend-video", "expand": "payloads"},
    )
    item = listed.json()["items"][0]
    assert (item["request_id"], item["json_output"]) == (request_id, None)
