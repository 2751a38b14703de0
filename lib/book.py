"""The notebooks' side: load runs, record figures and tables under their ids, run notebooks, write them as pages.

    python -m lib.book run 05_jempp_results      execute a notebook (papermill) into results/<profile>/05_jempp_results/
    python -m lib.book register                  merge what they recorded into results/<profile>/artefacts.json
    python -m lib.book coverage                  which of them each profile produces, as a table
    python -m lib.book html                      the notebooks, as saved, as pages in results/book/ that link to each other

A notebook's folder holds its executed copy, its figures (<id>.png), its tables (<id>.csv and <id>.md) and
recorded.json. With the quick profile the executed copy is written back to notebooks/, so that a reader sees there
what this code produces.
"""

from __future__ import annotations

import argparse
import html
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import torch

from lib import ROOT, data, files, papers, params
from lib.papers import register
from lib.training.provenance import commit

NOTEBOOKS = ROOT / "notebooks"


class Book:
    """One notebook at one profile.

    Args:
        name: the notebook's file name without ending, e.g. '05_jempp_results'.
        profile: None (the notebooks' default): $EBM_PROFILE, else params.yaml's.
    """

    def __init__(self, name: str, profile: str | None = None):
        from lib import plots

        plots.style()
        self.name, self.profile = name, params.profile(profile)
        self.folder = ROOT / "results" / self.profile / name
        files.writable(self.folder)
        self.live = params.scale(self.profile)["live"]  # sizes of what is computed in the notebook itself
        self.device = "cuda" if torch.cuda.is_available() else "cpu"  # of what a notebook computes at length
        if threads := params.scale(self.profile)["common"].get("threads"):
            torch.set_num_threads(threads)
        self.recorded: dict[str, dict] = {}  # id -> what the register says of it

    # ------------------------------------------------------------------------------------------ what was trained
    def run(self, run: str, seed: int | None = None, device: str = "cpu"):
        """A trained run (lib.evaluate.Trained): model, replay buffer, metrics. device: of the model, `book.device` where
        it computes at length; the buffer stays on the CPU."""
        from lib.evaluate import load_run

        return load_run(run, self.profile, seed, device)

    def split(self, role: str = "primary") -> data.Split:
        return data.load(self.profile, role)

    def metrics(self, run: str) -> dict:
        """All that lib.evaluate measured: 'seeds' (a list), 'mean', 'sd', 'title', 'data'."""
        return self._measured("details", run, "evaluate")

    def applications(self, run: str) -> dict:
        """What lib.applications measured: 'robustness', 'ood', 'title', 'data'."""
        return self._measured("applications", run, "apply")

    def _measured(self, folder: str, run: str, stage: str) -> dict:
        return files.read_json(ROOT / "results" / self.profile / folder / f"{run}.json", f"run `dvc repro {stage}@{run}`")

    def curve(self, run: str, seed: int | None = None):
        """The training curve as a pandas DataFrame (columns: lib.training.loop); without rows where the run diverged at
        once."""
        import pandas as pd

        from lib.training.loop import columns

        trained, remedy = self.run(run, seed), f"run `dvc repro train@{run}`"
        path = trained.folder / "curve.csv"
        text = files.read_text(path, remedy)
        try:
            frame = pd.read_csv(io.StringIO(text))
        except ValueError as e:  # pandas' errors are of this kind
            raise data.DataError(f"{path} is damaged ({type(e).__name__}): {remedy}") from None
        if lacking := [c for c in columns(trained.run) if c not in frame]:
            raise data.DataError(f"{path} has no column {', '.join(lacking)}: it is of another version; {remedy}")
        return frame if len(frame) else frame.astype(float)  # of nothing, pandas cannot tell the type

    # ------------------------------------------------------------------------------------- what the notebook shows
    def figure(self, id: str, fig, runs=(), dataset: str = "", stand_in: str = ""):
        """Save a figure under its id and register it; returns the figure, so that the cell shows it, and the papers'
        notes on it below.

        dataset: what it is shown on; left out, the data of its runs. stand_in: why these are not the published data, said
        in every profile but `paper`."""
        import matplotlib.pyplot as plt

        path = self.folder / f"{id}.png"
        files.write_figure(path, fig)
        self._record(id, [path], runs, dataset, stand_in)
        plt.close(fig)  # else the inline backend shows it a second time
        return fig

    def table(self, id: str, frame, runs=(), dataset: str = "", stand_in: str = "", digits: int = 2):
        """Save a table as CSV (full precision) and Markdown under its id; returns the rounded frame to display. The cell
        shows the papers' notes on it below."""
        path = self.folder / f"{id}.csv"
        files.write_text(path, frame.to_csv(index=False, lineterminator="\n"))
        shown = frame.map(lambda v: round(v, digits) if isinstance(v, float) else v).astype(object)
        shown = shown.where(shown.notna(), "–")
        header = [str(c) for c in shown.columns]
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in shown.itertuples(index=False)]
        files.write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")
        self._record(id, [path, path.with_suffix(".md")], runs, dataset, stand_in)
        return (
            shown.style.set_uuid(id)
            .hide(axis="index")
            .format(lambda v: f"{v:g}" if isinstance(v, float) else v)
            .set_properties(**{"text-align": "left"})
            .set_table_attributes('style="font-size: 85%"')
        )

    def _record(self, id: str, paths, runs, dataset: str, stand_in: str) -> None:
        if id not in papers.ARTEFACTS:
            raise KeyError(f"{id!r} is not an artefact of the papers: see lib.papers.ARTEFACTS")

        about = papers.ARTEFACTS[id]
        seeds = sorted({s for r in runs for s in params.run(r, self.profile).seeds})
        entry = {
            "paper": about.paper,
            "title": about.title,
            "kind": about.kind,
            "notebook": self.name,
            "files": [Path(f).relative_to(ROOT).as_posix() for f in paths],
            "runs": list(runs),
            "dataset": dataset or self._datasets(runs) or "none: computed in the notebook",
            "seeds": seeds,
            "commit": commit(),
        }
        if stand_in and self.profile != "paper":
            entry["stand_in"] = stand_in
        self.recorded[id] = entry
        files.write_json(self.folder / "recorded.json", self.recorded)
        _show_below(notes(id))

    def _datasets(self, runs) -> str:
        """Titles of the data sets that runs were trained on, each once."""
        return "; ".join(self.split(role).title for role in dict.fromkeys(params.run(r, self.profile).data for r in runs))

    # ------------------------------------------------- runs that diverged early, or a profile that keeps no snapshots
    def snapshots(self, run: str):
        """What was measured along a run's training, first seed, as a pandas DataFrame with a row for each snapshot; where
        none was kept, only the end."""
        import pandas as pd

        end = self.metrics(run)["seeds"][0]
        images, hits = (
            end.get("buffer") or end.get("samples") or {},
            {"accuracy": end["accuracy"]} if "accuracy" in end else {},
        )
        return pd.json_normalize(end.get("snapshots") or [{"iteration": end["iterations"], **hits, **images}])

    @staticmethod
    def last(column) -> float:
        """The last entry of a curve's column; NaN where the run diverged before its first row."""
        return column.iloc[-1] if len(column) else float("nan")


