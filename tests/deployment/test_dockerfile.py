"""The Dockerfile, instruction by instruction, and what it would build."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch

from tests.deployment.compose import ROOT, list_commands, read_compose
from worker.ground.settings import Settings

OF_PYTHON = {"PATH", "PYTHONUNBUFFERED"}


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str

    @property
    def is_local_copy(self) -> bool:
        return self.word == "COPY" and "--from=" not in self.rest


def read_stages() -> list[list[Instruction]]:
    """Instructions by stage; lines that are continued are joined, and comments are gone."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append(Instruction(word, rest.strip()))
    return stages


BUILD, FINAL = read_stages()


def find(word: str, stage: list[Instruction] = FINAL) -> list[str]:
    return [one.rest for one in stage if one.word == word]


def list_sources(stage: list[Instruction]) -> list[str]:
    return [source for one in stage if one.is_local_copy for source in one.rest.split()[:-1]]


def list_ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_both_stages_stand_on_the_same_image_of_full_version() -> None:
    images = [find("FROM", stage)[0].split()[0] for stage in (BUILD, FINAL)]
    assert images[0] == images[1]
    assert re.fullmatch(r"python:3\.1[1-9]\.\d+-slim-[a-z]+", images[0])


def test_each_source_of_a_copy_exists_and_is_sent_to_the_builder() -> None:
    sources = list_sources(BUILD)
    assert sources
    assert list_sources(FINAL) == []
    kept = [line[1:] for line in list_ignored() if line.startswith("!")]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source
    assert list_ignored()[0] == "*"


def test_each_variable_of_the_image_is_a_setting() -> None:
    (line,) = find("ENV")
    names = set(re.findall(r"([A-Z_]+)=", line))
    assert names - OF_PYTHON - {name.upper() for name in Settings.model_fields} == set()


def test_image_runs_as_nobody_in_particular() -> None:
    (user,) = find("USER")
    assert int(user) >= 1000
    words = [one.word for one in FINAL]
    assert "RUN" not in words[words.index("USER") :]


def test_packages_are_installed_by_hash_and_nothing_installs_in_the_final_image() -> None:
    installs = [line for line in find("RUN", BUILD) if "pip" in line and " install " in line]
    assert "--require-hashes --no-deps" in installs[0]
    assert all("--no-deps" in line for line in installs)
    assert not [line for line in find("RUN") if re.search(r"\bapt|\bpip install|curl|gcc", line)]


def test_image_can_send_traces() -> None:
    locked = (ROOT / "requirements" / "run.txt").read_text()
    assert "requirements/run.txt" in list_sources(BUILD)
    assert "opentelemetry-exporter-otlp-proto-http==" in locked


def test_image_is_labelled_and_makes_no_anonymous_volumes() -> None:
    (label,) = find("LABEL")
    assert {"title", "description", "licenses"} <= set(re.findall(r"image\.([a-z]+)=", label))
    assert find("VOLUME") == [], "each container without the archive would get one"


def test_image_and_compose_run_and_watch_the_receiver_alike() -> None:
    receiver = read_compose({"WEBHOOK_BASE_URL": "https://x"})["services"]["receiver"]
    (command,) = find("CMD")
    assert json.loads(command) == list_commands(receiver)
    (health,) = find("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == receiver["healthcheck"]["test"][1:]


def test_version_of_the_image_is_the_projects() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    version = re.findall(r'^version = "(.+)"$', pyproject, re.MULTILINE)[0]
    for service in read_compose({"WEBHOOK_BASE_URL": "https://x"})["services"].values():
        if "build" in service:
            assert service["image"] == f"extend-video:{version}"
