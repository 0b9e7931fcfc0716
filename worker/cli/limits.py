"""Limits of the account and its tenants, pauses by hand, and what was spent."""

from dataclasses import asdict
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import output
from worker.cli.options import FAILED, OK, Json, read_past
from worker.ground.clock import format_duration, read_clock
from worker.ground.errors import InvalidInputError, Violation
from worker.ground.money import format_usd, parse_usd
from worker.jobs import admission, charges, table
from worker.jobs.admission import ACCOUNT, TENANT
from worker.jobs.charges import CostKey
from worker.jobs.states import BlockedBy
from worker.runtime import Runtime, build_runtime

MOST_DIGITS = 9
if TYPE_CHECKING:
    from worker.ops.waiting import ScopeState

MONTH = timedelta(days=30)


class Action(StrEnum):
    """What is done with limits."""

    SHOW = "show"
    SET = "set"
    PAUSE = "pause"
    RESUME = "resume"


Scope = Annotated[str | None, typer.Argument(metavar="SCOPE", help="`account`, or `tenant:NAME`.")]
Cap = Annotated[
    str | None,
    typer.Option("--max-in-flight", metavar="N", help="Most attempts at fal at once; or none."),
]
Weight = Annotated[
    str | None,
    typer.Option(metavar="N", help="A tenant's share of what is admitted, to 1000; or none: 1."),
]
PerMinute = Annotated[
    str | None, typer.Option(metavar="N", help="Most submissions a minute; or none.")
]
Budget = Annotated[
    str | None,
    typer.Option("--daily-budget", metavar="USD", help="Most that a UTC day may cost; or none."),
]
Reason = Annotated[str | None, typer.Option(help="Why, for those who see the pause.")]


