"""Write the pages of docs/ that are made of the code: `python -m tests.documents`.

Each page is one function, named in PAGES; `tests/test_docs.py` compares them with the files.
"""

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

import worker.fal
from worker.cli import COMMANDS, build_command
from worker.ground.errors import ExtendVideoError
from worker.ground.settings import (
    HTTP_URL,
    MAX_SECONDS,
    SECRET_FIELDS,
    HttpUrl,
    Settings,
    UnknownPolicy,
)

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 96
GENERATED = "<!-- Generated from the code by `make docs`; do not edit. -->"


def write_table(heading: str, rows: Iterable[tuple[str, ...]]) -> str:
    columns = [one.strip() for one in heading.split("|")]
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.split()) for cell in row)} |\n" for row in lines)


# ------------------------------------------------------------------ docs/configuration.md


def write_configuration() -> str:
    rows = [
        (f"`{name.upper()}`", show_default(field), show_bounds(name, field), str(field.description))
        for name, field in Settings.model_fields.items()
    ]
    return f"""# Configuration

{GENERATED}

Settings come from the environment or a file `.env`; the environment wins. Each can also come from a
file that the variable with `_FILE` at its end names (`FAL_KEY_FILE=/run/secrets/fal_key`), as
secrets of Docker, Kubernetes and systemd do; giving both is an error. An empty variable counts as
not set. Wrong settings end every process at its start with `invalid_settings`, which names each
variable, its value (never a secret) and what is allowed.

Proxies and certificate authorities are the usual variables (`HTTPS_PROXY`, `NO_PROXY`,
`SSL_CERT_FILE`, `SSL_CERT_DIR`): [deployment](deployment.md). Tracing has OpenTelemetry's
(`OTEL_EXPORTER_OTLP_ENDPOINT`): [operations](operations.md).

{write_table("variable | default | allowed | meaning", rows)}"""


def show_default(field: FieldInfo) -> str:
    match field.default:
        case None:
            return "none"
        case bool():
            return f"`{str(field.default).lower()}`"
        case timedelta():
            return f"`{field.default.total_seconds():g}`"
        case _:
            return f"`{field.default}`"


def show_bounds(name: str, field: FieldInfo) -> str:
    """What pydantic checks, in words."""
    kinds = [field.annotation, *get_args(field.annotation)]
    limits = {
        side: value
        for limit in field.metadata
        for side in ("ge", "le")
        if (value := getattr(limit, side, None)) is not None
    }
    choices = [one for one in kinds if isinstance(one, str)]
    choices += [one.value for one in field.annotation] if field.annotation is UnknownPolicy else []
    if name in SECRET_FIELDS:
        shown = "secret"
    elif isinstance(field.default, timedelta):
        shown = f"seconds, 1 to {MAX_SECONDS}"
    elif limits:
        unit = "bytes" if "bytes" in name else "seconds" if "seconds" in name else "whole number"
        most = f" to {limits['le']}" if "le" in limits else " or more"
        shown = f"{unit}, {limits['ge']}{most}"
    elif bool in kinds:
        shown = "`true` or `false`"
    elif choices:
        shown = " or ".join(f"`{one}`" for one in choices)
    else:
        is_url = HttpUrl in kinds or HTTP_URL in field.metadata
        is_amount = name.endswith("_usd")
        shown = "http(s) URL" if is_url else "USD, such as `12.50`" if is_amount else "text"
    return shown


# ------------------------------------------------------------------ docs/errors.md

