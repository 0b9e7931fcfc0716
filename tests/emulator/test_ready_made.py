import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from emulator.target import COMMENT
from tests.emulator.clips import probe


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


def test_many_fake_requests_have_urls_of_their_own_and_are_delivered_once(faulty, receiver):
    with ThreadPoolExecutor(4) as pool:
        submit = partial(faulty.submit, fal_webhook=receiver.url)
        submitted = set(pool.map(submit, [{"prompt": str(number)} for number in range(50)]))
    received = [json.loads(receiver.take().body) for _ in range(50)]
    assert {one["request_id"] for one in received} == submitted
    assert len({one["payload"]["video"]["url"] for one in received}) == len(submitted) == 50
