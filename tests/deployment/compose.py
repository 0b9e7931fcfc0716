"""docker-compose.yml read as Compose reads it, and its services started without Docker."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
INTERPOLATION = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Z_]+)(?P<kind>:-|:\?)(?P<rest>[^}]*)\})"
)


class MissingVariableError(Exception):
    """What Compose says where a variable has to be set."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Every text in it with `${NAME:-default}`, `${NAME:?message}` and `$$` filled in."""
    match value:
        case str():
            return INTERPOLATION.sub(lambda found: fill_in(found, variables), value)
        case list():
            return [interpolate(one, variables) for one in value]
        case dict():
            return {name: interpolate(one, variables) for name, one in value.items()}
        case _:
            return value


def fill_in(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["escaped"]:
        return "$"
    given = variables.get(found["name"])
    if given:
        return given
    if found["kind"] == ":?":
        raise MissingVariableError(found["rest"])
    return found["rest"]


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = interpolate(yaml.safe_load(FILE.read_text()), variables)
    return read


def read_env_file(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def read_first_job() -> tuple[str, list[str]]:
    """The documented command that enqueues a first job: its service, and what runs there."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    (line,) = re.findall(r"^docker compose .* exec .*$", text, re.MULTILINE)
    words = shlex.split(line)
    options, (service, *command) = words[: words.index("exec")], words[words.index("exec") + 1 :]
    expected = ["--env-file", "deploy/emulator.env", "--profile", "emulator"]
    assert options == ["docker", "compose", *expected]
    return service, command


def list_profiles(compose: Mapping[str, Any]) -> set[str]:
    return {one for service in compose["services"].values() for one in service.get("profiles", ())}


@dataclass
class Translation:
    """What has another name or address inside a container than on this machine."""

    words: dict[str, str] = field(default_factory=dict)

    def apply(self, text: str) -> str:
        """The longest first: a word may begin with another one."""
        for word in sorted(self.words, key=len, reverse=True):
            text = text.replace(word, self.words[word])
        return text

    def apply_all(self, texts: Sequence[str]) -> list[str]:
        return [self.apply(text) for text in texts]


def list_commands(service: Mapping[str, Any]) -> list[str]:
    return [str(word) for word in service["command"]]


def build_health_command(service: Mapping[str, Any]) -> list[str]:
    kind, *words = service["healthcheck"]["test"]
    assert kind in {"CMD", "CMD-SHELL"}
    return ["sh", "-c", *words] if kind == "CMD-SHELL" else [str(word) for word in words]
