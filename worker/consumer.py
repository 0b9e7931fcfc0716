"""What a worker's consumer starts with: nothing that only workers talking to each other need."""

from celery.worker.consumer import Consumer as CeleryConsumer

_TALK = ("celery.worker.consumer.mingle:Mingle", "celery.worker.consumer.gossip:Gossip")
_STEPS = [step for step in CeleryConsumer.Blueprint.default_steps if step not in _TALK]


class Consumer(CeleryConsumer):
    """Celery's, without mingle and gossip, whatever the command line says.

    Gossip costs each worker a message for every event of every other one, and its step raises at
    the end of a worker whose broker is away (celery.bootsteps.ConsumerStep._close of 5.7.0), which
    then ends with exit code 1. Workers here learn of each other from SQL.
    """

    Blueprint = type("Blueprint", (CeleryConsumer.Blueprint,), {"default_steps": _STEPS})
