import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from emulator.__main__ import is_loopback, main
from emulator.faults import Faults, parse_faults
from tests.emulator.processes import read_address, run_process

COMMAND = [sys.executable, "-m", "emulator"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_process_cleanly_and_the_log_never_shows_the_key(tmp_path, number, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    root = Path(__file__).parents[2]
    command, pipe = [*COMMAND, "--key", "top-secret"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root) as process:
        url = read_address(process)
        headers = {"Authorization": "Key top-secret"}
        submit = f"{url}/fal-ai/ltx-2.3-22b/extend-video"
        response = httpx.post(submit, json={}, headers=headers, trust_env=False)
        assert len(list(tmp_path.glob("emulator-*"))) == 1
        process.send_signal(number)
        output, log = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, "")
    assert list(tmp_path.glob("emulator-*")) == []
    assert response.json()["request_id"] in log
    assert "top-secret" not in log


def test_ipv6_address_is_named_in_brackets_and_may_be_remote(tmp_path):
    command = [*COMMAND, "--host", "::", "--allow-remote", "--directory", str(tmp_path)]
    with run_process(command) as process:
        url = read_address(process)
        assert url.startswith("http://[::]:")
        near = url.replace("[::]", "[::1]")
        assert httpx.get(f"{near}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--port", "65536"], "not a port from 0 to 65535"),
        (["--run-seconds", "nan"], "not a number of seconds"),
        (["--concurrency", "0"], "not a whole number"),
        (["--render", "well"], "invalid choice"),
        (["--faults", "/nowhere/faults.json"], "No such file"),
    ],
)
def test_wrong_usage_is_refused_with_a_reason(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_taken_port_is_told_in_a_line(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "address already in use" in capfd.readouterr().err


def test_directory_that_cannot_be_made_is_told_in_a_line(tmp_path, capfd):
    (tmp_path / "file").touch()
    assert main(["--directory", str(tmp_path / "file" / "new")]) == 1
    assert capfd.readouterr().err == "emulator: Not a directory\n"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_recognized(host, expected):
    assert is_loopback(host) is expected


def test_faults_file_of_wrong_faults_is_refused_by_name(tmp_path, capsys):
    path = tmp_path / "faults.json"
    path.write_text('[{"point": "door", "kind": "drop"}]')
    with pytest.raises(SystemExit):
        main(["--faults", str(path)])
    assert "faults[0]: unknown point: 'door'" in capsys.readouterr().err


def test_faults_file_and_seed_are_obeyed_from_the_start(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text('[{"point": "jwks", "kind": "status", "rate": 0.5}]')
    expected = Faults(parse_faults(json.loads(path.read_text())), seed=7)
    options = ["--faults", str(path), "--seed", "7", "--directory", str(tmp_path)]
    with run_process([*COMMAND, *options]) as process:
        url = f"{read_address(process)}/.well-known/jwks.json"
        codes = [httpx.get(url, trust_env=False).status_code for _ in range(20)]
    assert codes == [500 if expected.take("jwks") else 200 for _ in range(20)]
    assert set(codes) == {200, 500}
