"""The steps of a worker's consumer, as Celery finds them."""

from kombu.utils.imports import symbol_by_name

from worker.app import create_app
from worker.settings import Settings


def test_consumer_talks_to_tools_and_not_to_other_workers():
    app = create_app(Settings())
    consumer = symbol_by_name(app.conf.worker_consumer)
    steps = {name.rpartition(":")[2] for name in consumer.Blueprint.default_steps}
    assert not steps & {"Mingle", "Gossip"}
    assert {"Connection", "Events", "Heart", "Control", "Tasks", "Evloop"} <= steps
