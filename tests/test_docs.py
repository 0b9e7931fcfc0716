"""Documents against code: settings, states, events, codes, words and targets are told once each."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from pydantic.fields import FieldInfo

import worker.fal.errors
import worker.fal.webhooks
from worker.fal.errors import ERROR_TYPES, UNNAMED_CODE
from worker.fal.options import RequestOptions
from worker.ground.errors import ExtendVideoError
from worker.ground.settings import Settings
from worker.jobs.states import EDGES, JobState

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "LICENSE.md"
)
# Codes that stand for a reply, not for an exception of ours.
OTHER_CODES = {
    UNNAMED_CODE,
    "fal_unreachable",
    "fal_unavailable",
    "result_gone",
    "submission_exhausted",
    "database_unavailable",
    "archive_deadline_near",
    # Of messages: worker/broker/receiving.py.
    "malformed_message",
    "message_compressed",
    "message_too_large",
    "unknown_task",
}


def read_tables(path: str) -> Iterator[list[list[str]]]:
    """Each Markdown table as rows of stripped cells, the heading first."""
    table: list[list[str]] = []
    for line in [*(ROOT / path).read_text().splitlines(), ""]:
        if line.lstrip().startswith("|"):
            table.append(split_row(line))
        elif table:
            yield [row for row in table if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
            table = []


def split_row(line: str) -> list[str]:
    """Cells between bars; a bar within code or behind a backslash is none of them."""
    bars = re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "\0"), line.strip())
    cells = re.split(r"(?<!\\)\|", bars.strip("|"))
    return [cell.replace("\0", "|").strip() for cell in cells]


def find_table(path: str, heading: str) -> list[list[str]]:
    """The rows of the one table whose first column has this heading."""
    (found,) = [table for table in read_tables(path) if table[0][0].lower() == heading]
    return found[1:]


def read_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ------------------------------------------------------------------ settings


def show_default(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case timedelta():
            return f"{value.total_seconds():g}"
        case _:
            return str(value)


def test_readme_lists_each_setting_once_and_nothing_else() -> None:
    listed = Counter(
        word for row in find_table("README.md", "variable") for word in read_words(row[0])
    )
    assert listed == Counter(name.upper() for name in Settings.model_fields)


def test_readme_tells_each_setting_with_its_default_and_bounds() -> None:
    rows = {row[0].strip("`").lower(): row for row in find_table("README.md", "variable")}
    for name, field in Settings.model_fields.items():
        _, default, bound, meaning = rows[name]
        assert default.strip("`") == show_default(field.default), name
        assert "" not in {bound, meaning}, name
        assert re.findall(r"[0-9]+", bound) == list_bounds(field), name


def list_bounds(field: FieldInfo) -> list[str]:
    if isinstance(field.default, timedelta):
        return ["1", str(7 * 24 * 3600)]
    limits = [getattr(limit, side, None) for limit in field.metadata for side in ("ge", "le")]
    return [str(limit) for limit in limits if limit is not None]


# ------------------------------------------------------------------ states


def test_architecture_lists_each_state_once_and_no_other() -> None:
    rows = find_table("docs/architecture.md", "state")
    assert Counter(row[0].strip("`") for row in rows) == Counter(map(str, JobState))


def test_architecture_tells_where_each_state_leads() -> None:
    for row in find_table("docs/architecture.md", "state"):
        told = set(read_words(row[-1])) & set(map(str, JobState))
        state = row[0].strip("`")
        assert told == {target for (source, _), target in EDGES.items() if source == state}, state


# ------------------------------------------------------------------ codes, words, targets


def list_codes() -> set[str]:
    """The code of every error, whichever module defines it."""
    assert worker.fal.webhooks.StaleSignatureError.code
    assert worker.fal.errors.RequestFailedError.code
    kinds, found = [ExtendVideoError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found |= {kind.__dict__["code"]} if "code" in kind.__dict__ else set()
    return found


def test_operations_lists_each_code_once_and_nothing_else() -> None:
    rows = find_table("docs/operations.md", "code")
    listed = Counter(
        word
        for row in rows
        for word in read_words(row[0])
        if not re.fullmatch(r"fal_http_\w+", word)
    )
    assert listed == Counter(list_codes() | OTHER_CODES)
    assert all(row[1] for row in rows)


def test_operations_tells_each_type_of_fals_as_it_is() -> None:
    rows = find_table("docs/operations.md", "type")
    assert [tuple(row) for row in rows] == [
        (
            f"`{one.name}`",
            one.error_class.value,
            ", ".join(map(str, one.http_statuses)),
            one.retryable.value,
            one.charge.value,
            one.sentence,
        )
        for one in ERROR_TYPES.values()
    ]


def test_readme_lists_each_request_option_with_a_meaning() -> None:
    rows = find_table("README.md", "option")
    assert [row[0] for row in rows] == [f"`{name}`" for name in RequestOptions.model_fields]
    assert all(row[1] and row[2] for row in rows)


def test_glossary_explains_each_word_once() -> None:
    rows = find_table("docs/glossary.md", "word")
    words = [row[0].strip("`*") for row in rows]
    assert [word for word, times in Counter(words).items() if times > 1] == []
    needed = {"job", "task", "attempt", "delivery", "completion", "archive", "state", "status"}
    assert needed - set(words) == set()
    assert all(len(row[1]) > 10 for row in rows)


def test_each_make_target_is_told_to_contributors() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    targets = re.findall(r"^ +make ([a-z-]+) ", printed, re.MULTILINE)
    told = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert len(targets) >= 4
    assert [target for target in targets if not re.search(rf"make {target}\b", told)] == []


# ------------------------------------------------------------------ the documents themselves


def list_links(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def test_links_of_documents_lead_somewhere() -> None:
    broken = [
        (path.name, link)
        for path in DOCUMENTS
        for link in list_links(path)
        if link[0] != "#" and not (path.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_variables_in_documents_exist() -> None:
    """A renamed setting is renamed everywhere."""
    prefixes = "FAL|WEBHOOK|LEASE|SWEEP|POLL|UNKNOWN|START_TIMEOUT|ARCHIVE|BROKER|DATABASE|LOG|MAX"
    prefixes += "|RETRY|PROBE|DRAIN|WATCHDOG|TOKEN"
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known}
    for path in DOCUMENTS:
        named = set(re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", path.read_text()))
        assert named - known == set(), path.name
