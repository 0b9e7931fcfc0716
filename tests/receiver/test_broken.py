"""Bodies that cannot be read, and mistakes of our own."""

from werkzeug.test import run_wsgi_app

from tests.harness.jobs import TOKEN
from tests.harness.posts import write_post
from tests.harness.webhooks import build_delivery


class BrokenBody:
    """What a WSGI server gives that meets chunks without sense."""

    def read(self, *_: object) -> bytes:
        raise RuntimeError("Invalid chunk size: b'zz'")


def test_receive_body_that_the_server_cannot_read_answers_400(scene, job) -> None:
    before = scene.read_table()
    environ = write_post(build_delivery(), chunked=True).to_environ()
    environ["wsgi.input"] = BrokenBody()
    _, status, headers = run_wsgi_app(scene.client.application, environ)
    assert (status, headers["Content-Type"]) == ("400 BAD REQUEST", "application/json")
    assert scene.read_table() == before


def test_receiver_with_a_mistake_answers_500_and_logs_no_token(
    capsys, scene, job, monkeypatch
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("webhook.fal.receive_delivery", break_down)
    delivery = build_delivery()
    answer = scene.post(delivery)
    assert (answer.status_code, answer.get_json()["error"]) == (500, "internal_server_error")
    logged = capsys.readouterr().err
    assert "RuntimeError: a mistake" in logged
    assert "receiver_broken" in logged
    assert TOKEN not in logged
