"""A Celery worker that waits for fal as fal's own client does: each wait holds a thread.

The client takes its addresses from constants; `FAL_ADDRESS` puts another server there.
"""

import os

import fal_client
import fal_client.client
from celery import Celery

APPLICATION = "fal-ai/ltx-2.3-22b/extend-video"

fal_client.client.QUEUE_URL_FORMAT = f"{os.environ['FAL_ADDRESS']}/"
app = Celery(broker=os.environ["BROKER_URL"])
app.conf.worker_prefetch_multiplier = 1
client = fal_client.SyncClient(key="a-key")


@app.task(name="extend")
def extend(prompt: str, video_url: str) -> object:
    return client.subscribe(APPLICATION, {"prompt": prompt, "video_url": video_url})
