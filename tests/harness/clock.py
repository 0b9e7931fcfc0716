"""A clock that tests move, so that no test sleeps."""

from datetime import datetime, timedelta

from tests.harness.jobs import NOW


class FakeClock:
    """Stands at `NOW` until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, by: timedelta) -> None:
        self.now += by
