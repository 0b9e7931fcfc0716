"""`python -m emulator`: fal on loopback, until SIGTERM or Ctrl-C.

`python -m emulator faults URL set|clear|show` speaks to one that runs.
"""

import argparse
import asyncio
import ipaddress
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from emulator import fault_command
from emulator.catalog import UNIT_PRICE
from emulator.fault_table import is_price
from emulator.faults import Fault, parse_faults
from emulator.server import Options, serve

LAST_PORT = 65_535


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "faults":
        return fault_command.main(arguments[1:])
    parser = build_parser()
    given = parser.parse_args(arguments)
    if not given.allow_remote and not is_loopback(given.host):
        parser.error(f"--host {given.host} is not loopback; add --allow-remote if you mean it")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        run_server(given)
    except OSError as error:
        # A port that is taken, a directory that cannot be made.
        print(f"emulator: {error.strerror or error}", file=sys.stderr)  # noqa: T201 - why it ends
        return 1
    return 0


def run_server(given: argparse.Namespace) -> None:
    """Serve until told to end. Raises OSError."""
    if given.directory is not None:
        given.directory.mkdir(parents=True, exist_ok=True)
        asyncio.run(serve(read_options(given, given.directory)))
        return
    with tempfile.TemporaryDirectory(prefix="emulator-") as directory:
        asyncio.run(serve(read_options(given, Path(directory))))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="loopback address to listen on (%(default)s)")
    add("--port", type=read_port, default="0", help="0 picks a free one (%(default)s)")
    add("--directory", type=Path, help="keeps files and signing key (default: a temporary one)")
    add("--key", default="emulator-key", help="the API key accepted")
    add("--user-id", default="emulator-user", help="account named in webhooks (%(default)s)")
    add("--other-key", action="append", default=[], help="another account's; may be repeated")
    add("--admin-key", default="emulator-admin", help="reads the bill, too (%(default)s)")
    add("--unit-price", type=read_price, default=UNIT_PRICE, help="USD a megapixel (%(default)s)")
    add("--queue-seconds", type=read_seconds, default="0", help="least time IN_QUEUE")
    add("--run-seconds", type=read_seconds, default="0", help="least time IN_PROGRESS")
    add("--concurrency", type=read_count, default="2", help="runs at once (%(default)s)")
    add(
        "--webhook-retry-seconds",
        type=read_seconds,
        default="7",
        help="wait before the first retry, doubled each time: 7 gives ten in two hours",
    )
    add("--webhook-concurrency", type=read_count, default="20", help="POSTs at once (%(default)s)")
    add(
        "--result-seconds",
        type=read_seconds,
        default="3600",
        help="how long status and result are known after completion (%(default)s)",
    )
    add(
        "--large-result-seconds",
        type=read_seconds,
        default="360",
        help="the same for a result of 10 KB or more (%(default)s)",
    )
    add(
        "--keep-alive-seconds",
        type=read_seconds,
        default="15",
        help="longest silence of a status stream (%(default)s)",
    )
    add(
        "--render",
        choices=("real", "fake"),
        default="real",
        help="fake: one small ready-made clip for all, whatever is asked for",
    )
    add("--faults", type=read_faults, default=(), metavar="FILE", help="JSON list of faults")
    add("--seed", type=int, default=0, help="decides which faults fire (%(default)s)")
    add("--allow-remote", action="store_true", help="listen on an address others can reach")
    return parser


def read_options(given: argparse.Namespace, directory: Path) -> Options:
    return Options(
        host=given.host,
        port=given.port,
        directory=directory,
        key=given.key,
        user_id=given.user_id,
        other_keys=tuple(given.other_key),
        admin_key=given.admin_key,
        unit_price=given.unit_price,
        queue_time=given.queue_seconds,
        run_time=given.run_seconds,
        concurrency=given.concurrency,
        webhook_retry=given.webhook_retry_seconds,
        webhook_concurrency=given.webhook_concurrency,
        result_time=given.result_seconds,
        large_result_time=given.large_result_seconds,
        keep_alive=given.keep_alive_seconds,
        in_a_hurry=given.render == "fake",
        faults=given.faults,
        seed=given.seed,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_seconds(text: str) -> timedelta:
    """Type for argparse: a duration of zero or more seconds, at most a day."""
    seconds = float(text)
    if not 0 <= seconds <= timedelta(days=1).total_seconds():
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0 to 86400: {text!r}")
    return timedelta(seconds=seconds)


def read_count(text: str) -> int:
    """Type for argparse: a whole number of at least one."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a whole number from 1: {text!r}")
    return int(text)


def read_price(text: str) -> Decimal:
    """Type for argparse: an amount of at least a nano-USD, in whole ones."""
    if not is_price(text):
        raise argparse.ArgumentTypeError(f"not an amount of USD in whole nano-USD: {text!r}")
    return Decimal(text)


def read_port(text: str) -> int:
    """Type for argparse: a port, or 0 for any free one."""
    if not 0 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"not a port from 0 to {LAST_PORT}: {text!r}")
    return int(text)


def read_faults(path: str) -> tuple[Fault, ...]:
    """Type for argparse: the faults in a file."""
    try:
        return parse_faults(json.loads(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
