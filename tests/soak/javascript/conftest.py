"""The emulators that fal's JavaScript client takes for fal."""

from tests.emulator.conftest import (
    busy,
    directory,
    emulator,
    faulty,
    occupied,
    quick,
    receiver,
    sample,
)

__all__ = ["busy", "directory", "emulator", "faulty", "occupied", "quick", "receiver", "sample"]