def limits(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.SHOW,
    scope: Scope = None,
    max_in_flight: Cap = None,
    weight: Weight = None,
    per_minute: PerMinute = None,
    daily_budget: Budget = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Show or set what may be submitted, pause and resume it.

    It takes effect at once. What is set to `none` has the value of the settings again, or no bound.
    A pause by hand ends by `resume` alone: no probe lifts it.

    Examples:
        extend-video limits
        extend-video limits set account --max-in-flight 10 --daily-budget 25.00
        extend-video limits set tenant:studio --weight 10 --max-in-flight 4
        extend-video limits pause account --reason "invoice to be checked"
        extend-video limits resume account

    """
    from worker.stages.pause import check_reason, check_scope, pause_scope, resume_scope

    runtime = build_runtime()
    if action is Action.SHOW:
        named = None if scope is None else check_scope(scope, "SCOPE")
        show(runtime, named, as_json=as_json)
        return
    named = check_scope(scope, "SCOPE")
    match action:
        case Action.SET:
            values = read_values(max_in_flight, weight, per_minute, daily_budget)
            set_values(runtime, named, values)
        case Action.PAUSE:
            pause_scope(named, check_reason(reason, "--reason"), db=runtime.db)
        case Action.RESUME:
            if not resume_scope(named, db=runtime.db):
                output.err.print(f"{named} was not paused by hand", markup=False)
                raise typer.Exit(FAILED)
            runtime.publish_room()
    show(runtime, named, as_json=as_json)


def read_values(
    max_in_flight: str | None, weight: str | None, per_minute: str | None, daily_budget: str | None
) -> dict[str, int | None]:
    """The columns to change. Raises InvalidInputError with every wrong option."""
    values: dict[str, int | None] = {}
    wrong: list[Violation] = []
    numbers = (
        ("max_in_flight", "--max-in-flight", max_in_flight, 10_000),
        ("weight", "--weight", weight, 1_000),
        ("per_minute", "--per-minute", per_minute, 100_000),
    )
    for column, option, text, most in numbers:
        if text == "none":
            values[column] = 1 if column == "weight" else None
        elif text is not None and is_whole(text) and 1 <= int(text) <= most:
            values[column] = int(text)
        elif text is not None:
            wrong.append(Violation(option, text, f"a whole number from 1 to {most}, or none"))
    if daily_budget is not None:
        try:
            amount = None if daily_budget == "none" else parse_usd(daily_budget)
            values["daily_budget_nano_usd"] = amount
        except ValueError as error:
            wrong.append(Violation("--daily-budget", daily_budget, f"{error}, or none"))
    if not values and not wrong:
        options = "--max-in-flight, --weight, --per-minute or --daily-budget"
        wrong.append(Violation("limits set", "(nothing)", options))
    if wrong:
        raise InvalidInputError(tuple(wrong))
    return values


def is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS


def set_values(runtime: Runtime, scope: str, values: dict[str, int | None]) -> None:
    """Write them; jobs that were too dear for the old budget are tried against the new one."""
    tenant = None if scope == ACCOUNT else scope.removeprefix(TENANT)
    with runtime.db.transaction() as connection:
        admission.set_limits(connection, scope, values)
        if "daily_budget_nano_usd" in values:
            table.hasten_blocked(connection, BlockedBy.BUDGET, tenant, read_clock())
    runtime.publish_room()


def show(runtime: Runtime, scope: str | None, *, as_json: bool) -> None:
    """The limits, what counts against them now, and the pauses."""
    from worker.ops.waiting import list_scopes

    with runtime.db.reading() as connection:
        now = admission.read_time(connection)
        states = list_scopes(connection, now, runtime.admission_policy.caps, scope)
        prices = charges.list_prices(connection)
    if as_json:
        age = {
            endpoint: {**asdict(price), "age_seconds": round((now - price.read_at).total_seconds())}
            for endpoint, price in prices.items()
        }
        output.print_json({"limits": [describe(one) for one in states], "prices": age})
        return
    for one in states:
        output.print_section(output.escape(one.scope))
        most, budget = one.max_in_flight, one.daily_budget_nano_usd
        today = f"{format_usd(one.spent_nano_usd)} USD"
        output.print_fields(
            {
                "in flight": one.in_flight if most is None else f"{one.in_flight} of {most}",
                "a minute": one.per_minute or "no bound",
                "weight": one.weight,
                "spent today": today if budget is None else f"{today} of {format_usd(budget)}",
                "paused": "; ".join(f"{pause.cause}: {pause.reason}" for pause in one.pauses)
                or "no",
            }
        )
    for price in prices.values():
        age_text = format_duration(now - price.read_at)
        text = f"{format_usd(price.unit_price_nano_usd)} USD a {price.unit}, read {age_text} ago"
        output.print_fields({"price": text})


def describe(state: "ScopeState") -> dict[str, Any]:
    """A scope as JSON has it."""
    return {
        "scope": state.scope,
        "max_in_flight": state.max_in_flight,
        "per_minute": state.per_minute,
        "daily_budget_nano_usd": state.daily_budget_nano_usd,
        "weight": state.weight,
        "in_flight": state.in_flight,
        "spent_today_nano_usd": state.spent_nano_usd,
        "pauses": [
            {
                "cause": one.cause.value,
                "reason": one.reason,
                "since": one.since,
                "until": one.until,
                "host": one.host,
            }
            for one in state.pauses
        ],
    }


# ------------------------------------------------------------------ costs


def costs(
    by: Annotated[CostKey, typer.Option(help="How amounts are grouped.")] = CostKey.DAY,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=read_past, metavar="TIME", help="Submitted at or after; all without it."
        ),
    ] = None,
    reconcile: Annotated[
        bool, typer.Option("--reconcile", help="Hold the ledger against fal's billing events.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what was spent, settled by fal's bills or reserved.

    Amounts are in USD; what has no bill yet is an estimate.

    `--reconcile` needs an admin key (FAL_ADMIN_KEY), names each difference, and exits with 1 if
    there is one: another amount, a request that fal has billed and no job of ours has, or what we
    count and fal has not billed a day after its run.

    Examples:
        extend-video costs
        extend-video costs --by tenant --since 7d
        extend-video costs --reconcile --since 30d --json

    """
    from worker.ops import spend

    runtime = build_runtime()
    differences: list[spend.Difference] = []
    if reconcile:
        with runtime.open_billing() as client:
            start, policy = since or read_clock() - MONTH, runtime.admission_policy
            differences += spend.reconcile(client, policy, start, db=runtime.db)
    lines, prices = spend.list_costs(by, since, db=runtime.db)
    total = sum(line.total_nano_usd for line in lines)
    if as_json:
        shown = [{**asdict(line), "total_nano_usd": line.total_nano_usd} for line in lines]
        output.print_json(
            {
                "by": by.value,
                "costs": shown,
                "prices": [asdict(price) for price in prices.values()],
                "differences": [asdict(one) for one in differences],
                "reconciled": reconcile,
            }
        )
    else:
        for line in lines:
            extra = f", {format_usd(line.extra_nano_usd)} extra" if line.extra_nano_usd else ""
            void = f", {line.voided} cost nothing" if line.voided else ""
            unpriced = f", {line.unpriced} without a price" if line.unpriced else ""
            amounts = (
                f"{format_usd(line.settled_nano_usd)} settled, "
                f"{format_usd(line.reserved_nano_usd)} reserved"
            )
            text = f"{format_usd(line.total_nano_usd)} USD ({amounts}{extra})"
            attempts = "attempt" if line.attempts == 1 else "attempts"
            output.print_fields({line.key: f"{text}, {line.attempts} {attempts}{void}{unpriced}"})
        if by is not CostKey.LABEL:
            output.print_fields({"total": f"{format_usd(total)} USD"})
        for one in differences:
            ours = "no attempt" if one.ledger_nano_usd is None else format_usd(one.ledger_nano_usd)
            words = f"{one.kind}: ledger {ours}, billed {format_usd(one.billed_nano_usd)} USD"
            output.print_fields({one.fal_request_id: words})
        if reconcile and not differences:
            output.out.print("the ledger agrees with fal's billing events")
    raise typer.Exit(FAILED if differences else OK)
