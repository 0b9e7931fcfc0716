"""Documents against code: settings, states, codes, options, links, paths, words and targets."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import PAGES
from tests.house import WORDS
from worker.fal.errors import ERROR_TYPES
from worker.fal.options import RequestOptions
from worker.ground.settings import Settings
from worker.jobs.states import EDGES, JobState
from worker.stages.enqueue import JobOptions

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "LICENSE.md"
)
# What users read; decisions are records of their time.
FOR_USERS = [path for path in DOCUMENTS if path.parent.name != "adr"]
# Paths of today's tree: what a release's notes or a decision name may be gone.
OF_TODAY = [path for path in FOR_USERS if path.name != "CHANGELOG.md"]


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


# ------------------------------------------------------------------ pages made of the code


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_as_the_code_says(name) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), "run `make docs`"


def test_configuration_has_each_setting_once_with_a_meaning() -> None:
    rows = find_table("docs/configuration.md", "variable")
    assert [row[0].strip("`").lower() for row in rows] == list(Settings.model_fields)
    assert not [row for row in rows if "" in row or "None" in row]


def test_configuration_states_the_default_and_bounds_that_are_checked() -> None:
    rows = {row[0].strip("`"): row[1:3] for row in find_table("docs/configuration.md", "variable")}
    assert rows["LEASE_SECONDS"] == ["`60`", "seconds, 1 to 604800"]
    assert rows["WEBHOOK_MAX_BYTES"] == ["`1048576`", "bytes, 1024 to 268435456"]
    assert rows["MAX_VIDEO_BYTES"] == ["`8589934592`", "bytes, 1 or more"]
    assert rows["UNKNOWN_POLICY"] == ["`resubmit`", "`resubmit` or `hold`"]
    assert rows["LOG_FORMAT"] == ["`auto`", "`auto` or `json` or `text`"]
    assert rows["FAL_STORE_IO"] == ["`true`", "`true` or `false`"]
    assert rows["FAL_QUEUE_URL"][1] == rows["WEBHOOK_BASE_URL"][1] == "http(s) URL"
    assert rows["FAL_KEY"] == ["none", "secret"]


def test_each_code_is_explained_and_is_one_of_the_code() -> None:
    rows = find_table("docs/errors.md", "code")
    assert [row for row in rows if len(row[1]) < 10] == []
    source = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    codes = [word for row in rows for word in read_words(row[0]) if "fal_http_" not in word]
    assert [code for code in codes if f'"{code}"' not in source] == []


# ------------------------------------------------------------------ states


def test_architecture_lists_each_state_once_and_no_other() -> None:
    rows = find_table("docs/architecture.md", "state")
    assert Counter(row[0].strip("`") for row in rows) == Counter(map(str, JobState))


def test_architecture_says_where_each_state_leads() -> None:
    for row in find_table("docs/architecture.md", "state"):
        listed = set(read_words(row[-1])) & set(map(str, JobState))
        state = row[0].strip("`")
        assert listed == {target for (source, _), target in EDGES.items() if source == state}, state


# ------------------------------------------------------------------ types, words, targets


def test_operations_lists_fals_error_types_as_the_code_has_them() -> None:
    rows = find_table("docs/operations.md", "type")
    assert [tuple(row) for row in rows] == [
        (
            f"`{one.name}`",
            one.error_class.value,
            ", ".join(map(str, one.http_statuses)),
            one.retryable.value,
            one.charge.value,
        )
        for one in ERROR_TYPES.values()
    ]


def test_each_job_option_and_each_fal_option_is_listed_with_a_meaning() -> None:
    own, of_fal = (
        table[1:] for table in read_tables("docs/job-requests.md") if table[0][0] == "option"
    )
    assert [row[0] for row in own] == [f"`{name}`" for name in JobOptions.model_fields]
    assert [row[0] for row in of_fal] == [f"`{name}`" for name in RequestOptions.model_fields]
    assert all(row[1] and row[2] for row in (*own, *of_fal))


def test_glossary_explains_each_word_once() -> None:
    rows = find_table("docs/glossary.md", "word")
    words = [row[0] for row in rows]
    assert len(words) == len(set(words)) <= 12
    assert {"job", "doorbell", "attempt", "delivery", "completion", "state"} - set(words) == set()
    assert all(len(row[1]) > 10 for row in rows)


def test_each_make_target_is_documented() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    targets = re.findall(r"^ +make ([a-z-]+) ", printed, re.MULTILINE)
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert len(targets) >= 4
    assert [target for target in targets if not re.search(rf"make {target}\b", text)] == []


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


def list_anchors(path: Path) -> set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


def test_links_to_headings_lead_to_headings() -> None:
    broken = [
        (path.name, link)
        for path in DOCUMENTS
        for link in list_links(path)
        for file, _, heading in [link.partition("#")]
        if heading and heading not in list_anchors(path.parent / file if file else path)
    ]
    assert broken == []


def test_paths_in_documents_exist() -> None:
    """In code spans and commands, from the root; `...` stands for the rest of a test's name."""
    tops = "worker|webhook|emulator|migrations|tests|benchmarks|deploy|docs"
    missing = {
        (path.name, named)
        for path in OF_TODAY
        for named in re.findall(rf"(?<![\w/.-])(?:{tops})/[\w/.-]*\w", path.read_text())
        if not (ROOT / named).exists()
    }
    assert missing == set()


def test_log_events_in_documents_are_logged() -> None:
    """A log line that a document names is written as a text somewhere in the code."""
    code = "".join(
        path.read_text()
        for top in ("worker", "webhook", "migrations")
        for path in (ROOT / top).rglob("*.py")
    )
    unknown = {
        (path.name, event)
        for path in OF_TODAY
        for event in re.findall(r"\b(?:logs?|lines?)\s+`([a-z]+_[a-z_]+)`", path.read_text())
        if f'"{event}"' not in code
    }
    assert unknown == set()


def test_tests_named_in_documents_exist() -> None:
    missing = [
        (path.name, file, name)
        for path in OF_TODAY
        for file, name in re.findall(r"`([\w/.-]+\.py)::(test_\w+)", path.read_text())
        for source in (ROOT / file, ROOT / "tests" / file)
        if source.exists() and f"def {name}" not in source.read_text()
    ]
    assert missing == []


def test_user_documents_have_no_private_words() -> None:
    """Tables, columns and codes keep their names: those stand in code spans."""
    pattern = re.compile(rf"\b(?:{WORDS})\b", re.IGNORECASE)
    found = [
        (path.name, number, match[0])
        for path in FOR_USERS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in pattern.finditer(re.sub(r"`[^`]*`|\(#?\S+\.?\S*\)", "", line))
    ]
    assert found == []


def test_variables_in_documents_exist() -> None:
    """A renamed setting is renamed everywhere."""
    prefixes = "FAL|WEBHOOK|LEASE|SWEEP|POLL|UNKNOWN|START_TIMEOUT|ARCHIVE|BROKER|DATABASE|LOG|MAX"
    prefixes += "|RETRY|PROBE|DRAIN|WATCHDOG|TOKEN"
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known}
    for path in DOCUMENTS:
        named = set(re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", path.read_text()))
        assert named - known == set(), path.name