# Codes that stand for a reply, a message or a state, not for an exception: meaning, what to do.
OTHER_CODES = {
    "archive_deadline_near": (
        "Logged once for a result: it is paid for, late, and still only at fal.",
        "Fix what `show ID` names (disk, network, `FAL_MEDIA_HOSTS`); `doctor` lists such jobs.",
    ),
    "database_unavailable": (
        "The job table cannot be reached.",
        "Check `DATABASE_URL`, and the database itself.",
    ),
    "enqueue_impossible": (
        "The database refuses the values of a message, however often it is tried.",
        "The log line has the cause.",
    ),
    "fal_error": ("fal reported a failure without naming a type.", "See `jobs.error_message`."),
    "fal_http_401`, `fal_http_403": (
        "fal refuses the account: all submissions pause, jobs wait in `queued`.",
        "Check key, balance and locks of the account.",
    ),
    "expired": (
        "The job was not submitted by its `expires_at`; nothing was paid.",
        "Enqueue it again with a later time.",
    ),
    "fal_http_429": (
        "fal has too many requests of the account: all submissions pause, as long as fal requests.",
        "Nothing; if it persists, lower `MAX_IN_FLIGHT`.",
    ),
    "fal_http_4xx": (
        "fal refused the request without naming a type.",
        "See `jobs.error_message`.",
    ),
    "fal_unavailable": (
        "fal's gateway answered 503; the job waits and is retried.",
        "Nothing, unless it persists.",
    ),
    "fal_unreachable": (
        "No connection to fal; the job waits and is retried.",
        "Check the network to `FAL_QUEUE_URL`.",
    ),
    "malformed_message": (
        "An entry of a queue is no task message; it was removed and is a row of `job_requests`.",
        "The log line says what is wrong with it; fix the producer's library.",
    ),
    "message_compressed`, `message_too_large": (
        "A message with the header `compression`, or a body over 32 MiB, was refused unread.",
        "Send a URL, not the video.",
    ),
    "result_gone": (
        "fal finished the request, but erased its result before it could be read.",
        "`redrive` asks fal once more for free, `--pay-again` buys a new run.",
    ),
    "submission_exhausted": (
        "fal declined the job for `RETRY_SECONDS`, or `MAX_ATTEMPTS` submissions were lost.",
        "The message says which; `redrive` once the cause is fixed.",
    ),
    "unknown_task": (
        "A message names a task that workers do not have.",
        "Look for a misspelt name at the producer: `task` is in the log line.",
    ),
}


def list_errors() -> list[type[ExtendVideoError]]:
    """Every error with a code of its own: those of the ground, and those of fal's modules."""
    for module in pkgutil.iter_modules(worker.fal.__path__):
        import_module(f"worker.fal.{module.name}")
    kinds, found = [ExtendVideoError], []
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found += [kind] if "code" in kind.__dict__ and kind.__module__.startswith("worker") else []
    return found


def write_errors() -> str:
    meanings = dict(OTHER_CODES)
    for kind in list_errors():
        meaning, _, advice = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        meanings[kind.code] = (meaning, advice)
    rows = [(f"`{code}`", *meanings[code]) for code in sorted(meanings)]
    return f"""# Errors

{GENERATED}

`jobs.error_code`, log lines and answers carry one of these codes, or fal's own error type verbatim,
such as `content_policy_violation` ([fal's own types](operations.md#fals-own-types)). Codes are
stable; messages are not.

{write_table("code | means | what to do", rows)}"""


# ------------------------------------------------------------------ docs/cli.md


def write_cli() -> str:
    """The help of each command, as a terminal shows it."""
    sections = "\n".join(f"## {name}\n\n{show_help(name)}" for name in COMMANDS)
    return f"""# Commands

{GENERATED}

`extend-video COMMAND`. Where a command prints data, `--json` prints it for programs. Exit codes: 0
ok, 1 the command's subject failed, 2 wrong usage, 130 interrupted. A TIME is a date or time, in UTC
unless it has an offset (`2026-11-24`, `2026-11-24T18:30`), or an age (`90s`, `15m`, `2h`, `7d`,
`3w`). Shell completion: `extend-video --install-completion`.

{sections}"""


def show_help(name: str) -> str:
    command = build_command(name)
    if name == "emulator":
        return f"{COMMANDS[name].summary} [The emulator](emulator.md) has them.\n"
    context = command.make_context(
        f"extend-video {name}", [], resilient_parsing=True, terminal_width=WIDTH
    )
    return f"```text\n{command.get_help(context)}\n```\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": write_configuration,
    "docs/errors.md": write_errors,
    "docs/cli.md": write_cli,
}


def main() -> None:
    for name, write in PAGES.items():
        (ROOT / name).write_text(write())
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
