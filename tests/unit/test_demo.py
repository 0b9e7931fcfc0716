"""What a demo sets for its daemons."""

from worker.cli.run import list_emulator_settings
from worker.ground.settings import Settings

EMULATOR = "http://127.0.0.1:8001"


def test_demo_on_the_emulator_asks_fal_at_no_place() -> None:
    chosen = list_emulator_settings(EMULATOR)
    urls = {f.upper() for f in Settings.model_fields if f.startswith("fal_") and f.endswith("_url")}
    assert {name for name, value in chosen.items() if value.startswith(EMULATOR)} == urls
    assert chosen["FAL_MEDIA_HOSTS"] in EMULATOR
