"""The worker. `celery -A worker ...` finds its application here, made when it is first used."""

from typing import Any


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the protocol of modules
    if name != "celery":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worker.broker.app import get_app

    return get_app()