def published(id: str, **columns):
    """The papers' numbers of a table as a pandas DataFrame, with a column that names their source."""
    import pandas as pd

    p = papers.published(id)
    frame = pd.DataFrame(p.rows, columns=p.columns)
    frame["source"] = f"{p.source}, {p.dataset}"
    return frame.rename(columns=columns)


def notes(id: str) -> str:
    """What a reader of this figure or table must know of the papers, with the place of each: a list, Markdown."""
    escaped = ((n.place, re.sub(r"([*_\\])", r"\\\1", n.text)) for n in papers.ARTEFACTS[id].notes)
    return "\n".join(f"- *{place}:* {text}" for place, text in escaped)


def _show_below(text: str) -> None:
    """Show Markdown under the output of the running cell: a cell shows its last value when all of it has run."""
    from IPython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if not text or shell is None:
        return

    def show(*_):
        shell.events.unregister("post_run_cell", show)
        display(Markdown(text))

    shell.events.register("post_run_cell", show)


def inception_columns(section: dict, protocol: str = "") -> dict[str, float]:
    """A table's columns of a measured section (lib.evaluate): FID, IS and, of few images, KID in each of Inception's
    modes that the profile asks for, e.g. 'FID clean, plain'; {} where it asks for none. protocol: names the images."""
    of = protocol and f", {protocol}"
    return {
        f"{number.upper()} {mode}{of}": measured[number]
        for mode, measured in section.get("inception", {}).items()
        for number in ("fid", "is", "kid")
        if number in measured
    }


