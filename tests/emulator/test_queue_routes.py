import httpx
import pytest

from tests.emulator.processes import ENDPOINT, SHORT, wait_until


def test_submit_returns_follow_up_urls_in_short_form(quick):
    response = quick.post()
    body = response.json()
    base = f"{quick.url}{SHORT}/requests/{body['request_id']}"
    assert response.status_code == 200
    assert response.headers["x-fal-request-id"] == body["request_id"]
    assert body == {
        "status": "IN_QUEUE",
        "request_id": body["request_id"],
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "queue_position": 0,
        "logs": None,
        "metrics": {},
    }


def test_submit_under_another_host_builds_urls_on_it(quick):
    port = httpx.URL(quick.url).port
    response = quick.post(headers={"Host": f"localhost:{port}"})
    assert response.json()["status_url"].startswith(f"http://localhost:{port}{SHORT}/requests/")
    result = quick.get_result(response.json()["request_id"]).json()
    assert result["video"]["url"].startswith(f"http://localhost:{port}/files/b/")


@pytest.mark.parametrize("key", [None, "Bearer emulator-key"])
def test_submit_without_the_right_key_is_refused(quick, key):
    headers = {} if key is None else {"Authorization": key}
    response = httpx.post(f"{quick.url}{ENDPOINT}", json={}, headers=headers, trust_env=False)
    assert response.status_code == 401
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize("path", ["/fal-ai/other", "/alone"])
def test_submit_to_unknown_application_is_not_found(quick, path):
    response = quick.client.post(path, json={})
    name = path.removeprefix("/fal-ai").removeprefix("/")
    assert response.status_code == 404
    assert response.json() == {"detail": f'Application "{name}" not found'}


@pytest.mark.parametrize("body", [b"\xff", b'{"fps": NaN}', b"[" * 100_000])
def test_submit_of_no_json_is_bad_request(quick, body):
    response = quick.client.post(ENDPOINT, content=body)
    assert response.status_code == 400
    assert response.json()["error_type"] == "bad_request"
    assert response.headers["X-Fal-Error-Type"] == "bad_request"


def test_submit_of_no_object_is_unprocessable(quick):
    response = quick.client.post(ENDPOINT, content="[]")
    assert response.status_code == 422
    assert [item["type"] for item in response.json()["detail"]] == ["dict_type"]


def test_submit_with_invalid_input_is_accepted_and_refused_in_result(quick):
    request_id = quick.submit({"num_frames": 8, "fps": "fast"})
    result = quick.get_result(request_id)
    status = quick.get_status(request_id)
    assert result.status_code == 422
    assert [(item["loc"], item["type"]) for item in result.json()["detail"]] == [
        (["body", "num_frames"], "greater_than_equal"),
        (["body", "fps"], "float_type"),
    ]
    assert status["status"] == "COMPLETED"
    assert status["error"].startswith("num_frames: Input should be greater than or equal to 9")
    assert status["error_type"] == "greater_than_equal"


@pytest.mark.parametrize(("form", "slash"), [(SHORT, "/"), (ENDPOINT, "")])
def test_follow_up_urls_work_in_every_published_form(quick, form, slash):
    request_id = quick.submit()
    quick.wait_for_status(request_id, "COMPLETED")
    base = f"{form}/requests/{request_id}"
    client = quick.client
    results = [client.get(f"{base}{slash}"), client.get(f"{base}/response{slash}")]
    assert client.get(f"{base}/status{slash}").status_code == 200
    assert [result.json()["prompt"] for result in results] == ["on it goes"] * 2
    assert client.put(f"{base}/cancel{slash}").status_code == 400


def test_follow_up_of_unknown_id_is_not_found(quick):
    for method, tail in (("GET", "/status"), ("GET", ""), ("GET", "/response"), ("PUT", "/cancel")):
        response = quick.client.request(method, f"{SHORT}/requests/none{tail}")
        assert (tail, response.status_code) == (tail, 404)
        assert response.json() == {"status": "NOT_FOUND"}


def test_follow_up_under_another_application_is_not_found(quick):
    request_id = quick.submit()
    response = quick.client.get(f"/fal-ai/other/requests/{request_id}")
    assert response.status_code == 404
    assert response.json() == {"detail": 'Application "other" not found'}


def test_status_is_202_until_completed_then_200(busy):
    running = busy.list_requests()[0]["request_id"]
    waiting = busy.submit()
    in_progress = busy.client.get(f"{SHORT}/requests/{running}/status")
    in_queue = busy.client.get(f"{SHORT}/requests/{waiting}/status")
    busy.cancel(waiting)
    completed = busy.client.get(f"{SHORT}/requests/{waiting}/status")
    assert [one.status_code for one in (in_queue, in_progress, completed)] == [202, 202, 200]
    assert in_queue.json()["queue_position"] == 0
    assert in_progress.json()["metrics"] == {}
    assert "queue_position" not in in_progress.json()
    assert completed.json()["metrics"] == {"inference_time": 0.0}


def test_result_before_completion_is_bad_request(busy):
    response = busy.client.get(f"{SHORT}/requests/{busy.submit()}")
    assert response.status_code == 400
    assert isinstance(response.json()["detail"], str)


