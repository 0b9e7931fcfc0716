"""What a model says when it refuses an input, in fal's shape (docs: Errors)."""

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Problem:
    """One item of fal's `detail` list. Clients branch on `type`, never on `msg`."""

    type: str
    loc: tuple[str | int, ...]
    msg: str
    input: object = None
    ctx: Mapping[str, object] | None = None

    @override
    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.loc)) or 'body'}: {self.msg}"

    def to_json(self) -> dict[str, object]:
        item: dict[str, object] = {
            "loc": ["body", *self.loc],
            "msg": self.msg,
            "type": self.type,
            "url": f"https://docs.fal.ai/errors/#{self.type}",
            "input": self.input,
        }
        if self.ctx is not None:
            item["ctx"] = dict(self.ctx)
        return item


class ModelError(Exception):
    """The model refused its input: 422 with every problem at once."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems

    def to_json(self) -> dict[str, object]:
        return {"detail": [problem.to_json() for problem in self.problems]}
