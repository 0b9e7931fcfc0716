"""`python -m emulator` as a process, and a client that speaks to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

ENDPOINT = "/fal-ai/ltx-2.3-22b/extend-video"
SHORT = "/fal-ai/ltx-2.3-22b"
READY = "emulator listening on "


@dataclass(frozen=True, slots=True)
class Emulator:
    url: str
    directory: Path
    client: httpx.Client

    @property
    def sample_url(self) -> str:
        return f"{self.url}/files/sample.mp4"

    def post(
        self,
        fields: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Submit with the sample as video and the fewest frames, if nothing else is said."""
        body = {"prompt": "on it goes", "video_url": self.sample_url, "num_frames": 9}
        body |= {"num_context_frames": 5, **(fields or {})}
        return self.client.post(ENDPOINT, json=body, headers=headers, params=query)

    def submit(self, fields: Mapping[str, object] | None = None, **query: str) -> str:
        """The request's id."""
        response = self.post(fields, query=query)
        assert response.status_code == 200, response.text
        return str(response.json()["request_id"])

    def get_status(self, request_id: str, **query: str) -> dict[str, Any]:
        response = self.client.get(f"{SHORT}/requests/{request_id}/status", params=query)
        return dict(response.json())

    def get_result(self, request_id: str) -> httpx.Response:
        """The result, once there is one."""
        self.wait_for_status(request_id, "COMPLETED")
        return self.client.get(f"{SHORT}/requests/{request_id}")

    def cancel(self, request_id: str) -> httpx.Response:
        return self.client.put(f"{SHORT}/requests/{request_id}/cancel")

    def find(self, request_id: str) -> dict[str, Any]:
        """The request as `/_emulator/requests` shows it."""
        return next(one for one in self.list_requests() if one["request_id"] == request_id)

    def list_requests(self) -> list[dict[str, Any]]:
        return list(self.client.get("/_emulator/requests").json())

    def order(self, *faults: Mapping[str, object]) -> None:
        """Put these faults into force, in place of all others."""
        response = self.client.put("/_emulator/faults", json=faults)
        assert response.status_code == 200, response.text

    def count_fired(self) -> list[int]:
        """How often each fault in force has fired."""
        return [one["fired"] for one in self.client.get("/_emulator/faults").json()]

    def arm(self, *hooks: Mapping[str, object]) -> None:
        response = self.client.put("/_emulator/hooks", json=hooks)
        assert response.status_code == 200, response.text

    def wait_for_held(self) -> list[dict[str, Any]]:
        """Who is held, as soon as anybody is."""
        held = self.client.get("/_emulator/hooks/held", params={"wait": "20"}, timeout=30)
        return list(held.json())

    def release(self, held: Mapping[str, object]) -> httpx.Response:
        return self.client.post(f"/_emulator/hooks/{held['id']}/release")

    def wait_for_status(self, request_id: str, status: str) -> None:
        wait_until(lambda: self.get_status(request_id)["status"] == status)

    def wait_for_deliveries(self, request_id: str, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.find(request_id)["deliveries"]) >= count)
        return list(self.find(request_id)["deliveries"])


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Ask again and again; each question is a round trip, so nothing spins."""
    deadline = monotonic() + seconds
    while not holds():
        assert monotonic() < deadline, "it never came to hold"


@contextmanager
def start_emulator(directory: Path, *options: str) -> Iterator[Emulator]:
    command = [sys.executable, "-m", "emulator", "--directory", str(directory), *options]
    with run_process(command) as process:
        url = read_address(process)
        key = {"Authorization": "Key emulator-key"}
        with httpx.Client(base_url=url, headers=key, trust_env=False) as client:
            yield Emulator(url, directory, client)


@contextmanager
def run_process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process is told to end when the block is left, and must do so cleanly."""
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, cwd=root, env=os.environ) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
        finally:
            if process.poll() is None:
                process.kill()


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(READY), line
    return line.removeprefix(READY).strip()
