"""The parts of `make soak`: what each shows, and the commands that show it.

A part is the folder below `tests/soak` that has its name, if there is one, and the commands here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
DATABASES = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Command:
    """Arguments of `python -m`; pytest's own reporting is added to those of pytest."""

    words: Sequence[str]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pytest(self) -> bool:
        return self.words[0] == "pytest"


@dataclass(frozen=True)
class Part:
    name: str
    shows: str
    others: Sequence[Command] = ()
    """What is run besides the part's folder."""
    options: Sequence[str] = ()
    """For pytest in the part's folder."""

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def commands(self) -> list[Command]:
        if not self.folder.exists():
            return list(self.others)
        return [Command(("pytest", f"tests/soak/{self.name}", *self.options)), *self.others]


def experiment(name: str) -> list[Command]:
    """One of `tests.chaos`, on each database."""
    return [
        Command(("tests.chaos", "--only", name, "--database", database)) for database in DATABASES
    ]


FUZZ = [
    Command(("pytest", "tests/receiver/test_mutations.py"), {"FUZZ_DELIVERIES": "100000"}),
    Command(("pytest", "-m", "hypothesis"), {"HYPOTHESIS_PROFILE": "soak"}),
]
ALONE = ("-n", "0")

PARTS = [
    Part(
        "kills",
        "500 kills on each database lose nothing and pay nothing twice",
        experiment("kills"),
    ),
    Part(
        "outages",
        "a broker, a database, webhooks and a gateway that fail; 1,000 jobs after a power cut",
        [
            *experiment("broker"),
            *experiment("database"),
            *experiment("webhooks"),
            *experiment("gateway"),
            *experiment("recovery"),
        ],
    ),
    Part(
        "admission",
        "the account's limits, its tenants and its budget hold in batches, races, kills and stalls",
        options=("-n", "0"),
    ),
    Part("rabbitmq", "end to end over RabbitMQ's quorum queues"),
    Part("pgbouncer", "end to end with PgBouncer before PostgreSQL, by session and by transaction"),
    Part("brokers", "Redis behind TLS and behind sentinels"),
    Part("deployments", "the wheel, Compose's services and nginx as processes; `up` and `demo`"),
    Part("pythons", "`make demo` and a part of `make test` from fresh clones, for each Python"),
    Part("rolling", "a rolling restart under load; the previous release on the new schema"),
    Part(
        "migrations", "an upgrade of a million rows holds up no writer", options=("-n", "0", "-s")
    ),
    Part("canary", "planted secrets show up nowhere; one trace of a job"),
    Part("drain", "daemons end in time, also without servers, and say when they are stuck"),
    Part(
        "bombs",
        "what takes too much harms no worker of 512 MiB, and kills three at most",
        options=ALONE,
    ),
    Part("fuzz", "100,000 mutated webhooks; 500 examples of each property", FUZZ),
    Part("browser", "the page in Chromium"),
    Part("s3", "stores over a real S3 API"),
    Part("javascript", "fal's JavaScript client against the emulator"),
    Part("emulator", "fal's asynchronous Python client against the emulator; an upload of 192 MiB"),
    Part("benchmarks", "each benchmark runs in its short form", options=ALONE),
]
