"""`python -m emulator faults URL set|clear|show`: the faults of a running emulator, by shell.

faults URL set submit/status:code=503:times=2 webhook/repeat:count=3:match.prompt=fox
faults URL set '[{"point": "status", "kind": "stuck"}]'
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

import httpx

PATH = "/_emulator/faults"
REFUSED = 1


def main(arguments: Sequence[str]) -> int:
    """Prints the faults in force; 1 if the emulator refused or did not answer."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    try:
        faults = [one for text in given.faults for one in read_faults(text)]
    except ValueError as error:
        parser.error(str(error))
    if bool(faults) is not (given.action == "set"):
        parser.error("set needs faults, the others take none")
    return order(given.url.rstrip("/") + PATH, given.action, faults)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emulator faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="the emulator's address, as its first line told it")
    parser.add_argument("action", choices=("set", "clear", "show"))
    parser.add_argument("faults", nargs="*", help="JSON, or point/kind[:option=value…]")
    return parser


def order(url: str, action: str, faults: Sequence[object]) -> int:
    method = {"set": "PUT", "clear": "DELETE", "show": "GET"}[action]
    body = json.dumps(faults) if action == "set" else None
    try:
        response = httpx.request(method, url, content=body, trust_env=False, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return REFUSED
    if response.is_error:
        sys.stderr.write(f"{read_detail(response)}\n")
        return REFUSED
    sys.stdout.write(f"{json.dumps(response.json(), indent=2)}\n")
    return 0


def read_faults(text: str) -> list[object]:
    """A JSON list or object, or one fault in short.

    Raises ValueError: neither.
    """
    if text.lstrip()[:1] in ("[", "{"):
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    return [read_short(text)]


def read_short(text: str) -> dict[str, object]:
    """`point/kind:option=value`; a colon within a value is one of it unless an option follows.

    Raises ValueError: of another shape.
    """
    head, *options = re.split(r":(?=[a-z_.]+=)", text)
    point, slash, kind = head.partition("/")
    if not slash or ":" in kind:
        raise ValueError(f"not point/kind[:option=value…]: {text!r}")
    fault: dict[str, object] = {"point": point, "kind": kind}
    match: dict[str, object] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name.startswith("match."):
            match[name.removeprefix("match.")] = value
        else:
            fault[name] = read_value(value)
    return fault | ({"match": match} if match else {})


def read_value(text: str) -> object:
    """As JSON where it is some, else as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_detail(response: httpx.Response) -> object:
    try:
        return response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.text[:200]}"
