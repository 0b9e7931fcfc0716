"""What a webhook says and how it is signed, by fal or by somebody who pretends to be fal."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from emulator.faults import Fault
from emulator.records import FalRequest, Outcome
from emulator.signing import Signer

Seal = Callable[[Signer, str, bytes], dict[str, str]]
"""Makes the headers for a request id and a body, anew for each POST."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A webhook to be posted. What no real fal would send is not tried again either."""

    body: bytes
    seal: Seal
    fault: str | None = None
    is_persistent: bool = True


def write_letter(request: FalRequest, outcome: Outcome) -> Letter:
    """The genuine one."""
    return Letter(json.dumps(compose_webhook(request, outcome)).encode(), Signer.sign)


def compose_webhook(request: FalRequest, outcome: Outcome) -> dict[str, object]:
    body: dict[str, object] = {
        "request_id": request.request_id,
        "gateway_request_id": request.request_id,
        "status": "OK",
        "payload": outcome.body,
    }
    if outcome.error is not None:
        body |= {"status": "ERROR", "error": f"Invalid status code: {outcome.status_code}"}
    return body


def spoil_letter(letter: Letter, fault: Fault) -> Letter:
    """The letter as the fault wants it."""
    return SPOILERS[fault.kind](replace(letter, fault=fault.kind), fault)


def _forge(letter: Letter, _fault: Fault) -> Letter:
    return replace(letter, seal=_scrawl, is_persistent=False)


def _sign_with_wrong_key(letter: Letter, _fault: Fault) -> Letter:
    stranger = Ed25519PrivateKey.generate()

    def seal(signer: Signer, request_id: str, body: bytes) -> dict[str, str]:
        return replace(signer, key=stranger).sign(request_id, body)

    return replace(letter, seal=seal, is_persistent=False)


def _sign_for_wrong_user(letter: Letter, fault: Fault) -> Letter:
    def seal(signer: Signer, request_id: str, body: bytes) -> dict[str, str]:
        return replace(signer, user_id=fault.options["user_id"]).sign(request_id, body)

    return replace(letter, seal=seal, is_persistent=False)


def _sign_long_ago(letter: Letter, fault: Fault) -> Letter:
    def seal(signer: Signer, request_id: str, body: bytes) -> dict[str, str]:
        return signer.sign(request_id, body, age=fault.options["seconds"])

    return replace(letter, seal=seal)


def _truncate(letter: Letter, _fault: Fault) -> Letter:
    return replace(letter, body=letter.body[: len(letter.body) // 2], is_persistent=False)


def _take_payload(letter: Letter, fault: Fault) -> Letter:
    """What fal sends for an output too large for a webhook, or not to be written as JSON."""
    body = json.loads(letter.body)
    body |= {"payload": None, "payload_error": "Response payload is not JSON serializable."}
    body["status"] = fault.options["status"]
    if body["status"] == "ERROR":
        body.setdefault("error", "Invalid status code: 500")
    else:
        body.pop("error", None)
    return replace(letter, body=json.dumps(body).encode())


def _add_fields(letter: Letter, fault: Fault) -> Letter:
    body = json.loads(letter.body) | fault.options["fields"]
    return replace(letter, body=json.dumps(body).encode())


def _scrawl(signer: Signer, request_id: str, body: bytes) -> dict[str, str]:
    """Right in all but the signature."""
    headers = signer.sign(request_id, body)
    right = headers["X-Fal-Webhook-Signature"]
    return {**headers, "X-Fal-Webhook-Signature": right[::-1]}


SPOILERS: Mapping[str, Callable[[Letter, Fault], Letter]] = {
    "forged": _forge,
    "wrong_key": _sign_with_wrong_key,
    "wrong_user": _sign_for_wrong_user,
    "stale": _sign_long_ago,
    "truncated": _truncate,
    "payload_null": _take_payload,
    "odd_message": _add_fields,
}
