"""Experiment 2: the broker forgets, stalls, dies, and says everything twice in any order."""

import json
import signal
from collections.abc import Iterator
from random import Random
from uuid import uuid4

import redis

from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import Round
from tests.chaos.site import ARCHIVER, PATIENCE_SECONDS, SUBMITTER, Site
from tests.harness.servers import Broker
from tests.harness.waiting import PAUSE, wait_until

QUEUES = ("extend_video.submit", "extend_video.reconcile", "extend_video.archive")
FLUSHED_LIVE = 400
"""So many that messages wait, and can be lost."""
DOWN_SECONDS = 1.0
UP_SECONDS = 5.0


def harm_broker(site: Site, plan: Plan) -> Iterator[Finding]:
    yield flush_broker(site, plan)
    yield stall_broker(site, plan)
    yield restart_broker(site, plan)
    yield double_doorbells(site, plan)


def flush_broker(site: Site, plan: Plan) -> Finding:
    flushed = Round(site, "Redis flushed each second")
    with flushed.loaded(plan.flush_pace, most_live=FLUSHED_LIVE), site.broker.connect() as client:
        lost = 0
        for _ in range(int(plan.flush_seconds)):
            PAUSE.wait(1)
            lost += forget_messages(client)
    flushed.remarks.append(f"{lost} messages lost")
    return flushed.finish()


def forget_messages(client: redis.Redis) -> int:
    """FLUSHALL; how many messages were waiting in the queues of the jobs' path."""
    with client.pipeline() as pipeline:
        for queue in QUEUES:
            pipeline.llen(queue)
        pipeline.flushall()
        *waiting, _ = pipeline.execute()
    return sum(waiting)


def stall_broker(site: Site, plan: Plan) -> Finding:
    stalled = Round(site, f"Redis stalled for {plan.pause_seconds:g} s")
    with stalled.loaded(plan.pace), site.broker.standing_still():
        PAUSE.wait(plan.pause_seconds)
    return stalled.finish()


def restart_broker(site: Site, plan: Plan) -> Finding:
    """Killed, so that it forgets; Celery ends some workers over it, which the supervisor starts."""
    restarted = Round(site, "Redis killed and started again")
    ends = site.supervisor.ends.total()
    with restarted.loaded(plan.pace):
        for _ in range(plan.restarts):
            site.broker.end(signal.SIGKILL)
            PAUSE.wait(DOWN_SECONDS)
            site.broker.start()
            PAUSE.wait(UP_SECONDS)
    restarted.remarks.append(f"{site.supervisor.ends.total() - ends} workers ended by themselves")
    return restarted.finish()


def double_doorbells(site: Site, plan: Plan) -> Finding:
    """No worker takes any until all wait; then each is there twice, in random order."""
    doubled = Round(site, "every doorbell doubled and shuffled")
    chance = Random(plan.seed)
    completed = site.count_events("completed")
    with site.supervisor.holding_down(ARCHIVER):
        with site.supervisor.holding_down(SUBMITTER):
            site.enqueue_all(plan.jobs)
            published = double_messages(site.broker, "extend_video.submit", chance)
        wait_until(
            lambda: site.count_events("completed") >= completed + plan.jobs, PATIENCE_SECONDS
        )
        published += double_messages(site.broker, "extend_video.archive", chance)
    doubled.remarks.append(f"{published} doorbells for {2 * plan.jobs} steps")
    return doubled.finish()


def double_messages(broker: Broker, queue: str, chance: Random) -> int:
    """How many messages the queue has then."""
    with broker.connect() as client, client.pipeline() as pipeline:
        pipeline.lrange(queue, 0, -1)
        pipeline.delete(queue)
        waiting, _ = pipeline.execute()
        messages = [*waiting, *(copy_message(message) for message in waiting)]
        chance.shuffle(messages)
        client.rpush(queue, *messages)
    return len(messages)


def copy_message(raw: bytes) -> str:
    """The same doorbell once more, as if it had been rung twice."""
    message = json.loads(raw)
    message["properties"]["delivery_tag"] = str(uuid4())
    return json.dumps(message)
