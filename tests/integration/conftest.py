"""The stages against a fal that answers as a test says; its server and clients serve all tests."""

from collections.abc import Iterator

import pytest

from tests.harness.fal import ScriptedFal, run_fal
from tests.harness.stages import Bench, Clients, open_clients


@pytest.fixture(scope="session")
def scripted_fal() -> Iterator[ScriptedFal]:
    with run_fal() as fal:
        yield fal


@pytest.fixture(scope="session")
def scripted_clients(scripted_fal) -> Iterator[Clients]:
    with open_clients(scripted_fal.url) as clients:
        yield clients


@pytest.fixture
def desk(scripted_fal: ScriptedFal) -> ScriptedFal:
    """One that accepts everything, runs it for ever, and lists nothing, until a test orders it."""
    scripted_fal.reset()
    return scripted_fal


@pytest.fixture
def bench(db, desk, scripted_clients) -> Bench:
    return Bench(db, *scripted_clients)
