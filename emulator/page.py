"""`GET /`: what goes on in here, for people. It comes whole from the server and renews itself."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape

from aiohttp import web

from emulator.access import LEAKS
from emulator.ledger import count_most, group_by_input
from emulator.queue import Queue
from emulator.queue_routes import ENDPOINT, QUEUE
from emulator.records import FalRequest, Status
from emulator.spoiling import FAULTS, HOOKS
from emulator.upload_routes import UPLOADS

MOST_ROWS = 100
LONGEST_CELL = 120
RENEW_SECONDS = 2
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fdfdfc; --line: #d9dce1;
  --soft: #5f6772; --band: #f3f4f6; --good: #14713a; --bad: #b3261e; --busy: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #16181c; --line: #33383f;
  --soft: #9aa3ae; --band: #1e2126; --good: #6fd193; --bad: #ff8a80; --busy: #e9b558; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 20px 48px; background: var(--paper);
  color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 28px 0 8px; }
p { margin: 4px 0; color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0 0; }
dl div { border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px; min-width: 110px; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; font-size: 22px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 6px 12px; vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-size: 12px; font-weight: 600; background: var(--band); }
tr + tr td { border-top: 1px solid var(--line); }
td.text { white-space: normal; min-width: 200px; overflow-wrap: anywhere; }
code { font: 12px/1.5 ui-monospace, monospace; }
.good { color: var(--good); } .bad { color: var(--bad); } .busy { color: var(--busy); }
.none { color: var(--soft); padding: 10px 12px; }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Cell = tuple[object, str]
"""What stands in it, and its class."""


def add_page_routes(app: web.Application) -> None:
    app.router.add_get("/", show_page)


async def show_page(request: web.Request) -> web.Response:
    app = request.app
    queue = app[QUEUE]
    leaks = app[LEAKS].to_json()
    parts = [
        compose_totals(queue, len(leaks)),
        compose_unended(queue),
        compose_requests(queue.requests),
        compose_ledger(group_by_input(queue.requests)),
        compose_faults(app[FAULTS].to_json()),
        compose_hooks(app[HOOKS].to_json(), app[HOOKS].list_held()),
        compose_uploads(app[UPLOADS].to_json()),
        compose_leaks(leaks),
    ]
    return web.Response(text=compose_page(parts), content_type="text/html")


def compose_page(parts: Iterable[str]) -> str:
    now = datetime.now(UTC).strftime("%H:%M:%S UTC")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{RENEW_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fal emulator</title><style>{STYLE}</style></head><body>"
        f"<h1>fal emulator</h1><p>{escape(ENDPOINT)} on loopback, as of {now}; no model is used."
        f"</p>{''.join(parts)}</body></html>"
    )


def compose_totals(queue: Queue, leaks: int) -> str:
    """The ledger in brief."""
    requests = queue.requests
    totals = {
        "submissions": len(requests),
        "charges": sum(one.is_charged for one in requests),
        "waiting": queue.waiting_count,
        "running": f"{len(queue.running)} of {queue.concurrency}",
        "most at once": count_most((one.submitted_at, one.completed_at) for one in requests),
        "webhook POSTs": sum(len(one.deliveries) for one in requests),
        "leaks": leaks,
    }
    boxes = [compose_total(name, count) for name, count in totals.items()]
    return f"<dl>{''.join(boxes)}</dl>"


def compose_total(name: str, count: object) -> str:
    color = ' class="bad"' if name == "leaks" and count else ""
    return f"<div><dt>{name}</dt><dd{color}>{count}</dd></div>"


def compose_unended(queue: Queue) -> str:
    """What runs and what waits, in the order in which each will have its turn."""
    now = datetime.now(UTC)
    rows: list[Sequence[Cell]] = [
        (
            ("running", "busy"),
            (one.prompt, "text"),
            (describe_age(now, one.started_at), ""),
            ("", ""),
            (Html(f"<code>{escape(one.request_id)}</code>"), ""),
        )
        for one in queue.running
    ]
    rows += [
        (
            (f"waiting, {ahead} ahead", ""),
            (one.prompt, "text"),
            (describe_age(now, one.submitted_at), ""),
            (describe_timeout(now, one), ""),
            (Html(f"<code>{escape(one.request_id)}</code>"), ""),
        )
        for ahead, one in enumerate(queue.waiting)
    ]
    heads = ("state", "prompt", "for", "start timeout in", "request")
    title = f"At fal now ({len(queue.running)} running, {queue.waiting_count} waiting)"
    return compose_table(title, heads, rows[:MOST_ROWS], "Nothing runs, nothing waits.")


def describe_age(now: datetime, since: datetime | None) -> str:
    return "" if since is None else f"{(now - since).total_seconds():.1f} s"


def describe_timeout(now: datetime, request: FalRequest) -> str:
    if request.start_timeout is None:
        return "no limit"
    left = request.submitted_at + request.start_timeout - now
    return f"{max(left, timedelta(0)).total_seconds():.1f} s"


def compose_requests(requests: Sequence[FalRequest]) -> str:
    newest = requests[::-1][:MOST_ROWS]
    rows = [
        (
            (one.submitted_at.strftime("%H:%M:%S"), ""),
            (describe_state(one), choose_color(one)),
            (one.prompt, "text"),
            (describe_time(one), ""),
            ("yes" if one.is_charged else "no", ""),
            (describe_deliveries(one), ""),
            (Html(f"<code>{escape(one.request_id)}</code>"), ""),
        )
        for one in newest
    ]
    heads = ("submitted", "status", "prompt", "ran", "charged", "webhooks", "request")
    title = f"Requests ({len(requests)}, newest first)"
    return compose_table(title, heads, rows, "Nothing was submitted yet.")


def describe_state(request: FalRequest) -> str:
    """Fal's status, and how it ended."""
    outcome = request.outcome
    words = [str(request.status)]
    if outcome is not None:
        words.append(str(outcome.status_code))
        words.append(outcome.error_type or "")
    words += ["cancel requested"] if request.is_cancel_requested and outcome is None else []
    words += ["erased"] if request.is_erased else []
    return " ".join(filter(None, words))


