"""A look at many archived objects, which ends early where the archive itself is away."""

from dataclasses import dataclass

from worker.ground.errors import StoreUnavailableError
from worker.media.store import Store

# A store that has not answered so often running will not answer for each of the others either.
MOST_FAILURES = 3


@dataclass
class ArchiveLook:
    """`find_fault` asks the store; once `is_over`, it should not be asked again."""

    store: Store
    failures: int = 0

    @property
    def is_over(self) -> bool:
        return self.failures >= MOST_FAILURES

    def find_fault(self, uri: str, size: int) -> str | None:
        """What is wrong with the object that a row says it has; None if it is there, whole."""
        name = self.store.find_name(uri)
        if name is None:
            return "it is not of the archive that ARCHIVE_URL names"
        try:
            found = self.store.stat(name)
        except StoreUnavailableError as error:
            self.failures += 1
            return f"it cannot be looked at: {error}"
        self.failures = 0
        if found is None:
            return "there is no such file"
        return None if found.bytes == size else f"it has {found.bytes} bytes, the row says {size}"
