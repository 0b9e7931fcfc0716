"""Who comes with what: CDN tokens, signed URLs, and credentials that should have stayed at home."""

from datetime import timedelta

from aiohttp import web

from emulator.accounts import ACCOUNTS
from emulator.leaks import Leak, Leaks
from emulator.lifecycle import Decision
from emulator.seal import Seal
from emulator.storage import Storage

STORAGE = web.AppKey("storage", Storage)
SEAL = web.AppKey("seal", Seal)
LEAKS = web.AppKey("leaks", Leaks)
TOKEN_TYPE = "Bearer"  # noqa: S105 - a scheme's name
TOKEN_LIFE = timedelta(hours=1)


def issue_token(app: web.Application) -> str:
    return app[SEAL].stamp(f"cdn/{app[ACCOUNTS].own}", TOKEN_LIFE)


def has_token(request: web.Request) -> bool:
    """A CDN token of this account's, in force."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    subject = f"cdn/{request.app[ACCOUNTS].own}"
    return scheme == TOKEN_TYPE and request.app[SEAL].proves(subject, token)


def name_credential(request: web.Request) -> str | None:
    """What kind of credential the request carries, if any."""
    given = request.headers.get("Authorization")
    if given is None:
        return None
    if request.app[ACCOUNTS].has_key_in(given) or given.lower().startswith("key "):
        return "key"
    return "cdn_token" if has_token(request) else "other"


def note_leak(request: web.Request, place: str) -> None:
    """Remember that a credential came here; what it was is not kept."""
    credential = name_credential(request)
    if credential is not None:
        request.app[LEAKS].note(Leak(place, credential, request.method, request.path))


def decide_reading(request: web.Request, name: str) -> Decision:
    """The owner may always read, and so may anybody with a URL the owner signed."""
    app = request.app
    identity = request.query.get("identity", "")
    if has_token(request) or app[SEAL].proves(f"files/{name}", identity):
        return Decision.ALLOW
    return app[STORAGE].find_record(name).acl.decide(None)


def build_origin(request: web.BaseRequest) -> str:
    """Scheme and host as the caller used them."""
    return f"{request.scheme}://{request.host}"
