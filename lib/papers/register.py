"""The register: of every figure and table of the papers, what the notebooks made of it, and which data a profile has."""

from __future__ import annotations

from lib import ROOT, data, files, papers, params
from lib.papers.schema import Artefact


def merge(profile: str | None = None) -> dict:
    """Merge every notebook's recorded.json into results/<profile>/artefacts.json, with a reason for each id that
    is not there."""
    profile = params.profile(profile)
    folder = ROOT / "results" / profile
    files.writable(folder)
    found: dict[str, dict] = {}
    for path in sorted(folder.glob("*/recorded.json")):
        again = f"python -m lib.book run {path.parent.name} --profile {profile}"
        found |= files.read_json(path, f"run its notebook again: {again}")
    notebooks = {p.stem[:2] for p in (ROOT / "notebooks").glob("*.ipynb")}
    merged = {id: found.get(id) or _missing(about, notebooks) for id, about in papers.ARTEFACTS.items()}
    files.write_json(folder / "artefacts.json", merged)
    return merged


def _missing(about: Artefact, notebooks: set[str]) -> dict:
    there = "there without it" if about.notebook in notebooks else "still to be written"
    return {
        "paper": about.paper,
        "title": about.title,
        "kind": about.kind,
        "notebook": about.notebook,
        "missing": f"not yet: it belongs to notebook {about.notebook}, which is {there}",
    }


def coverage() -> str:
    """Which figures and tables each profile produces, and on which data, by params.yaml: a table in Markdown.
    Where none of an artefact's roles has data, the profile shows a stand-in, which says so itself."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for id, about in papers.ARTEFACTS.items():
        groups.setdefault(about.data, []).append(id)
    rows = [["figures and tables", *(f"`{p}`" for p in params.PROFILES)], ["---"] * (1 + len(params.PROFILES))]
    for roles, ids in groups.items():
        without = "a stand-in" if roles else "needs no data"
        rows.append([f"{len(ids)}: {short(ids)}", *(_data_of(p, roles) or without for p in params.PROFILES)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _data_of(profile: str, roles) -> str:
    """The data sets that play these roles, e.g. 'MNIST 16×16; Fashion-MNIST 16×16 (Boot, Bag)'."""
    found: dict[tuple[str, bool], list[str]] = {}  # title, whether only of some classes -> these
    for p in (params.data(profile, r) for r in roles if r in params.scale(profile)["data"]):
        if p:
            classes = found.setdefault((f"{data.TITLES[p.name]} {p.size}×{p.size}", bool(p.classes)), [])
            classes += [data.CLASSES[p.name][c] for c in p.classes]
    return "; ".join(title + f" ({', '.join(classes)})" * some for (title, some), classes in found.items())


def short(ids: list[str]) -> str:
    """Ids in a row, in Markdown, each paper's prefix once: `jempp-fig1`, `-fig2`, `sada-fig1`."""
    out, before = [], None
    for id in ids:
        paper, label = id.split("-", 1)
        out.append(f"`{id}`" if paper != before else f"`-{label}`")
        before = paper
    return ", ".join(out)
