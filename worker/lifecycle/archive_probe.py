"""Whether a worker can archive: checked before anything is paid, and every minute from then on.

Its archive has to be the one that the job table names, and to take a file. The check is a process
of its own, with a time limit: a mount that hangs holds up nothing else, and no thread or connection
of it exists when Celery forks.
"""

import shutil
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.ground.db import PROGRAM, Database
from worker.ground.errors import ExtendVideoError, StoreUnavailableError
from worker.ground.settings import Settings, load_settings
from worker.media.store import Store, open_store
from worker.ops.verify import require_own_archive

PROBE = "write-probe.txt"
CONTENT = b"extend-video writes and deletes this to see whether the archive can be written.\n"
LIMIT_SECONDS = 60
OK_PAUSE_SECONDS, FAULTY_PAUSE_SECONDS = 60.0, 30.0
FAULTY, UNDECIDED = 1, 75

log = structlog.stdlib.get_logger(__name__)


class ArchiveProbe:
    """A thread that keeps `fault` up to date: why nothing can be archived, None if it can."""

    def __init__(self, ending: threading.Event) -> None:
        self.fault: str | None = None
        self._ending = ending

    def begin(self) -> None:
        threading.Thread(target=self._run, name="archive probe", daemon=True).start()

    def _run(self) -> None:
        while True:
            before, self.fault = self.fault, run_probe(self.fault)
            if self.fault is not None and self.fault != before:
                log.error("archive_fault", reason=self.fault)
            elif self.fault is None and before is not None:
                log.info("archive_back")
            if self._ending.wait(OK_PAUSE_SECONDS if self.fault is None else FAULTY_PAUSE_SECONDS):
                return


def run_probe(before: str | None = None, limit: float = LIMIT_SECONDS) -> str | None:
    """Check the archive in a process of its own; what is wrong with it, None if nothing is.

    The result remains `before` if the database, which has the archive's mark, is unavailable, or if
    the process was killed: neither says anything about the archive.
    """
    command = [sys.executable, "-m", __name__]
    try:
        ended = subprocess.run(  # noqa: S603 - a command of our own
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the archive does not answer within {limit:g} s"
    except OSError as error:
        return f"the archive could not be checked: {error.strerror}"
    if ended.returncode == 0:
        return None
    if ended.returncode == UNDECIDED or ended.returncode < 0:
        return before
    lines = (ended.stdout or ended.stderr).decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"the archive could not be checked: exit code {ended.returncode}"


def check_archive_access(settings: Settings) -> None:
    """Raises ForeignArchiveError, StoreUnavailableError; SQLAlchemyError without the database.

    Only a directory may differ from host to host.
    """
    store = open_store(settings.archive_url, Path(settings.spool_dir))
    unavailable: SQLAlchemyError | None = None
    if settings.archive_url.lower().startswith("file:"):
        try:
            with closing(Database(settings.database_url, program=f"{PROGRAM} archive probe")) as db:
                require_own_archive(db=db, store=store)
        except SQLAlchemyError as error:
            unavailable = error
    try_to_write(store, settings.archive_min_free_bytes)
    if unavailable is not None:
        raise unavailable


def try_to_write(store: Store, min_free_bytes: int = 0) -> None:
    """Write what an archived video needs: into the spool, and a name. Raises StoreUnavailableError.

    A disk with less than `min_free_bytes` left is full: what is bought now could not be kept.
    Permission to write need not include deletion: the next check overwrites what is left.
    """
    with store.spool.begin("probe") as file:
        file.write(CONTENT)
        file.flush()
        free = shutil.disk_usage(file.path.parent).free
    if free < min_free_bytes:
        raise StoreUnavailableError(
            f"the disk is nearly full: {free} bytes are free, ARCHIVE_MIN_FREE_BYTES is "
            f"{min_free_bytes}"
        )
    store.put(PROBE, CONTENT, "text/plain")
    with suppress(StoreUnavailableError):  # see above
        store.delete(PROBE)


def main() -> None:
    try:
        check_archive_access(load_settings())
    except (ExtendVideoError, ValueError) as error:
        print(error)  # noqa: T201 - for `run_probe`
        sys.exit(FAULTY)
    except SQLAlchemyError:
        sys.exit(UNDECIDED)


if __name__ == "__main__":
    main()
