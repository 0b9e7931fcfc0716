"""The scheduler publishes the sweep, and survives any outage of the broker."""

from typing import Any

import structlog
from celery.beat import ScheduleEntry
from celery.beat import Scheduler as CeleryScheduler
from typing_extensions import override

from worker.broker.transport import OUTAGE

log = structlog.stdlib.get_logger(__name__)


class Scheduler(CeleryScheduler):
    """Celery's, with one line for an outage, and a new connection after each failure."""

    @override
    def apply_entry(self, entry: ScheduleEntry, producer: object = None) -> None:
        """The given producer is that of the first connection, which may be gone."""
        try:
            self.apply_async(entry, producer=self.producer, advance=False)
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the next turn retries
            OUTAGE.begin(error.__cause__ or error)
            self._forget_connection()
        else:
            OUTAGE.end()

    def _ensure_connected(self) -> Any:  # noqa: ANN401 - overrides Celery's
        connection: Any = self.connection
        return connection.ensure_connection(lambda error, _: OUTAGE.begin(error), None)

    def _forget_connection(self) -> None:
        connection = self.__dict__.pop("connection", None)
        self.__dict__.pop("producer", None)
        if connection is not None:
            try:
                connection.collect()
            except Exception as error:  # noqa: BLE001 - it is of no use any more
                log.debug("connection_not_closed", reason=type(error).__name__)
