"""Beside the path. An operator pauses submissions of the account or a tenant, and resumes them."""

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import InvalidInputError, Violation
from worker.jobs import admission
from worker.jobs.admission import ACCOUNT, TENANT, Pause
from worker.jobs.states import PauseCause
from worker.stages.admit import choose_time

# Of a tenant's name, as everywhere.
MOST_CHARACTERS = 128
LONGEST_REASON = 500


def check_scope(scope: str | None, name: str = "scope") -> str:
    """Raises InvalidInputError for what is neither the account nor a tenant."""
    given = scope or ""
    tenant = given.removeprefix(TENANT)
    is_tenant = (
        given != tenant
        and 0 < len(tenant) <= MOST_CHARACTERS
        and not any(character.isspace() or not character.isprintable() for character in tenant)
    )
    if given != ACCOUNT and not is_tenant:
        wrong = Violation(name, given or "(not set)", "account or tenant:NAME")
        raise InvalidInputError((wrong,))
    return given


def check_reason(reason: str | None, name: str = "reason") -> str:
    """Raises InvalidInputError for none, and for one that no line has room for."""
    text = (reason or "").strip()
    if not text or len(text) > LONGEST_REASON or "\0" in text:
        allowed = f"why submissions pause, in at most {LONGEST_REASON} characters"
        raise InvalidInputError((Violation(name, text[:40] or "(not set)", allowed),))
    return text


def pause_scope(scope: str, reason: str, *, db: Database, clock: Clock = read_clock) -> None:
    """From now on nothing of it is submitted until `resume_scope`; what is at fal goes on."""
    with db.transaction() as connection:
        now = choose_time(connection, clock)
        admission.keep_pause(connection, Pause(scope, PauseCause.OPERATOR, reason, now))


def resume_scope(scope: str, *, db: Database) -> bool:
    """End the pause by hand, and no other; whether there was one."""
    with db.transaction() as connection:
        return admission.remove_pause(connection, scope, PauseCause.OPERATOR)
