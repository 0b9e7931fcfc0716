"""`GET /jobs`: what goes on, for people, and their orders: cancel, redrive, pause, resume.

Server-rendered; reads are short statements, orders call one stage and ring afterwards, as the
shell does.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

import structlog
from flask import (
    Blueprint,
    Flask,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, NotFound

from webhook.page.board import HEIGHT, WIDTH, BoardReader, plot_latency, plot_throughput
from webhook.page.files import Part, Sender, open_sender
from webhook.page.login import (
    Credentials,
    Doorkeeper,
    Throttle,
    add_headers,
    configure_sessions,
)
from worker.broker.dispatch import Dispatcher
from worker.ground.clock import Clock, format_briefly, format_duration, read_clock
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import (
    InvalidInputError,
    JobNotFoundError,
    PaysAgainError,
    StoreObjectMissingError,
    StoreUnavailableError,
    TooLateError,
)
from worker.ground.log import FORMS, MASK, Form, compile_secrets, mask_text
from worker.ground.money import format_usd
from worker.ground.settings import Settings, list_secrets
from worker.jobs import charges, queries
from worker.jobs.admission import Caps
from worker.jobs.queries import JobFilter, Place, parse_filter
from worker.jobs.states import ENDED, Doorbell, JobState, Step
from worker.jobs.values import Job
from worker.ops.timeline import explain_failure, read_story
from worker.ops.waiting import list_scopes, read_holds
from worker.stages.admit import choose_time
from worker.stages.cancel import CANCELLABLE, cancel_job
from worker.stages.pause import check_reason, check_scope, pause_scope, resume_scope
from worker.stages.redrive import REDRIVABLE, redrive_job
from worker.stages.resolve import ResolvePolicy

# ------------------------------------------------------------------ query


LONGEST_TEXT = 200
FIELDS = ("state", "tenant", "label", "since", "until", "text")


class Masker:
    """Masks our own secrets by their text, and others by their form; folds long encoded bytes.

    A URL keeps its place and loses its query, for signatures stand there.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._pattern = compile_secrets(secrets)

    def mask(self, text: str) -> str:
        # Our own go first: another form could hide only a part of one.
        return mask_text(mask_text(text, self._pattern, ()), forms=PAGE_FORMS)

    def mask_output(self, value: object) -> object:
        """As a template prints it: what is markup already was masked when it was made."""
        is_text = isinstance(value, str) and not hasattr(value, "__html__")
        return self.mask(str(value)) if is_text else value

    def mask_json(self, value: object) -> object:
        """The same for every text within it."""
        match value:
            case dict():
                return {self.mask(str(name)): self.mask_json(one) for name, one in value.items()}
            case list():
                return [self.mask_json(one) for one in value]
            case str():
                return self.mask(value)
            case _:
                return value


def _cut_query(found: re.Match[str]) -> str:
    place = re.sub(r"(://)[^/@\s]*@", rf"\1{MASK}@", found["place"])
    return place + (f"?{MASK}" if found["query"] and len(found["query"]) > 1 else "")


def _fold(found: re.Match[str]) -> str:
    return f"{found[0][:LONGEST_DATA_URI]}… ({len(found[0])} characters)"