def describe_time(request: FalRequest) -> str:
    """How long it ran; nothing for one that did not, or has not ended."""
    if request.outcome is None or not request.is_charged:
        return ""
    return f"{request.inference_time.total_seconds():.1f} s"


def choose_color(request: FalRequest) -> str:
    if request.outcome is None:
        return "busy" if request.status is Status.IN_PROGRESS else ""
    return "good" if request.outcome.error is None else "bad"


def describe_deliveries(request: FalRequest) -> str:
    if request.webhook_url is None:
        return "none wanted"
    answers = [str(one.status_code or one.error) for one in request.deliveries]
    return ", ".join(answers) or "none yet"


def compose_ledger(groups: Sequence[Mapping[str, object]]) -> str:
    """The inputs that came more than once: here a job that was paid twice would show."""
    rows = [
        ((one["prompt"], "text"), (one["submissions"], ""), (one["charges"], "bad"))
        for one in groups
        if one["submissions"] != 1
    ][::-1][:MOST_ROWS]
    title = "Ledger: inputs that were submitted more than once"
    return compose_table(title, ("prompt", "submissions", "charges"), rows, "None.")


def compose_faults(faults: Sequence[Mapping[str, object]]) -> str:
    known = ("point", "kind", "rate", "times", "match", "fired")
    rows = [
        (
            (f"{one['point']}/{one['kind']}", ""),
            (join({name: value for name, value in one.items() if name not in known}), "text"),
            (one["rate"], ""),
            ("no limit" if one["times"] is None else one["times"], ""),
            (join(read_mapping(one["match"])), ""),
            (one["fired"], ""),
        )
        for one in faults
    ]
    heads = ("fault", "options", "rate", "times", "match", "fired")
    return compose_table("Faults in force", heads, rows, "None: all goes well.")


def compose_hooks(
    armed: Sequence[Mapping[str, object]], held: Sequence[Mapping[str, object]]
) -> str:
    rows: list[Sequence[Cell]] = [
        (
            ("armed", ""),
            (one["point"], ""),
            ("each time" if one["times"] is None else f"{one['times']} times more", ""),
            (join(read_mapping(one["match"])), ""),
        )
        for one in armed
    ]
    rows += [
        (("held", "busy"), (one["point"], ""), (f"as {one['id']}", ""), (one["request_id"], ""))
        for one in held
    ]
    return compose_table("Hooks", ("state", "point", "how", "request"), rows, "None armed.")


def compose_uploads(uploads: Sequence[Mapping[str, object]]) -> str:
    rows = [
        (
            (one["name"], "text"),
            (one["content_type"], ""),
            (f"{one['parts']} parts" if one["multipart"] else "at once", ""),
            (one["bytes"], ""),
            ("completed" if one["completed"] else "under way", ""),
        )
        for one in uploads[::-1][:MOST_ROWS]
    ]
    heads = ("file", "type", "how", "bytes", "state")
    return compose_table("Uploads", heads, rows, "None yet.")


def compose_leaks(leaks: Sequence[Mapping[str, object]]) -> str:
    names = ("at", "place", "credential", "method", "path")
    rows = [[(one[name], "bad" if name == "credential" else "") for name in names] for one in leaks]
    return compose_table("Credentials that came to the wrong place", names, rows, "None.")


def compose_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], nothing: str
) -> str:
    head = f"<h2>{escape(title)}</h2>"
    if not rows:
        return f'{head}<div class="wide none">{escape(nothing)}</div>'
    cells = "".join(f"<th>{escape(one)}</th>" for one in heads)
    lines = "".join(f"<tr>{''.join(map(compose_cell, row))}</tr>" for row in rows)
    return f'{head}<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'


def compose_cell(cell: Cell) -> str:
    value, kind = cell
    if isinstance(value, Html):
        shown = str(value)
    else:
        text = "" if value is None else str(value)
        shown = escape(text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…")
    return f'<td class="{kind}">{shown}</td>' if kind else f"<td>{shown}</td>"


def read_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def join(named: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in named.items() if value)
