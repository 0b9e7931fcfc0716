"""A RabbitMQ of the run's own: Debian's package, on loopback, with everything in one directory."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kombu import Connection

from tests.harness.brokers import find_closed_port
from tests.harness.waiting import wait_until

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
START_SECONDS = 90
REASON_WHY_NOT = "NOT RUN: no RabbitMQ on this machine (Debian's package rabbitmq-server)"


def has_rabbit() -> bool:
    return (PROGRAMS / "rabbitmq-server").exists() and shutil.which("erl") is not None


@dataclass(frozen=True)
class Rabbit:
    url: str
    env: Mapping[str, str]

    def control(self, *arguments: str) -> str:
        """`rabbitmqctl`; what it has printed."""
        command = [str(PROGRAMS / "rabbitmqctl"), "--quiet", *arguments]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def accepts_connections(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except Exception:  # noqa: BLE001 - whatever is wrong while it starts
            return False
        return True


@contextmanager
def run_rabbit() -> Iterator[Rabbit]:
    """Its virtual host makes quorum queues of queues that are declared without a type."""
    with tempfile.TemporaryDirectory(prefix="rabbit-", ignore_cleanup_errors=True) as directory:
        env = build_env(Path(directory))
        port, epmd = env["RABBITMQ_NODE_PORT"], env["ERL_EPMD_PORT"]
        with (Path(directory) / "out").open("wb") as out:
            process = subprocess.Popen(
                [str(PROGRAMS / "rabbitmq-server")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            host = Rabbit(f"amqp://guest:guest@127.0.0.1:{port}//", env)
            wait_until(host.accepts_connections, START_SECONDS)
            host.control("add_vhost", "videos", "--default-queue-type", "quorum")
            host.control("set_permissions", "-p", "videos", "guest", ".*", ".*", ".*")
            yield Rabbit(f"amqp://guest:guest@127.0.0.1:{port}/videos", env)
        finally:
            # The emulator of Erlang ends at once with its group; its port mapper is another one's.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            subprocess.run(["epmd", "-port", epmd, "-kill"], capture_output=True, check=False)


def build_env(directory: Path) -> dict[str, str]:
    plugins = directory / "plugins"
    plugins.write_text("[].\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"{directory.name.replace('-', '_')}@localhost",
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(find_closed_port()),
        "RABBITMQ_DIST_PORT": str(find_closed_port()),
        "ERL_EPMD_PORT": str(find_closed_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbit"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    }
