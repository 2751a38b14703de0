"""The papers as data: every figure and table with its id, where it is shown, and what the papers print.

<paper>.yaml holds a paper's name, its citation, its artefacts (with numbers and notes, each with its place), claims and
settings; lib/papers/schema.py says what each key means. `ARTEFACTS`, `PAPERS` and `PUBLISHED` are read at their first use.
No number here steers a run (those live in params.yaml). Ids are `<paper>-<label in the paper>`; the labels of the JEM++
supplement begin with `supp-`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import ValidationError

from lib import files
from lib.papers.schema import Paper, Published

NAMES = ("jempp", "sada", "at")  # the files, in the order of the register
FOLDER = Path(__file__).parent


def read(path: Path) -> Paper:
    """A paper's file. Raises: DataError, one line: the file, the key, what was expected."""
    remedy = f"mend it, or git checkout {path.name}"
    try:
        raw = files.read_yaml(path, remedy)
        if not isinstance(raw, dict):
            raise files.DataError(f"{path} holds no section; expected the keys {', '.join(Paper.model_fields)}: {remedy}")
        paper = Paper.model_validate(raw)
    except ValidationError as e:
        first = min(e.errors(), key=lambda error: error["type"] != "extra_forbidden")  # a misspelt key, then what it lacks
        key, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        what = {"extra_forbidden": "unknown key", "missing": "missing; add it"}.get(first["type"], what)
        got = f"; got {first['input']!r}" if not isinstance(first["input"], dict) else ""
        raise files.DataError(f"{path}, {key}: {what}{got}: {remedy}") from None
    if strangers := [id for id in paper.artefacts if not id.startswith(f"{path.stem}-")]:
        raise files.DataError(f"{path}, artefacts.{strangers[0]}: expected an id that begins with {path.stem}-: {remedy}")
    return paper


@cache
def _all() -> dict[str, dict]:
    papers = {name: read(FOLDER / f"{name}.yaml") for name in NAMES}
    artefacts = {id: a for paper in papers.values() for id, a in paper.artefacts.items()}
    return {
        "PAPERS": {name: paper.citation for name, paper in papers.items()},
        "ARTEFACTS": artefacts,
        "PUBLISHED": {id: a.published for id, a in artefacts.items() if a.published},
    }


def __getattr__(name: str) -> dict:
    """PAPERS: file -> citation. ARTEFACTS: id -> Artefact. PUBLISHED: id -> Published."""
    if not name.isupper() or name not in _all():
        raise AttributeError(f"lib.papers has no {name!r}")
    return _all()[name]


def published(id: str) -> Published:
    """The paper's own numbers for one artefact id.

    Raises KeyError for an id that no paper has, and for a figure whose paper states no number in its text.
    """
    have = _all()
    if id not in have["PUBLISHED"]:
        known = id in have["ARTEFACTS"]
        reason = "the paper states no numbers for it" if known else "no paper has that id (see ARTEFACTS)"
        raise KeyError(f"no published numbers for {id!r}: {reason}; available: {', '.join(have['PUBLISHED'])}")
    return have["PUBLISHED"][id]