def test_status_with_logs_shows_entries_in_order(emulator):
    request_id = emulator.submit()
    emulator.wait_for_status(request_id, "COMPLETED")
    logs = emulator.get_status(request_id, logs="1")["logs"]
    assert emulator.get_status(request_id, logs="true")["logs"] == logs
    shown = [(entry["level"], entry["message"].split()[0]) for entry in logs]
    rendering = ["Fetching", "Source:", "Rendering", "Rendered"]
    assert shown[:4] == list(zip(["INFO", "DEBUG", "INFO", "INFO"], rendering, strict=True))
    assert shown[4:] == [("STDERR", word) for word in ("25%", "50%", "75%", "100%")]
    assert all(set(entry) == {"message", "timestamp", "level", "source"} for entry in logs)


def test_logs_tell_of_ignored_fields_and_of_a_refusal(emulator):
    request_id = emulator.submit({"num_frames": 10, "frames": 3, "video_url": "http://127.0.0.1:1"})
    emulator.wait_for_status(request_id, "COMPLETED")
    logs = emulator.get_status(request_id, logs="1")["logs"]
    shown = [(entry["level"], entry["message"].split(":")[0]) for entry in logs]
    assert shown[0] == ("WARN", "Ignored unknown fields")
    assert ("ERROR", "Refused") in shown


@pytest.mark.parametrize("wanted", [{}, {"logs": "0"}])
def test_status_without_logs_has_null(quick, wanted):
    request_id = quick.submit()
    quick.wait_for_status(request_id, "COMPLETED")
    assert quick.get_status(request_id, **wanted)["logs"] is None


def test_result_describes_the_file_it_names(emulator):
    result = emulator.get_result(emulator.submit({"seed": 5}))
    video = result.json()["video"]
    content = httpx.get(video["url"], trust_env=False).content
    assert result.status_code == 200
    assert (result.json()["seed"], result.json()["prompt"]) == (5, "on it goes")
    assert len(content) == video["file_size"]
    assert video["url"].endswith(f"/{video['file_name']}")
    assert video["content_type"] == "video/mp4"
    assert (video["width"], video["height"]) == (128, 96)
    assert (video["num_frames"], video["fps"], video["duration"]) == (28, 12.0, 2.333333)


def test_result_carries_billable_megapixels(emulator):
    fields = {"video_size": "square", "num_frames": 10, "num_context_frames": 9}
    result = emulator.get_result(emulator.submit(fields))
    assert result.headers["X-Fal-Billable-Units"] == "3"  # 512 * 512 * 10 pixels


def test_result_in_sync_mode_is_a_data_uri(emulator):
    video = emulator.get_result(emulator.submit({"sync_mode": True})).json()["video"]
    again = emulator.submit({"sync_mode": True, "video_url": video["url"]})
    assert video["url"].startswith("data:video/mp4;base64,")
    assert emulator.get_result(again).json()["video"]["num_frames"] == video["num_frames"] + 4


def test_result_of_unreachable_video_names_the_field(emulator):
    fields = {"video_url": f"{emulator.url}/files/none.mp4"}
    result = emulator.get_result(emulator.submit(fields))
    assert result.status_code == 422
    assert result.json()["detail"][0]["loc"] == ["body", "video_url"]
    assert result.json()["detail"][0]["type"] == "file_download_error"


def test_requests_listing_keeps_headers_of_interest_only(quick):
    headers = {"X-Fal-Store-IO": "1", "X-Fal-Tags": "a=b", "X-App-Fal-Disable-Fallback": "true"}
    response = quick.post(headers={**headers, "X-Other": "1"})
    kept = quick.find(response.json()["request_id"])["headers"]
    assert kept["x-fal-store-io"] == "1"
    assert kept["x-fal-tags"] == "a=b"
    assert kept["x-app-fal-disable-fallback"] == "true"
    assert "x-other" not in kept
    assert "emulator-key" not in str(kept)


def test_ledger_charges_started_runs_only(busy):
    waiting = busy.submit()
    busy.cancel(waiting)
    running = busy.list_requests()[0]["request_id"]
    ledger = busy.client.get("/_emulator/ledger").json()
    assert ledger["submissions"] == len(busy.list_requests()) == len(ledger["by_request"])
    assert ledger["charges"] == 1
    assert ledger["by_request"][running] == {"charges": 1, "units": None}
    assert ledger["by_request"][waiting] == {"charges": 0, "units": None}
    assert ledger["cancelled"][-1] == {"request_id": waiting, "charged": False}


def test_requests_listing_tells_times_and_charge(emulator):
    request_id = emulator.submit()
    wait_until(lambda: emulator.find(request_id)["status"] == "COMPLETED")
    record = emulator.find(request_id)
    assert record["submitted_at"] < record["started_at"] < record["completed_at"]
    assert record["charged"] is True
    assert record["input"]["prompt"] == "on it goes"
    assert record["result_status_code"] == 200


def test_healthz_needs_no_key(quick):
    response = httpx.get(f"{quick.url}/healthz", trust_env=False)
    assert response.json() == {"status": "ok"}
