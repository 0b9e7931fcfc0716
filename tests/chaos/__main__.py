"""`python -m tests.chaos`: every experiment in its long form, and one table at the end."""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.experiments import EXPERIMENTS
from tests.chaos.plan import LONG, SHORT
from tests.chaos.report import Finding, render_table, write_table
from tests.chaos.site import run_site
from tests.harness.servers import run_postgres
from worker.cli import termination_as_interrupt

DATABASES = ("sqlite", "postgresql")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if anything was lost, paid twice, or otherwise not as it should be."""
    given = build_parser().parse_args(arguments)
    findings = []
    for finding in run_experiments(given):
        print(render_table([finding]).splitlines()[-1], flush=True)
        for line in (*finding.details, *finding.problems):
            print(f"    {line}", flush=True)
        findings.append(finding)
    print(f"\n{render_table(findings)}")
    if given.write:
        write_table(findings, describe_command(given))
    return 0 if all(finding.is_clean for finding in findings) else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=tuple(EXPERIMENTS), help="may be repeated")
    add("--database", choices=(*DATABASES, "both"), default="both")
    add("--short", action="store_true", help="as CI runs it")
    add("--write", action="store_true", help="put the table into docs/reliability.md")
    add("--keep", type=Path, metavar="DIR", help="where logs and job tables are left")
    return parser


def run_experiments(given: argparse.Namespace) -> Iterator[Finding]:
    names = given.only or list(EXPERIMENTS)
    plan = SHORT if given.short else LONG
    databases = DATABASES if given.database == "both" else (given.database,)
    with ExitStack() as stack:
        root = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        for database in databases:
            server = run_postgres(survives_kill=True) if database == "postgresql" else None
            postgres = stack.enter_context(server) if server else None
            for name in names:
                experiment = EXPERIMENTS[name]
                with run_site(
                    root / database / name,
                    postgres,
                    changes=experiment.choose_settings(plan),
                    emulator_options=experiment.emulator,
                ) as site:
                    yield from experiment.conduct(site, plan)


def describe_command(given: argparse.Namespace) -> str:
    """As it is typed; without where it writes."""
    words = [f"--only {name}" for name in given.only or ()]
    words += [f"--database {given.database}"] if given.database != "both" else []
    words += ["--short"] if given.short else []
    return " ".join(["python -m tests.chaos", *words])


if __name__ == "__main__":
    # Whoever ends it leaves no process behind.
    with termination_as_interrupt():
        sys.exit(main())
