"""Say whether the models and the migrations still make the same schema, on both databases.

Run as `python tests/drift.py`; ends with 1 and one line per difference if they do not.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.ddl import find_drift  # noqa: E402 - found only by the path above
from tests.harness.servers import run_postgres  # noqa: E402 - the same


def find_sqlite_drift() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="drift-") as directory:
        return find_drift(
            *(f"sqlite:///{directory}/{name}.db" for name in ("models", "migrations"))
        )


def find_postgres_drift() -> list[str]:
    with run_postgres() as postgres:
        return find_drift(*(postgres.url_of(postgres.create_database()) for _ in range(2)))


def main() -> int:
    drift = [f"sqlite: {line}" for line in find_sqlite_drift()]
    drift += [f"postgresql: {line}" for line in find_postgres_drift()]
    lines = drift or ["models equal migrations on sqlite and postgresql"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
