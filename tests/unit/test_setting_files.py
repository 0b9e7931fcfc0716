"""Settings out of files: what Docker, Kubernetes and systemd hand over as secrets."""

import pytest

from worker.ground.errors import InvalidSettingsError
from worker.ground.settings import Settings, load_settings

KEY = "key-out-of-a-file"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "fal_key"
    path.write_text(f"{KEY}\n")
    return path


def refuse() -> dict[str, str]:
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    return {violation.field: violation.allowed for violation in caught.value.violations}


def read_key() -> str:
    key = load_settings().fal_key
    assert key is not None
    return key.get_secret_value()


@pytest.mark.parametrize(("begin", "end"), [("", ""), ("\ufeff", "\r\n")])
def test_key_is_read_from_its_file_without_what_editors_add(
    monkeypatch, key_file, begin, end
) -> None:
    key_file.write_bytes(f"{begin}{KEY}{end}".encode())
    monkeypatch.setenv("FAL_KEY_FILE", str(key_file))
    assert read_key() == KEY


def test_file_named_in_dotenv_is_read(tmp_path, key_file) -> None:
    (tmp_path / ".env").write_text(f"FAL_KEY_FILE={key_file}\n")
    assert read_key() == KEY


def test_wrong_file_of_any_setting_is_named(monkeypatch, tmp_path) -> None:
    variables = [f"{name.upper()}_FILE" for name in Settings.model_fields]
    for variable in variables:
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    refused = refuse()
    assert list(refused) == variables
    for allowed in refused.values():
        assert "must be a readable file in UTF-8: [Errno 2] No such file" in allowed


def test_file_goes_through_the_checks_of_its_setting(monkeypatch, tmp_path) -> None:
    (tmp_path / "url").write_text("mysql://u:s3cret@h/x\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(InvalidSettingsError, match="DATABASE_URL=mysql://u:") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "allowed"),
    [(b"\n", "must not be empty"), (b"\xff\xfe", "must be a readable file in UTF-8")],
)
def test_file_that_holds_no_value_is_refused(monkeypatch, key_file, content, allowed) -> None:
    key_file.write_bytes(content)
    monkeypatch.setenv("FAL_KEY_FILE", str(key_file))
    [(name, said)] = refuse().items()
    assert name == "FAL_KEY_FILE"
    assert said.startswith(allowed)


def test_setting_given_twice_is_refused(monkeypatch, key_file) -> None:
    """Whoever renews the file would otherwise wonder for long why nothing changes."""
    monkeypatch.setenv("FAL_KEY_FILE", str(key_file))
    monkeypatch.setenv("FAL_KEY", "another")
    assert refuse() == {"FAL_KEY_FILE": "give either it or FAL_KEY, not both"}


def test_file_beside_an_empty_variable_is_read(monkeypatch, key_file) -> None:
    """Compose sets a variable that nobody has given a value to the empty text."""
    monkeypatch.setenv("FAL_KEY_FILE", str(key_file))
    monkeypatch.setenv("FAL_KEY", "")
    assert read_key() == KEY
