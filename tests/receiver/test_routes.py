"""Paths and methods that fal never asks for, and what probes read."""

import pytest
from sqlalchemy import text

from tests.harness.brokers import find_closed_port
from tests.harness.jobs import TOKEN
from tests.harness.servers import run_cluster_node


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_webhook_route_by_other_method_answers_405(scene, method) -> None:
    assert scene.client.open(f"/webhooks/fal/{TOKEN}", method=method).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/webhooks/fal",
        f"/webhooks/fal/{TOKEN}/",
        f"/webhooks//fal/{TOKEN}",
        f"/webhooks/fal/a%2F{TOKEN}",
        f"/webhooks/fal/../fal/{TOKEN}",
    ],
)
def test_post_to_unknown_path_answers_404_and_never_redirects(scene, path) -> None:
    """A redirect ends a delivery at fal for good; so does nothing else that is wrong with a URL."""
    answer = scene.client.post(path, data=b"{}")
    assert (answer.status_code, answer.content_type) == (404, "application/json")


def test_healthz_answers_whatever_is_away(open_scene) -> None:
    scene = open_scene(
        broker_url=f"redis://127.0.0.1:{find_closed_port()}/0",
        database_url="sqlite:////nowhere/at/all.db",
    )
    answer = scene.client.get("/healthz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ok"})


def test_readyz_with_all_parts_there_answers_200(scene) -> None:
    answer = scene.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.get_json() == {"database": "ok", "broker": "ok"}


def test_readyz_without_broker_answers_503_naming_it(open_scene) -> None:
    scene = open_scene(broker_url=f"redis://127.0.0.1:{find_closed_port()}/0")
    answer = scene.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json() == {"database": "ok", "broker": "unavailable"}


def test_readyz_before_a_redis_cluster_answers_503_naming_it(open_scene) -> None:
    with run_cluster_node() as url:
        answer = open_scene(broker_url=url).client.get("/readyz")
    assert (answer.status_code, answer.get_json()["error"]) == (503, "invalid_settings")
    assert answer.get_json()["message"].startswith("BROKER_URL=")
    assert "Redis Cluster" in answer.get_json()["message"]


def test_readyz_without_table_answers_503_naming_command(open_scene, db) -> None:
    with db.transaction() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    answer = open_scene().client.get("/readyz")
    assert (answer.status_code, answer.get_json()["error"]) == (503, "outdated_schema")
    assert "extend-video migrate" in answer.get_json()["message"]


def test_readyz_without_database_answers_503(open_scene) -> None:
    scene = open_scene(database_url="sqlite:////nowhere/at/all.db")
    answer = scene.client.get("/readyz")
    assert (answer.status_code, answer.get_json()["error"]) == (503, "database_unavailable")