PAGE_FORMS: tuple[Form, ...] = (
    (
        re.compile(r"data:[a-z0-9.+-]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=]{64,}", re.IGNORECASE),
        _fold,
    ),
    # Without its scheme: to search for one at each letter takes the square of a long text's time.
    (re.compile(r"(?P<place>://[^\s\"'<>?#]+)(?P<query>\?[^\s\"'<>#]*)?"), _cut_query),
    *FORMS,
    (re.compile(r"(?i)\b((?:key|bearer|basic)\s+)[A-Za-z0-9._~+/:=-]{16,}"), rf"\1{MASK}"),
)


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What an address selects; `wrong` has, by field, what cannot be understood."""

    wanted: JobFilter
    place: Place | None
    is_backward: bool
    fields: Mapping[str, str]
    wrong: Mapping[str, str]

    def link(self, **changes: str | None) -> str:
        """The address of the same list with other fields; from its beginning."""
        fields = {**self.fields, **changes}
        return f"?{urlencode({name: text for name, text in fields.items() if text})}"


def read_query(arguments: Mapping[str, str], now: datetime) -> ListQuery:
    """A field that cannot be understood is named, and does not narrow the list."""
    given = {name: arguments.get(name, "").strip()[:LONGEST_TEXT] for name in FIELDS}
    fields = {name: text for name, text in given.items() if text}
    wanted, wrong = parse_filter(fields, now)
    older, newer = (read_place(arguments.get(name, "")) for name in ("older", "newer"))
    return ListQuery(wanted, older or newer, older is None and newer is not None, fields, wrong)


def write_place(place: Place) -> str:
    return f"{place.enqueued_at.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{place.id.hex}"


def read_place(text: str) -> Place | None:
    """None if it is none: then the list begins at its beginning."""
    at, _, digits = text.partition("-")
    try:
        return Place(datetime.strptime(at, "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC), UUID(digits))
    except ValueError:
        return None


# ------------------------------------------------------------------ filters


def list_filters(masker: Masker) -> dict[str, Callable[..., str]]:
    return {
        "mask": lambda value: masker.mask(str(value)),
        "pretty": lambda value: json.dumps(masker.mask_json(value), indent=2, ensure_ascii=False),
        "duration": format_duration,
        "brief": format_briefly,
        "clock": lambda at: f"{at:%Y-%m-%d %H:%M:%S}",
        "words": lambda name: str(name).replace("_", " "),
        "amount": format_bytes,
        "usd": lambda nano_usd: f"{format_usd(nano_usd)} USD",
    }


def format_bytes(count: int) -> str:
    amount, units = float(count), ["B", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:  # noqa: PLR2004 - as units go
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] in {"B", "kB"} else f"{amount:.1f} {units[0]}"


LINES = 50
MOST_SCOPES = 100
NOTICES = {"paused": "Submissions are paused.", "resumed": "Submissions go on."}
LONGEST_DATA_URI = 64

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JobsPage:
    """What its views work with."""

    db: Database
    dispatcher: Dispatcher
    board: BoardReader
    masker: Masker
    policy: ResolvePolicy
    sender: Sender
    caps: Caps
    clock: Clock = read_clock

    def show_jobs(self) -> ResponseReturnValue:
        query = read_query(request.args, self.clock())
        board = self.board.read()
        with self.db.reading() as connection:
            found = queries.list_page(
                connection,
                query.wanted,
                place=query.place,
                limit=LINES,
                is_backward=query.is_backward,
            )
        return render_template(
            "jobs.html",
            query=query,
            board=board,
            found=found,
            holds=read_holds(found.lines, db=self.db, clock=self.clock),
            links=link_pages(query, found),
            throughput=plot_throughput(board.hours),
            latency=plot_latency(board.hours),
            now=self.clock(),
        )

    def show_job(self, job_id: UUID, *, problem: str | None = None) -> str:
        story = read_story(job_id, db=self.db, policy=self.policy, clock=self.clock)
        job = story.job
        return render_template(
            "job.html",
            story=story,
            job=job,
            wait=story.wait,
            longest=max((one.duration for one in story.stays if one.duration), default=None),
            explanation=explain_failure(job, story.attempts),
            media={part.value: self.sender.find(job, part) for part in Part},
            may_cancel=job.state in CANCELLABLE,
            may_redrive=job.state in REDRIVABLE,
            is_ended=job.state in ENDED,
            notice=choose_notice(request.args.get("done", ""), job),
            problem=problem,
        )

    def show_limits(self, *, problem: str | None = None) -> str:
        """What is allowed, what is used of it, what was spent today, and what is paused."""
        with self.db.reading() as connection:
            now = choose_time(connection, self.clock)
            scopes = list_scopes(connection, now, self.caps)
            prices = list(charges.list_prices(connection).values())
        return render_template(
            "limits.html",
            scopes=scopes[:MOST_SCOPES],
            left_out=len(scopes[MOST_SCOPES:]),
            prices=prices,
            notice=NOTICES.get(request.args.get("done", "")),
            problem=problem,
            now=now,
        )

    def pause(self) -> ResponseReturnValue:
        """Of the account, or of a tenant; with a reason for those who will see it."""
        try:
            scope = check_scope(request.form.get("scope", "").strip())
            reason = check_reason(request.form.get("reason"))
        except InvalidInputError as error:
            return self.show_limits(problem=str(error.violations[0])), 400
        pause_scope(scope, reason, db=self.db, clock=self.clock)
        log.warning("page_pause", scope=scope, reason=reason, address=request.remote_addr)
        return redirect(url_for("page.show_limits", done="paused"), 303)

    def resume(self) -> ResponseReturnValue:
        """End a pause by hand; what fal or the archive has paused ends by its own rule only."""
        try:
            scope = check_scope(request.form.get("scope", ""))
        except InvalidInputError as error:
            return self.show_limits(problem=str(error.violations[0])), 400
        if not resume_scope(scope, db=self.db):
            return self.show_limits(problem=f"{scope} is not paused by hand"), 409
        self.dispatcher.publish(Doorbell(Step.SUBMIT))
        log.warning("page_resume", scope=scope, address=request.remote_addr)
        return redirect(url_for("page.show_limits", done="resumed"), 303)

    def show_file(self, job_id: UUID, part: str) -> ResponseReturnValue:
        """The archived video or its poster, with ranges; as a download with `?download`."""
        with self.db.reading() as connection:
            jobs = queries.list_by_ids(connection, [job_id])
        found = self.sender.find(jobs[0], Part(part)) if jobs else None
        if found is None:
            raise NotFound("There is no such file in this receiver's archive.")
        answer = self.sender.send(found)
        if "download" in request.args:
            name = f"{job_id}{found.suffix}"
            answer.headers.set("Content-Disposition", "attachment", filename=name)
        return answer

    def cancel(self, job_id: UUID) -> ResponseReturnValue:
        try:
            cancelled = cancel_job(job_id, db=self.db, clock=self.clock)
        except TooLateError as error:
            return self.show_job(job_id, problem=str(error)), 409
        self.dispatcher.publish(cancelled.doorbell)
        log.info("page_cancel", job_id=str(job_id), address=request.remote_addr)
        is_done = cancelled.job.state is JobState.CANCELLED
        return return_to(job_id, "cancelled" if is_done else "cancel_asked")

    def redrive(self, job_id: UUID) -> ResponseReturnValue:
        """Without `pay_again` no money is spent: that needs a second form, and a tick."""
        pay_again = request.form.get("pay_again") == "yes"
        try:
            job = redrive_job(
                job_id,
                db=self.db,
                pay_again=pay_again,
                dispatch_timeout=self.policy.dispatch_timeout,
                clock=self.clock,
            )
        except PaysAgainError:
            story = read_story(job_id, db=self.db)
            return render_template("pay_again.html", job=story.job, attempts=story.attempts), 409
        except TooLateError as error:
            return self.show_job(job_id, problem=str(error)), 409
        self.dispatcher.publish(job.doorbell)
        facts = {"address": request.remote_addr, "pay_again": pay_again}
        log.info("page_redrive", job_id=str(job_id), **facts)
        return return_to(job_id, "redriven")


def return_to(job_id: UUID, done: str) -> ResponseReturnValue:
    return redirect(url_for("page.show_job", job_id=job_id, done=done), 303)


def choose_notice(done: str, job: Job) -> str | None:
    """What an order has led to, as long as it is true: the address with it is loaded again."""
    if job.state is JobState.CANCELLED and done in {"cancelled", "cancel_asked"}:
        return "The job is cancelled."
    notices = {
        "cancel_asked": "fal is asked to cancel it; a result that comes anyway is archived.",
        "redriven": "The job goes on.",
    }
    return None if job.state in ENDED else notices.get(done)


def link_pages(query: ListQuery, found: queries.JobPage) -> dict[str, str]:
    """Where `newer`, `older` and `further` lead; only what leads somewhere is in it."""
    first, last = (found.lines[place].place if found.lines else None for place in (0, -1))
    older, newer = (last, found.following) if query.is_backward else (found.following, first)
    is_full = len(found.lines) == LINES
    links = dict[str, str]()
    if older is not None:
        name = "older" if is_full or query.is_backward else "further"
        links[name] = query.link(older=write_place(older))
    if newer is not None and query.place is not None:
        links["newer"] = query.link(newer=write_place(newer))
    return links


def register_page(app: Flask, settings: Settings, db: Database, dispatcher: Dispatcher) -> None:
    """Add the page, if there is anything to open it with; else its addresses do not exist."""
    credentials = Credentials(settings)
    if not credentials.are_set:
        return
    budget = settings.daily_budget_usd
    caps = Caps(settings.max_in_flight, settings.submits_per_minute, budget)
    page = JobsPage(
        db=db,
        dispatcher=dispatcher,
        board=BoardReader(db, read_clock, caps),
        caps=caps,
        masker=Masker(list_secrets(settings)),
        policy=ResolvePolicy(
            unknown_after=settings.unknown_seconds,
            policy=settings.unknown_policy,
            max_attempts=settings.max_attempts,
            dispatch_timeout=settings.lease_seconds,
            start_timeout=settings.start_timeout_seconds,
        ),
        sender=open_sender(settings),
    )
    configure_sessions(app, settings)
    doorkeeper = Doorkeeper(credentials, Throttle(), db)
    app.register_blueprint(build_blueprint(page, doorkeeper))
    # All that a template prints goes through it, so that none can be forgotten.
    app.jinja_env.finalize = page.masker.mask_output


def build_blueprint(page: JobsPage, doorkeeper: Doorkeeper) -> Blueprint:
    here = Path(__file__).parent
    routes = Blueprint(
        "page",
        __name__,
        url_prefix="/jobs",
        static_folder=str(here / "static"),
        template_folder=str(here / "templates"),
    )
    routes.before_request(doorkeeper.check_request)
    routes.after_request(add_headers)
    routes.get("")(page.show_jobs)
    routes.get("/limits")(page.show_limits)
    routes.post("/limits/pause")(page.pause)
    routes.post("/limits/resume")(page.resume)
    routes.get("/<uuid:job_id>")(page.show_job)
    routes.get("/<uuid:job_id>/<any(video, poster):part>")(page.show_file)
    routes.post("/<uuid:job_id>/cancel")(page.cancel)
    routes.post("/<uuid:job_id>/redrive")(page.redrive)
    routes.get("/login")(doorkeeper.show_login)
    routes.post("/login")(doorkeeper.log_in)
    routes.get("/session")(doorkeeper.show_session)
    routes.post("/logout")(doorkeeper.log_out)
    routes.get("/")(lambda: redirect(url_for("page.show_jobs"), 301))
    routes.get("/<path:_>")(show_nothing)
    for name, show in list_filters(page.masker).items():
        routes.add_app_template_filter(show, name)
    routes.context_processor(lambda: {"WIDTH": WIDTH, "HEIGHT": HEIGHT})
    routes.register_error_handler(Exception, show_error)
    return routes


def show_nothing(_: str) -> ResponseReturnValue:
    """Unknown addresses below the list are answered by a page, too."""
    raise NotFound("There is no such page. The list finds jobs by their id, or how it begins.")


def show_error(error: Exception) -> ResponseReturnValue:
    """As a page, in words; what is no one's mistake is logged."""
    headers: dict[str, str] = {}
    status, title, words = 500, "Something broke", "The receiver's log says what."
    match error:
        case HTTPException():
            status, title, words = error.code or 500, error.name, error.description or ""
            pause = getattr(error, "retry_after", None)
            headers = {} if pause is None else {"Retry-After": str(pause)}
        case JobNotFoundError() | StoreObjectMissingError():
            status, title, words = 404, "Not found", str(error)
        case StoreUnavailableError():
            log.error("archive_unavailable", reason=str(error))
            status, title, words = 503, "The archive cannot be read", str(error)
        case SQLAlchemyError():
            log.error("database_unavailable", reason=describe_database_error(error))
            status, title = 503, "The job table cannot be read"
            words = "The database is unavailable, or its schema outdated: extend-video migrate."
        case _:
            log.error("page_broken", exc_info=error)
    return render_template("message.html", title=title, words=words, status=status), status, headers