def run_notebook(name: str, profile: str | None = None) -> Path:
    """Execute notebooks/<name>.ipynb with papermill into results/<profile>/<name>/ and, for quick, back in place.

    Raises: papermill's PapermillExecutionError where a cell fails (the notebook in results/ shows it); DataError for a
    damaged notebook, OSError where the results cannot be written.
    """
    import nbformat
    import papermill

    profile = params.profile(profile)
    source = NOTEBOOKS / f"{name}.ipynb"
    if not source.exists():
        have = ", ".join(p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise FileNotFoundError(f"no notebook {name!r}; notebooks/ has {have}")
    files.read_json(source, f"restore it with git checkout {source.name}", ("cells",))
    out = ROOT / "results" / profile / name / f"{name}.ipynb"
    files.writable(out.parent, *[NOTEBOOKS] * (profile == "quick"))
    # the kernel imports this checkout's lib, whichever one an environment has installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    papermill.execute_notebook(
        str(source),
        str(out),
        {"profile": profile},
        kernel_name="python3",
        cwd=str(NOTEBOOKS),
        progress_bar=False,
        log_output=False,
    )
    nb = nbformat.read(out, as_version=4)
    _tidy(nb)
    for path in (out, source) if profile == "quick" else (out,):
        files.write_text(path, nbformat.writes(nb).rstrip("\n") + "\n")
    return out


def _tidy(nb) -> None:
    """Drop what papermill adds (times, the injected cell) and what differs between machines, so that a notebook
    changes only where its content does."""
    nb.metadata.pop("papermill", None)
    nb.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in nb.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            cell.metadata.pop("tags")


def pages(folder: Path | None = None) -> list[Path]:
    """The notebooks, as saved, as HTML pages in `folder` (results/book/), whose links lead to each other.
    Raises: DataError for a link that leads nowhere."""
    from nbconvert import HTMLExporter

    folder = folder or ROOT / "results" / "book"
    files.writable(folder)
    exporter, written = HTMLExporter(), []
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        body, _ = exporter.from_filename(str(source))
        written.append(folder / f"{source.stem}.html")
        files.write_text(written[-1], re.sub(r'(href="[^":]+)\.ipynb(["#])', r"\1.html\2", body))
    if dead := dead_links(written):
        raise data.DataError(
            f"{folder} has {len(dead)} links that lead nowhere, the first {dead[0]}: correct it in notebooks/"
        )
    return written


def dead_links(written: Iterable[Path]) -> list[str]:
    """'page: link' for each link of these pages to a page, file or heading of the project that is not there."""
    ids = {p.name: {unquote(i) for i in re.findall(r'\bid="([^"]+)"', p.read_text(encoding="utf-8"))} for p in written}
    dead = []
    for page in written:
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', page.read_text(encoding="utf-8")):
            target, _, heading = unquote(html.unescape(link)).partition("#")
            there = page if not target else page.parent / target
            if re.match(r"[a-z]+:", target) or (there.exists() and (not heading or heading in ids.get(there.name, ()))):
                continue
            dead.append(f"{page.name}: {link}")
    return dead


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Run notebooks and keep the register.")
    sub = parser.add_subparsers(dest="what", required=True)
    one = sub.add_parser("run")
    one.add_argument("name")
    sub.add_parser("coverage")
    sub.add_parser("html")
    for p in (one, sub.add_parser("register")):
        p.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    if args.what == "run":
        print(run_notebook(args.name, args.profile).relative_to(ROOT))
    elif args.what == "coverage":
        print(register.coverage())
    elif args.what == "html":
        print(pages()[0].relative_to(ROOT).as_posix())
    else:
        merged = register.merge(args.profile)
        print(f"{sum('files' in a for a in merged.values())} of {len(merged)} artefacts are there")


if __name__ == "__main__":
    main()
