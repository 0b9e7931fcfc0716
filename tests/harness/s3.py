"""A real S3 API over HTTP: moto's server, as a process of its own on a free port of loopback."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

# One request at a time: moto looks whether a key is free and writes it in two steps, S3 in one.
SERVE = """
import sys
from werkzeug.serving import make_server
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication, MotoRequestHandler, create_backend_app
)
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=MotoRequestHandler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""

# moto looks whether a request is signed, not how.
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=TESTS/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


@dataclass(frozen=True)
class S3:
    """The server's address, and a client that is not ours to look at it."""

    url: str
    client: httpx.Client

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of a process needs to use it."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }

    def make_bucket(self) -> str:
        name = f"bucket-{uuid4().hex[:12]}"
        self.client.put(f"/{name}").raise_for_status()
        return name

    def get(self, bucket: str, key: str, **query: Any) -> httpx.Response:
        return self.client.get(f"/{bucket}/{key}", params=query)


@contextmanager
def run_s3() -> Iterator[S3]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with httpx.Client(base_url=url, headers=SIGNED, trust_env=False) as client:
                yield S3(url, client)
        finally:
            server.kill()
