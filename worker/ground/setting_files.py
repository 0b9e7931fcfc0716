"""Settings out of files: `NAME_FILE` names a file that holds the value of the setting `NAME`.

So a secret is neither in the environment nor on a command line: Docker's secrets, Kubernetes' and
systemd's credentials are files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
)
from typing_extensions import override

from worker.ground.errors import InvalidSettingsError, Violation

SUFFIX = "_file"
MOST_BYTES = 64 * 1024


class FileSettingsSource(PydanticBaseSettingsSource):
    """Reads what `variables` (names in small letters) point at.

    Raises InvalidSettingsError, naming every file that cannot be read, and every setting that is
    given twice.
    """

    def __init__(
        self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]
    ) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = self._variables.get(field_name + SUFFIX)
        if path and self._variables.get(field_name):
            raise ValueError(f"give either it or {field_name.upper()}, not both")
        return (read_value(path) if path else None), field_name, False

    @override
    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        wrong: list[Violation] = []
        for name, field in self.settings_cls.model_fields.items():
            try:
                value, _, _ = self.get_field_value(field, name)
            except ValueError as error:
                path = str(self._variables.get(name + SUFFIX))
                wrong.append(Violation((name + SUFFIX).upper(), path, str(error)))
            else:
                found |= {} if value is None else {name: value}
        if wrong:
            raise InvalidSettingsError(tuple(wrong))
        return found


class FiledSettings(BaseSettings):
    """Settings that may be given by files, too."""

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """After the environment and `.env`: the files that they name."""
        named: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):
            if isinstance(source, (DotEnvSettingsSource, EnvSettingsSource)):
                named.update(source.env_vars)
        files = FileSettingsSource(settings_cls, named)
        return init_settings, env_settings, dotenv_settings, files


def read_value(path: str) -> str:
    """The file's text without the line end that editors add. Raises ValueError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"must be a readable file: {reason}") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"must have at most {MOST_BYTES} bytes")
    if not text:
        raise ValueError("must not be empty")
    return text
