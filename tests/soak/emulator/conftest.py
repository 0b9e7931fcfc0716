"""The emulators, and fal's Python client pointed at them."""

from tests.emulator.conftest import (
    busy,
    directory,
    emulator,
    faulty,
    occupied,
    point_at,
    quick,
    sample,
)

__all__ = ["busy", "directory", "emulator", "faulty", "occupied", "point_at", "quick", "sample"]
