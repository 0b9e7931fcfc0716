"""What a failed job's code means to whoever enqueued it, and to an operator."""

from dataclasses import dataclass

from worker.fal.errors import (
    ERROR_TYPES,
    UNNAMED_CODE,
    Charge,
    ErrorClass,
    Retryable,
    find_error_type,
    name_field,
)
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Ending, Job

# Codes of ours for runs that fal finished.
OWN_CODES = frozenset({"invalid_result", "result_gone", UNNAMED_CODE})
AGAIN = {
    Retryable.YES: "may end otherwise: extend-video redrive {id} --pay-again",
    Retryable.MAYBE: "may end otherwise, of which fal has said nothing: "
    "extend-video redrive {id} --pay-again",
    Retryable.NO: "ends the same way: enqueue another input",
}
CHARGES = {Charge.NO: "not charged by fal", Charge.POSSIBLE: "possibly charged by fal"}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What fal says about one input field; the field is empty if it is about the whole."""

    field: str
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A failure in plain words."""

    error_class: ErrorClass
    sentence: str
    retryable: Retryable
    charge: Charge
    fields: tuple[FieldError, ...]

    @property
    def fails_again(self) -> bool:
        """Whether fal says that the same input fails again; a cancelled run says nothing of it."""
        return self.retryable is Retryable.NO and self.error_class is not ErrorClass.CALLER


def explain_failure(job: Job, attempts: list[Attempt]) -> Explanation | None:
    """What became of a job that fal itself has failed; None of any other."""
    code = job.error_code
    if job.state is not JobState.FAILED or code is None or not _is_fals(job, code, attempts):
        return None
    fields = list_field_errors(job)
    known = find_error_type(code, names_fields=bool(fields))
    retryable = known.retryable
    if (said := _read_header(attempts)) is not None:
        # Of this very run, where the type speaks for all that fail so.
        retryable = Retryable.YES if said else Retryable.NO
    return Explanation(known.error_class, known.sentence, retryable, known.charge, fields)


def will_fail_again(job: Job, attempts: list[Attempt]) -> bool:
    """Whether fal says that a failed job's input fails again, by its type or by its header."""
    explanation = explain_failure(job, attempts)
    if explanation is not None:
        return explanation.fails_again
    return job.state is JobState.FAILED and _read_header(attempts) is False


def _read_header(attempts: list[Attempt]) -> bool | None:
    """What fal says of trying the newest attempt again, if it has failed."""
    newest = attempts[-1] if attempts else None
    return newest.retryable if newest is not None and newest.ending == Ending.FAILED else None


def list_field_errors(job: Job) -> tuple[FieldError, ...]:
    details = [one for one in job.error_details or [] if isinstance(one, dict)]
    return tuple(
        FieldError(name_field(one), str(one.get("type", "")), str(one.get("msg", "")))
        for one in details
    )


def describe_explanation(explanation: Explanation, job: Job) -> dict[str, str]:
    """By name, one line each."""
    lines = {
        "class": explanation.error_class.value,
        "means": explanation.sentence,
        "again": _describe_retry(explanation).format(id=job.id),
        "charge": CHARGES[explanation.charge],
    }
    for number, one in enumerate(explanation.fields, start=1):
        lines[f"field {number}"] = f"{one.field or 'input'}: {one.message} ({one.error_type})"
    return lines


def _describe_retry(explanation: Explanation) -> str:
    if explanation.retryable is Retryable.NO and not explanation.fails_again:
        return AGAIN[Retryable.YES]
    return AGAIN[explanation.retryable]


def _is_fals(job: Job, code: str, attempts: list[Attempt]) -> bool:
    """Fal's own types are kept verbatim, so a code that is none of ours is fal's."""
    if code in ERROR_TYPES or job.error_details:
        return True
    return code not in OWN_CODES and bool(attempts) and attempts[-1].ending == Ending.FAILED
