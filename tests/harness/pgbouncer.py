"""A PgBouncer of the run's own in front of a PostgreSQL of the run's own."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.servers import Postgres
from tests.harness.waiting import wait_until

REASON_WHY_NOT = "NOT RUN: pgbouncer is not installed (apt-get install pgbouncer)"
FREE = ("127.0.0.1", 0)


def find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def run_pgbouncer(postgres: Postgres, directory: Path, mode: str) -> Iterator[int]:
    """Its port on loopback. Transactions share four connections, in an order that nobody knows."""
    program = find_pgbouncer()
    assert program is not None, REASON_WHY_NOT
    with socket.create_server(FREE) as listener:
        port = int(listener.getsockname()[1])
    config = directory / "pgbouncer.ini"
    (directory / "users.txt").write_text('"postgres" ""\n')
    config.write_text(
        f"[databases]\n* = host={postgres.directory} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {directory / 'users.txt'}\npool_mode = {mode}\n"
        f"default_pool_size = {4 if mode == 'transaction' else 60}\nmax_client_conn = 500\n"
        "server_round_robin = 1\n"
    )
    directory.chmod(0o777)
    options = ["-u", postgres.directory.owner()] if os.geteuid() == 0 else []
    with (directory / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, *options, str(config)], stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
