"""How long a file of the CDN lives and who may read it (docs: Media expiration, File access)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Self

UPLOAD_HEADERS = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")
"""fal's pages and clients disagree on the name; the first that is there counts."""
OUTPUT_HEADERS = ("X-Fal-Object-Lifecycle-Preference",)
LONGEST_LIFE = timedelta(days=36_500)


class Decision(StrEnum):
    ALLOW = "allow"
    FORBID = "forbid"
    HIDE = "hide"


@dataclass(frozen=True, slots=True)
class Acl:
    """A decision for all, and others for single users."""

    default: Decision = Decision.ALLOW
    rules: Mapping[str, Decision] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises ValueError: naming what is unknown or wrong."""
        given = _read_object(value, "ACL", ("default", "rules"))
        rules = [] if given.get("rules") is None else given["rules"]
        if not isinstance(rules, list):
            raise ValueError(f"rules must be a list, not {rules!r}")  # noqa: TRY004 - one kind for all
        return cls(
            _read_decision(given.get("default", Decision.ALLOW)), dict(map(_read_rule, rules))
        )

    def decide(self, user: str | None) -> Decision:
        return self.rules.get(user, self.default) if user is not None else self.default

    def to_json(self) -> dict[str, object]:
        rules = [{"user": user, "decision": said} for user, said in self.rules.items()]
        return {"default": self.default, "rules": rules}


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What is said of a file when it is made. Unsaid: for ever, and for everybody."""

    expires_after: timedelta | None = None
    acl: Acl = field(default_factory=Acl)

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], names: tuple[str, ...]) -> Self:
        """Raises ValueError: naming the header, and what is wrong with it."""
        name = next((one for one in names if one in headers), None)
        if name is None:
            return cls()
        try:
            return cls.from_json(json.loads(headers[name]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises ValueError: naming what is unknown or wrong."""
        given = _read_object(value, "lifecycle", ("expiration_duration_seconds", "initial_acl"))
        seconds = given.get("expiration_duration_seconds")
        acl = given.get("initial_acl")
        return cls(
            None if seconds is None else _read_life(seconds),
            Acl() if acl is None else Acl.from_json(acl),
        )

    def to_json(self) -> dict[str, object]:
        seconds = self.expires_after.total_seconds() if self.expires_after else None
        return {"expiration_duration_seconds": seconds, "initial_acl": self.acl.to_json()}


def _read_life(value: object) -> timedelta:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expiration_duration_seconds must be a whole number from 1: {value!r}")
    return min(timedelta(seconds=min(value, 2**40)), LONGEST_LIFE)


def _read_rule(value: object) -> tuple[str, Decision]:
    given = _read_object(value, "rule", ("user", "decision"))
    user = given.get("user")
    if not isinstance(user, str):
        raise ValueError(f"user must be a string, not {user!r}")  # noqa: TRY004 - as above
    return user, _read_decision(given.get("decision"))


def _read_decision(value: object) -> Decision:
    if value not in tuple(Decision):
        raise ValueError(f"a decision is allow, forbid or hide, not {value!r}")
    return Decision(str(value))


def _read_object(value: object, what: str, known: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r}")  # noqa: TRY004 - as above
    for name in value:
        if name not in known:
            raise ValueError(f"unknown key {name!r} of {what}; known: {', '.join(known)}")
    return dict(value)
