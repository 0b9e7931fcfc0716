from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from emulator.target import COMMENT
from tests.emulator.clips import probe
from tests.emulator.conftest import lay_out
from tests.emulator.processes import start_emulator


@pytest.mark.parametrize("kind", ["X264 (.mp4)", "GIF (.gif)"])
def test_fake_result_tells_the_truth_about_a_real_clip(faulty, tmp_path, kind):
    fields = {"video_output_type": kind, "seed": 3, "video_url": "http://127.0.0.1:1/none.mp4"}
    result = faulty.get_result(faulty.submit(fields))
    video = result.json()["video"]
    path = tmp_path / video["file_name"]
    path.write_bytes(faulty.client.get(video["url"]).content)
    seen = probe(path)
    assert (seen.frames, seen.size, float(seen.rate)) == (24, (128, 96), 24.0)
    assert (video["num_frames"], video["fps"], video["duration"]) == (24, 24.0, 1.0)
    assert (video["width"], video["height"]) == seen.size
    assert video["file_size"] == path.stat().st_size
    assert video["content_type"] == "video/mp4"
    assert seen.sound_seconds == pytest.approx(1, abs=0.05)
    assert (seen.comment, result.json()["seed"]) == (COMMENT, 3)


def test_fake_results_have_urls_of_their_own(faulty):
    urls = {faulty.get_result(faulty.submit()).json()["video"]["url"] for _ in range(3)}
    assert len(urls) == 3


def test_fake_result_in_sync_mode_is_a_data_uri(faulty):
    video = faulty.get_result(faulty.submit({"sync_mode": True})).json()["video"]
    assert video["url"].startswith("data:video/mp4;base64,")
    assert video["file_name"] == "ready.mp4"


def test_fake_result_of_wrong_input_is_refused_all_the_same(faulty):
    assert faulty.get_result(faulty.submit({"num_frames": 1})).status_code == 422


def test_hundreds_of_fake_requests_are_all_delivered_once(tmp_path, sample, receiver):
    options = ("--render", "fake", "--webhook-concurrency", "3", "--concurrency", "8")
    with start_emulator(lay_out(tmp_path / "many", sample), *options) as emulator:
        with ThreadPoolExecutor(4) as pool:
            submit = partial(emulator.submit, fal_webhook=receiver.url)
            submitted = set(pool.map(submit, [{"prompt": str(number)} for number in range(200)]))
        received = [receiver.take().headers["x-fal-webhook-request-id"] for _ in range(200)]
    assert set(received) == submitted
    assert len(submitted) == 200
