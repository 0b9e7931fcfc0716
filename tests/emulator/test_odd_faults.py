"""Faults that leave the video good, and make something beside it odd."""

import json

import httpx


def test_output_with_odd_fields_is_told_so_by_webhook_and_result_url(faulty, receiver) -> None:
    odd = {"merge": {"video": {"fps": "25/1"}, "seed": None}, "delete": ["prompt"]}
    faulty.order({"point": "output", "kind": "odd_fields", **odd})

    request_id = faulty.submit({"prompt": "p"}, fal_webhook=receiver.url)

    payload = json.loads(receiver.take().body)["payload"]
    assert payload == faulty.get_result(request_id).json()
    assert (payload["video"]["fps"], payload["seed"]) == ("25/1", None)
    assert "prompt" not in payload
    assert httpx.get(payload["video"]["url"], trust_env=False).status_code == 200


def test_webhook_with_odd_fields_of_its_own_has_the_genuine_payload(faulty, receiver) -> None:
    fields = {"error": {"message": "none"}, "gateway_request_id": 5}
    faulty.order({"point": "webhook", "kind": "odd_message", "fields": fields})

    request_id = faulty.submit(fal_webhook=receiver.url)

    message = json.loads(receiver.take().body)
    assert {name: message[name] for name in fields} == fields
    assert (message["status"], message["request_id"]) == ("OK", request_id)
    assert message["payload"] == faulty.get_result(request_id).json()


def test_cdn_with_odd_encoding_sends_the_same_bytes(faulty) -> None:
    url = faulty.get_result(faulty.submit()).json()["video"]["url"]
    content = httpx.get(url, trust_env=False).content
    faulty.order({"point": "cdn", "kind": "odd_encoding"})

    response = httpx.get(url, trust_env=False)

    assert response.headers["Content-Encoding"] == "aws-chunked"
    assert response.content == content


def test_run_that_fails_by_order_tells_so_by_webhook_and_result_url(faulty, receiver) -> None:
    for code, error_type in ((500, "internal_error"), (422, "content_policy_violation")):
        fault = {"point": "output", "kind": "failure", "code": code, "error_type": error_type}
        faulty.order(fault)

        request_id = faulty.submit(fal_webhook=receiver.url)

        assert json.loads(receiver.take().body)["status"] == "ERROR"
        assert faulty.get_result(request_id).status_code == code
        assert faulty.get_status(request_id)["error_type"] == error_type
        assert faulty.find(request_id)["charged"] is True
