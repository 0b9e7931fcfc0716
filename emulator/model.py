"""The app behind the queue: from an input to a result, as fal's runner would.

In a hurry it serves one ready-made clip for all inputs, so that thousands of jobs cost little.
"""

import asyncio
import base64
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emulator.camera import Shot
from emulator.fetch import fetch_input
from emulator.problems import ModelError
from emulator.ready_made import copy_ready, make_ready
from emulator.records import FalRequest, Outcome
from emulator.render import Clip, Order, render
from emulator.schema import SIZES, read_input
from emulator.storage import Storage
from emulator.target import FORMATS, Encoding

LARGEST_SEED = 2**31 - 1
PROGRESS = (25, 50, 75, 100)
"""Per cent at which the log tells of a run that has to last."""
LONGEST_LINE = 500


class ExtendVideo:
    """Runs requests on threads; the codecs let go of the interpreter while they work."""

    def __init__(
        self, storage: Storage, run_time: timedelta, concurrency: int, *, in_a_hurry: bool = False
    ) -> None:
        self._storage = storage
        self._run_time = run_time
        self._ready_made = make_ready(storage.scratch / "ready.mp4") if in_a_hurry else None
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="render")
        self._stopped = threading.Event()

    async def run(self, request: FalRequest) -> Outcome:
        """Takes `run_time` at least. A refused input is an outcome, not an exception."""
        loop = asyncio.get_running_loop()
        earliest_end = loop.time() + max(self._run_time, request.least_run).total_seconds()
        try:
            outcome = await loop.run_in_executor(self._executor, self._extend, request)
        except ModelError as refusal:
            request.log(f"Refused: {refusal}"[:LONGEST_LINE], "ERROR")
            outcome = Outcome.from_model_error(refusal)
        remaining = max(0.0, earliest_end - loop.time())
        for percent in PROGRESS:
            await asyncio.sleep(remaining / len(PROGRESS))
            request.log(f"{percent}% of the run time", "STDERR")
        return outcome

    def close(self) -> None:
        """Stop rendering at the next frame."""
        self._stopped.set()
        self._executor.shutdown(cancel_futures=True)

    def _extend(self, request: FalRequest) -> Outcome:
        given = read_input(request.input)
        ignored = sorted(set(request.input) - set(given))
        if ignored:
            request.log(f"Ignored unknown fields: {', '.join(ignored)}"[:LONGEST_LINE], "WARN")
        if given["seed"] is None:
            given["seed"] = random.randint(0, LARGEST_SEED)
        with TemporaryDirectory(dir=self._storage.scratch) as scratch:
            clip = self._make_clip(request, given, Path(scratch))
            file_size = clip.path.stat().st_size
            file = (
                None if given["sync_mode"] else self._storage.publish(clip.path, request.lifecycle)
            )
            url = f"{request.origin}/files/{file}" if file else encode_data_uri(clip.path)
        name = file.rpartition("/")[2] if file else clip.path.name
        video = {"url": url, "file_name": name, "file_size": file_size, **describe(clip)}
        body = {"video": video, "seed": given["seed"], "prompt": given["prompt"]}
        units = {"X-Fal-Billable-Units": count_megapixels(clip, given)}
        return Outcome(200, body, units, file=file)

    def _make_clip(self, request: FalRequest, given: dict[str, Any], scratch: Path) -> Clip:
        if self._ready_made is not None:
            request.log("Serving a ready-made clip")
            return copy_ready(self._ready_made, scratch)
        order = place_order(given, scratch)
        request.log(f"Fetching {given['video_url'][:200]}")
        fetch_input("video_url", given["video_url"], order.video)
        if order.end_image is not None:
            fetch_input("end_image_url", given["end_image_url"], order.end_image)
        request.log(f"Source: {order.video.stat().st_size} bytes", "DEBUG")
        request.log(f"Rendering {order.shot.frames} new frames, seed {order.shot.seed}")
        clip = render(order, self._stopped.is_set)
        request.log(f"Rendered {clip.frames} frames in all")
        return clip


def describe(clip: Clip) -> dict[str, object]:
    """What there is to say of a clip wherever it lies."""
    return {
        "content_type": find_content_type(clip.path),
        "width": clip.size[0],
        "height": clip.size[1],
        "fps": float(clip.rate),
        "duration": round(float(clip.frames / clip.rate), 6),
        "num_frames": clip.frames,
    }


def encode_data_uri(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{find_content_type(path)};base64,{content}"


def find_content_type(path: Path) -> str:
    return next(form.content_type for form in FORMATS.values() if form.suffix == path.suffix)


def place_order(given: dict[str, Any], scratch: Path) -> Order:
    form = FORMATS[given["video_output_type"]]
    shot = Shot(
        frames=max(0, given["num_frames"] - given["num_context_frames"]),
        is_backward=given["extend_direction"] == "backward",
        move=given["camera_lora"],
        scale=given["camera_lora_scale"],
        seed=given["seed"],
        end_image_strength=given["end_image_strength"],
    )
    return Order(
        video=scratch / "video",
        end_image=scratch / "image" if given["end_image_url"] else None,
        target=scratch / f"extended{form.suffix}",
        size=choose_wanted_size(given["video_size"]),
        rate=None if given["match_input_fps"] else Fraction(given["fps"]),
        context_frames=given["num_context_frames"],
        shot=shot,
        encoding=Encoding(
            form, given["video_quality"], given["video_write_mode"], given["generate_audio"]
        ),
    )


def choose_wanted_size(video_size: str | dict[str, int]) -> tuple[int, int] | None:
    """None for `auto`: the source's own."""
    if isinstance(video_size, dict):
        return video_size["width"], video_size["height"]
    return SIZES.get(video_size)


def count_megapixels(clip: Clip, given: dict[str, Any]) -> str:
    """What fal bills: pixels of the generated segment, context included, in whole millions."""
    width, height = clip.size
    return str(math.ceil(width * height * given["num_frames"] / 1_000_000))
