"""Follow a job on a terminal up to its end: its events, and what fal says of its request."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from worker.cli import display
from worker.ground.clock import read_clock
from worker.ground.errors import InvalidSettingsError
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Event
from worker.ops.timeline import Story, find_newest_attempt, follow_events, read_story, wait_a_look
from worker.runtime import Runtime
from worker.stages.poll import Follower

PATIENCE = timedelta(days=1)
# How many looks the last question waits for its turn.
LAST_LOOKS = 20


@dataclass
class Watch:
    """What has been shown so far of one job."""

    runtime: Runtime
    job_id: UUID
    is_quiet: bool
    follower: Follower | None
    shown: Attempt | None = None
    last_event: Event | None = None

    def follow(self) -> Story:
        """Show each event and each word of fal as they come; the story once the job has ended."""
        for event in follow_events(
            self.job_id, db=self.runtime.db, patience=PATIENCE, on_look=self.look
        ):
            if not self.is_quiet:
                display.out.print(display.show_event(event, self.last_event))
            self.last_event = event
        self.look_last()
        return read_story(self.job_id, db=self.runtime.db)

    def look(self, *, is_last: bool = False) -> bool:
        """Ask fal in turn, if this process has a key, and show what the table has learnt."""
        asked = self.follower is None or self.follower.ask_in_turn(self.job_id, is_last=is_last)
        attempt = find_newest_attempt(self.job_id, db=self.runtime.db)
        if attempt is not None:
            self._show(attempt)
        return asked

    def look_last(self) -> None:
        """What fal says last often comes after the webhook."""
        for _ in range(LAST_LOOKS):
            if self.look(is_last=True):
                return
            wait_a_look()

    def _show(self, attempt: Attempt) -> None:
        before = self.shown if self.shown and self.shown.id == attempt.id else None
        self.shown = attempt
        if not self.is_quiet:
            for line in display.show_request_progress(attempt, before):
                display.out.print(line)


def build_follower(runtime: Runtime) -> Follower | None:
    """None where this process has no key: then the table alone is followed."""
    with suppress(InvalidSettingsError):
        return Follower(runtime.db, runtime.requests, read_clock)
    return None


def watch_job(runtime: Runtime, job_id: UUID, *, as_json: bool) -> bool:
    """Follow the job to its end and show how it ended; whether its video is archived."""
    follower = build_follower(runtime)
    try:
        story = Watch(runtime, job_id, as_json, follower).follow()
    finally:
        if follower is not None:
            follower.clear(job_id)
    archived = story.job.state is JobState.ARCHIVED
    if as_json:
        display.print_json(display.story_to_json(story))
    elif archived:
        display.out.print(f"archived at {story.job.archive_uri}", markup=False)
    else:
        display.err.print(f"{story.job.error_code}: {story.job.error_message}", markup=False)
    return archived


def refresh_logs(runtime: Runtime, job_id: UUID) -> None:
    """Have the table know what fal tells of the request now, if this process may ask."""
    follower = build_follower(runtime)
    if follower is not None:
        follower.ask_in_turn(job_id, is_last=True)
