"""What `tests/system` starts for its tests is here for those of the parts as well."""

from tests.system.conftest import (
    clip,
    database_name,
    demo_settings,
    nothing_left,
    pytest_runtest_makereport,
    scene,
    scratch,
    shared_postgres_scene,
    shared_sqlite_scene,
    sqlite_scene,
    up_settings,
    yard,
)

__all__ = [
    "clip",
    "database_name",
    "demo_settings",
    "nothing_left",
    "pytest_runtest_makereport",
    "scene",
    "scratch",
    "shared_postgres_scene",
    "shared_sqlite_scene",
    "sqlite_scene",
    "up_settings",
    "yard",
]
