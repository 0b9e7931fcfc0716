"""`make screenshots`: the README's pictures, of a real deployment and videos that it has extended.

A day's history is of made-up jobs, as a million of them are measured; its files do not exist.
"""

import io
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import av
from av.filter import Graph
from celery import Celery
from playwright.sync_api import Browser

from tests.emulator.processes import Emulator
from tests.harness.many_rows import fill_table
from tests.harness.processes import ONE_WORKER, Deployment, run_deployment, run_emulator, run_yard
from tests.harness.servers import run_redis
from tests.page.browser import TOKEN, log_in, run_browser
from tests.system.rows import JobTable, open_table
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema
from worker.media.sample import make_sample

IMAGES = Path(__file__).parents[2] / "docs" / "images"
HISTORY = 2400
DESKTOP: Any = {"width": 1280, "height": 900}
PHONE: Any = {"width": 390, "height": 844}
PROMPTS = (
    "The camera rises over the harbour while the fog lifts",
    "Slow push towards the lighthouse as its lamp comes on",
    "Waves roll across the pier, gulls take off",
)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as name, run_redis() as broker_url:
        directory = Path(name)
        database_url = f"sqlite:///{directory / 'jobs.db'}"
        upgrade_schema(database_url)
        with closing(Database(database_url)) as db:
            fill_table(db, HISTORY, newest=datetime.now(UTC), days=1)
        files = directory / "emulator" / "files"
        files.mkdir(parents=True)
        make_sample(files / "sample.mp4")
        with (
            run_yard(directory) as yard,
            run_emulator(yard) as emulator,
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=emulator.url,
                database_url=database_url,
                broker_url=broker_url,
                workers=ONE_WORKER,
                changes={"MONITOR_TOKEN": TOKEN},
            ) as deployment,
            run_browser() as browser,
            open_table(database_url) as table,
        ):
            jobs = [enqueue(broker_url, emulator, prompt) for prompt in PROMPTS]
            for job_id in jobs:
                table.wait_for_end(job_id, seconds=120)
            take_all(browser, deployment, jobs[0], find_failed(table))
    sys.stdout.write("\n".join(str(path) for path in sorted(IMAGES.glob("*.png"))) + "\n")


def enqueue(broker_url: str, emulator: Emulator, prompt: str) -> UUID:
    job_id = uuid4()
    fields = {"prompt": prompt, "video_url": emulator.sample_url, "num_frames": 49}
    fields |= {"num_context_frames": 9, "camera_lora": "jib_up", "tenant": "studio-north"}
    producer = Celery("producer", broker=broker_url, set_as_current=False)
    producer.send_task(
        "extend_video.enqueue",
        queue="extend_video",
        kwargs={"job_id": str(job_id), "labels": {"source": "web"}, **fields},
    )
    producer.close()
    return job_id


def find_failed(table: JobTable) -> UUID:
    rows = table.select(
        "SELECT id FROM jobs WHERE state = 'failed' ORDER BY enqueued_at DESC LIMIT 1"
    )
    return UUID(str(rows[0]["id"]))


def take_all(browser: Browser, deployment: Deployment, archived: UUID, failed: UUID) -> None:
    story = f"/jobs/{archived}"
    take(browser, deployment, "jobs-light", "/jobs", DESKTOP)
    take(browser, deployment, "jobs-dark", "/jobs", DESKTOP, color_scheme="dark")
    take(browser, deployment, "job-light", story, DESKTOP)
    take(browser, deployment, "job-dark", story, DESKTOP, color_scheme="dark")
    take(browser, deployment, "job-failed", f"/jobs/{failed}", DESKTOP)
    phone = {"device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}
    take(browser, deployment, "jobs-phone", "/jobs", PHONE, **phone)
    take(browser, deployment, "job-phone", story, PHONE, color_scheme="dark", **phone)


def take(
    browser: Browser, deployment: Deployment, name: str, path: str, size: Any, **options: Any
) -> None:
    with browser.new_context(viewport=size, **options) as context:
        page = context.new_page()
        url = deployment.settings["WEBHOOK_BASE_URL"]
        log_in(page, url)
        page.goto(f"{url}{path}")
        if page.locator("video").count():
            page.evaluate("""() => new Promise(done => {
                const video = document.querySelector('video');
                // The player's own sign of loading fades a moment after the frame is there.
                video.addEventListener('seeked', () => setTimeout(done, 2500), { once: true });
                video.currentTime = 1.2;
            })""")
        page.evaluate("document.activeElement.blur()")
        shrink(page.screenshot(), IMAGES / f"{name}.png")


def shrink(picture: bytes, path: Path) -> None:
    """The picture with a palette: a third of the bytes, and nobody sees it."""
    with av.open(io.BytesIO(picture), mode="r", format="png_pipe") as container:
        frame = next(container.decode(video=0))
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    split, palette, use, sink = (
        graph.add(*one)
        for one in (
            ("split", None),
            ("palettegen", "max_colors=200"),
            ("paletteuse", "dither=none"),
            ("buffersink", None),
        )
    )
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    graph.vpush(frame)
    graph.vpush(None)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "pal8"
    encoder.time_base = Fraction(1)
    packets = [*encoder.encode(graph.vpull()), *encoder.encode(None)]
    path.write_bytes(b"".join(map(bytes, packets)))


if __name__ == "__main__":
    main()
