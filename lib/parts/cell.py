"""What every cell of the one-idea table is made of: settings that are checked when they are read, frozen afterwards."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo


class ConfigError(ValueError):
    """A setting that cannot be: one line, naming the value, what was expected, the remedy."""


T = TypeVar("T")
C = TypeVar("C", bound="Cell")


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
        """A copy, checked anew, in which some settings differ: run.but({"update.lr": 0.1, "step": None}).
        Raises: ConfigError, one line, for a setting that there is not, or a value that cannot be."""
        return self._but(changes, "")

    def _but(self, changes: dict[str, Any], where: str) -> Self:
        """where: what leads to this section, with a dot at its end."""
        own, inner = dict(self), dict[str, dict]()
        for key, value in changes.items():
            head, _, rest = str(key).partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                own[head] = immutable(value)
        for head, its in inner.items():
            if not isinstance(part := own.get(head), Cell):
                raise ConfigError(f"{where}{head}: {part!r} is no section with {', '.join(its)}; give {where}{head} itself")
            own[head] = part._but(its, f"{where}{head}.")
        return built(type(self), own, where.rstrip("."), "")


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=2)]  # of images that are measured: one has no spread
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


# ---------------------------------------------------------------------------------------------- what a section may be
def classes_of(annotation: object) -> tuple[type[Cell], ...]:
    """The classes of a section: one, or one per kind; (): the value is no section."""
    if isinstance(annotation, type) and issubclass(annotation, Cell):
        return (annotation,)
    return tuple(c for a in typing.get_args(annotation) for c in (classes_of(a) if not isinstance(a, FieldInfo) else ()))


def tag_of(annotation: object) -> str:
    """The key that tells a section's kinds apart; empty for a section of one kind."""
    fields = [c.model_fields for c in classes_of(annotation)]
    return next((t for t in ("kind", "optimizer") if fields and all(t in f for f in fields)), "")


def type_of(cell: type[Cell], key: str) -> object:
    return cell.model_fields[key].annotation


def kind_of(cell: type[Cell], tag: str) -> str:
    """The value of `tag` that stands for this class."""
    return typing.get_args(type_of(cell, tag))[0]


def may_be_none(annotation: object) -> bool:
    return type(None) in typing.get_args(annotation)


def immutable(value):
    """YAML has lists only; the typed sections are immutable."""
    if isinstance(value, dict):
        return {k: immutable(v) for k, v in value.items()}
    return tuple(immutable(v) for v in value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------- errors
def nearest(key: object, among: Iterable[object]) -> str:
    near = difflib.get_close_matches(str(key), [str(a) for a in among], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def section_of(found: object, where: str) -> dict:
    """What is a section. Raises: ConfigError for anything else."""
    if not isinstance(found, dict):
        raise ConfigError(f"params.yaml, {where}: {found!r} is no section; expected keys and values")
    return found


def built(kind: type[C], section: object, where: str, file: str = "params.yaml, ") -> C:
    """A section as a cell. Raises: ConfigError, of the first thing that is wrong."""
    try:
        return kind.model_validate(section_of(section, where))
    except ValidationError as e:
        first = e.errors()[0]
        path, owner, others = _owner(kind, first["loc"])
        place, value = ".".join(filter(None, (where, *path))), first["input"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = _unknown(path[-1], owner, others)
        elif first["type"] == "missing" and isinstance(value, tuple):
            message = f"too few values; got {value!r}"
        elif first["type"] == "missing":
            message = "missing; add it"
        elif first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tag = tag_of(owner)
            has = value.get(tag) if isinstance(value, dict) else value
            known = [kind_of(c, tag) for c in classes_of(owner)]
            message = f"{tag}: {has!r}{nearest(has, known)}; expected one of {', '.join(known)}"
        elif first["type"] != "value_error" or path:
            message = f"{message}; got {value!r}" if not isinstance(value, dict) else message
            message += "; YAML takes this for text: write a dot, as in 1.0e-3" if _exponent(value) else ""
        raise ConfigError(" ".join((f"{file}{place}: {message}" if place else message).split())) from None


def _exponent(value: object) -> bool:
    """Whether a text is a number such as 1e-3, which YAML 1.1 knows with a dot only."""
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE) is not None


def _owner(annotation: object, loc: tuple[int | str, ...]) -> tuple[list[str], object, tuple[type[Cell], ...]]:
    """Where an error is: its path without the kinds that pydantic names, the section that it is in, its other kinds."""
    path: list[str] = []
    others: tuple[type[Cell], ...] = ()
    for i, part in enumerate(map(str, loc)):
        cells, tag = classes_of(annotation), tag_of(annotation)
        chosen = [c for c in cells if tag and len(cells) > 1 and kind_of(c, tag) == part]
        if chosen:
            annotation, others = chosen[0], tuple(c for c in cells if c is not chosen[0])
            continue
        path.append(part)
        inner = type_of(cells[0], part) if len(cells) == 1 and part in cells[0].model_fields else None
        if classes_of(inner):
            annotation, others = inner, ()
        elif i < len(loc) - 1:
            if typing.get_origin(inner) is dict:  # a key of it
                path.append(str(loc[i + 1]))
            break
    return path, annotation, others


def _unknown(key: str, owner: object, others: tuple[type[Cell], ...]) -> str:
    tag, cell = tag_of(owner), classes_of(owner)[0]
    if having := [kind_of(c, tag) for c in others if key in c.model_fields]:
        return (
            f"{tag} {kind_of(cell, tag)!r} has no such key, {' and '.join(having)} have; leave it out, or change the {tag}"
        )
    return "unknown key" + nearest(key, cell.model_fields)
