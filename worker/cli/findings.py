"""What the doctor found, on a terminal and as JSON."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from worker.cli import display
from worker.jobs.checks import Check, Finding
from worker.ops.doctor import Diagnosis

# What holds where a check finds nothing, and what an operator may do where it does.
ABOUT_CHECKS: dict[Check, tuple[str, str]] = {
    Check.DUE_TIME: (
        "every live row has a due time, and no ended row has one",
        "no sweep sees such a row: set its due_at to the present",
    ),
    Check.UNTRACKED_PAYMENT: (
        "every attempt that may be paid has an outcome or somebody who asks for it",
        "look for its input in fal's list of requests; redrive the job only if it is not there",
    ),
    Check.TWO_CHARGES: (
        "no job was paid for twice",
        "compare with fal's bill; the events of the job say which decision led to it",
    ),
    Check.ENDED_ROW_CHANGED: (
        "no job has changed after its end but by a permitted way out",
        "somebody has written to the tables past the state machine: restore the row by its events",
    ),
    Check.BROKEN_HISTORY: (
        "every job's events form one chain that ends in its state",
        "somebody has written to the tables past the state machine: restore the row by its events",
    ),
    Check.INCOMPLETE_ARCHIVED_ROW: (
        "every archived row has its result, file, checksum and size",
        "the file is named after the job: fill the columns in from it",
    ),
    Check.DAMAGED_ARCHIVE: (
        "verify has found no archived file missing or changed",
        "extend-video rearchive, while fal still has the video; else restore the file",
    ),
    Check.UNRECORDED_RESULT: (
        "every result that fal has delivered could be recorded",
        "put right what the reason names, while fal still keeps the result: it is asked again",
    ),
    Check.UNANSWERED_POLLS: (
        "fal answers polls about every submitted request",
        "the detail has fal's reply: a wrong FAL_QUEUE_URL, a proxy, the key, or an outage of fal",
    ),
    Check.LATE_ARCHIVE: (
        "no completed job waits for its download beyond the deadline",
        "mend what holds it up before fal deletes the video: disk, network, FAL_MEDIA_HOSTS",
    ),
    Check.UNMATCHED_DELIVERY: (
        "every webhook that was taken has had its effect on its attempt",
        "ask fal for the request's status; the body is kept in deliveries",
    ),
    Check.STRAY_DELIVERY: (
        "every webhook with a token of ours has found its job's row",
        "a job lost by a restore, or pruned: keep its result, then delete the row here",
    ),
    Check.ARCHIVED_FILE: (
        "every archived file that was looked at is there, at its full size",
        "run this where the archive is mounted; restore the file, or fetch it from jobs.result",
    ),
    Check.ORPHAN_AT_FAL: (
        "every request at fal that is ours is an attempt's",
        "paid, and nobody waits for it: keep its result, or cancel it if it has not ended",
    ),
    Check.MISSING_AT_FAL: (
        "fal lists every request that it has finished for us",
        "the attempt may name a request of another account: compare the key with the job's",
    ),
}


def diagnosis_to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    names = ("jobs", "archived", "files", "listed")
    return {
        "clean": diagnosis.is_clean,
        "examined": {name: getattr(diagnosis, name) for name in names},
        "checks": {check.value: count for check, count in diagnosis.counts.items()},
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "notes": diagnosis.notes,
        "not_ours": diagnosis.not_ours,
    }


def print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """A sentence for each check that found nothing, a table for each other one, then the notes."""
    if as_json:
        display.print_json(diagnosis_to_json(diagnosis))
        return
    for check, count in diagnosis.counts.items():
        clean, remedy = ABOUT_CHECKS[check]
        if count == 0:
            display.out.print(f"[green]ok[/green]  {clean}")
            continue
        display.out.print(f"[red]{check.value}: {count}[/red]  {remedy}")
        _print_findings([one for one in diagnosis.findings if one.check is check], count)
    for note in diagnosis.notes:
        display.out.print(f"[yellow]note[/yellow]  {display.escape(note)}")
    sampled = "" if diagnosis.files == diagnosis.archived else f" of {diagnosis.archived}"
    listed = "" if diagnosis.listed is None else f", {diagnosis.listed} requests at fal"
    display.out.print(
        f"examined {diagnosis.jobs} jobs, {diagnosis.files}{sampled} archived files{listed}"
    )


def _print_findings(findings: list[Finding], count: int) -> None:
    table = Table("job", "attempt", "delivery", "fal request", "what", box=None, pad_edge=False)
    for one in findings:
        ids = (one.job_id, one.attempt_id, one.delivery_id, one.fal_request_id)
        table.add_row(
            *(display.escape(str(one_id or "")) for one_id in ids), display.escape(one.detail)
        )
    display.print_wide(table)
    if count > len(findings):
        display.out.print(f"and {count - len(findings)} more")
