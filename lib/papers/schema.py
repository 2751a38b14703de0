"""What a paper's file holds, key by key: lib/papers/<paper>.yaml is checked against these classes as it is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


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
