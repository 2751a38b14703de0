"""What every cell of the one-idea table is made of: settings that are checked when they are read, frozen afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class ConfigError(ValueError):
    """A setting that cannot be: one line, naming the value, what was expected, the remedy."""


T = TypeVar("T")


def given(part: T | None, missing: str) -> T:
    """A part that a run may lack, where it has one. Raises: ConfigError, which says `missing`."""
    if part is None:
        raise ConfigError(missing)
    return part


class Cell(BaseModel):
    """A section of params.yaml. A section with kinds is a union of such classes, told apart by a `kind`. What a cell does
    stands in the same class: it acts when called; where what acts has a state, `build` makes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def but(self, changes: dict[str, Any]) -> Self:
        """A copy, checked anew, in which some settings differ: run.but({"update.lr": 0.1, "step": None})."""
        own, inner = dict(self), dict[str, dict]()
        for key, value in changes.items():
            head, _, rest = key.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                own[head] = value
        return type(self)(**own | {k: own[k].but(v) for k, v in inner.items()})


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
