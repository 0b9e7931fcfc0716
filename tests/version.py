"""Say whether the version in pyproject.toml is the newest one in CHANGELOG.md.

Run as `python tests/version.py`; ends with 1 and the reason if it is not.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", re.MULTILINE)


def find_disagreement(project: str, changelog: str) -> str | None:
    """Why the texts of the two files disagree; None if they agree."""
    version = tomllib.loads(project)["project"]["version"]
    newest = HEADING.search(changelog)
    if newest is None:
        return "CHANGELOG.md has no heading such as `## [1.2.3] - 2026-01-31`"
    if newest[1] != version:
        return f"pyproject.toml says {version}, the newest in CHANGELOG.md is {newest[1]}"
    return None


def main() -> int:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        sys.stdout.write("there is no CHANGELOG.md to compare the version with\n")
        return 0
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wrong = find_disagreement(project, changelog.read_text(encoding="utf-8"))
    sys.stdout.write(f"{wrong or 'the version equals the newest in CHANGELOG.md'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
