"""The page's address as a filter and a place in the list, and back again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from worker.jobs.queries import JobFilter, Place, parse_filter

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
