"""The papers as data: every figure and table with its id, where it is shown, and what the papers print.

<paper>.yaml holds a paper's name, its citation and four sections; the classes below say what their keys mean, and check
them. `ARTEFACTS`, `PAPERS` and `PUBLISHED` are read at their first use. No number here steers a run (those live in
params.yaml). Ids are `<paper>-<label in the paper>`; the labels of the JEM++ supplement begin with `supp-`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError  # refuses a key that stands twice, of which PyYAML takes the last

from lib import files

NAMES = ("jempp", "sada", "at")  # the files, in the order of the register
FOLDER = Path(__file__).parent


def _cell(value):
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError("expected a number, a text, true, false or null")
    return value


def _several(value):
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list")
    return tuple(value)


Text = Annotated[str, Field(min_length=1)]
Cell = Annotated[Any, AfterValidator(_cell)]
T = TypeVar("T")
Several = Annotated[tuple[T, ...], BeforeValidator(_several)]  # YAML knows lists only


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Note(Section):
    """What a reader of a table must know: where the papers contradict each other or themselves, or are not comparable."""

    place: Text  # e.g. 'JEM++ Table 2, footnote'
    text: Text


class Published(Section):
    """Numbers as a paper prints them, in its units and under its column names.

    The first cell of a row is its printed name, without citation numbers and footnote marks. None is a cell that the
    paper leaves open ('-', N/A), or that is not certain in our text.
    """

    source: Text  # where they stand, e.g. 'JEM++ Table 2'
    dataset: Text
    columns: Several[Text]
    rows: Several[Several[Cell]]

    @model_validator(mode="after")
    def _rectangular(self):
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows.{number} has {len(row)} cells; expected {len(self.columns)}, one for each column")
        return self


class Artefact(Section):
    """One figure or table of a paper."""

    id: str  # its key in the file
    paper: str  # the file's `name`
    kind: Literal["figure", "table"]
    title: Text
    section: Text  # of the paper
    notebook: Annotated[str, Field(pattern=r"^\d\d$")]
    # roles of the data that it is shown on (params.yaml: scales.<profile>.data); none: it needs no data
    data: Several[Text] = ("primary",)
    published: Published | None = None  # where the paper states numbers
    notes: Several[Note] = ()


class Claim(Section):
    """What a paper says that its method does, in our words, and how it is tested here."""

    section: Text
    claim: Text
    runs: Several[Text]
    measure: Text
    verdict: Text


class Setting(Section):
    """A setting as the paper's text and as its code have it; None where one of them does not say."""

    name: Text
    text: Cell
    code: Cell
    file: Text | None = None  # of the paper's code
    line: Annotated[int, Field(ge=1)] | None = None


class Paper(Section):
    name: Text
    citation: Text
    artefacts: dict[str, Artefact]
    claims: Several[Claim]
    settings: Several[Setting]

    @model_validator(mode="before")
    @classmethod
    def _each_artefact_knows_where_it_stands(cls, raw):
        for id, artefact in raw["artefacts"].items() if isinstance(raw.get("artefacts"), dict) else ():
            if isinstance(artefact, dict):
                artefact |= {"id": id, "paper": raw.get("name")}
        return raw


def read(path: Path) -> Paper:
    """A paper's file. Raises: DataError, one line: the file, the key, what was expected."""
    remedy = f"mend it, or git checkout {path.name}"
    try:
        raw = YAML(typ="safe").load(files.read_text(path, remedy))
        if not isinstance(raw, dict):
            raise files.DataError(f"{path} holds no section; expected the keys {', '.join(Paper.model_fields)}: {remedy}")
        paper = Paper.model_validate(raw)
    except YAMLError as e:
        about = " ".join(str(e).split("To suppress")[0].split())
        raise files.DataError(f"{path} is not YAML ({about}): {remedy}") from None
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
