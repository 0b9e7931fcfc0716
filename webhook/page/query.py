"""The page's address as a filter and a place in the list, and back again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from worker.ground.clock import read_moment
from worker.jobs.queries import JobFilter, Place, parse_label
from worker.jobs.states import JobState

LONGEST_TEXT = 200
FIELDS = ("state", "tenant", "label", "since", "until", "text")


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What an address asks for; `wrong` has, by field, what cannot be understood."""

    wanted: JobFilter
    place: Place | None
    is_backward: bool
    fields: Mapping[str, str]
    wrong: Mapping[str, str]

    @property
    def is_filtered(self) -> bool:
        return bool(self.fields)

    def link(self, **changes: str | None) -> str:
        """The address of the same list with other fields; from its beginning."""
        fields = {**self.fields, **changes}
        pairs = [(name, fields[name]) for name in FIELDS if fields.get(name)]
        return f"?{urlencode(pairs)}" if pairs else "?"

    def turn(self, place: Place, *, is_backward: bool = False) -> str:
        """The address of the page that follows."""
        pairs = [(name, self.fields[name]) for name in FIELDS if self.fields.get(name)]
        pairs.append(("newer" if is_backward else "older", write_place(place)))
        return f"?{urlencode(pairs)}"


def read_query(arguments: Mapping[str, str], now: datetime) -> ListQuery:
    """Whatever cannot be understood is named, and does not narrow the list."""
    given = {name: arguments.get(name, "").strip()[:LONGEST_TEXT] for name in FIELDS}
    fields = {name: text for name, text in given.items() if text}
    wanted, wrong = JobFilter(), dict[str, str]()
    for name, text in fields.items():
        try:
            wanted = _narrow(wanted, name, text, now)
        except ValueError as error:
            wrong[name] = str(error)
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


def _narrow(wanted: JobFilter, name: str, text: str, now: datetime) -> JobFilter:
    if "\0" in text:
        # PostgreSQL takes none with it, not even to compare.
        raise ValueError("text without a NUL")
    match name:
        case "state":
            return replace(wanted, state=_read_state(text))
        case "label":
            return replace(wanted, label=parse_label(text))
        case "since":
            return replace(wanted, since=read_moment(text, now))
        case "until":
            return replace(wanted, until=read_moment(text, now))
        case "tenant":
            return replace(wanted, tenant=text)
        case _:
            return replace(wanted, text=text)


def _read_state(text: str) -> JobState:
    try:
        return JobState(text)
    except ValueError:
        raise ValueError(f"one of {', '.join(JobState)}") from None
