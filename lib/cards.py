"""A model card for each main method, from what the pipeline measured:  python -m lib.cards --profile quick

writes results/<profile>/models/<run>.md: data, settings, numbers with their intervals, samples, limits, how to load. The
main methods are those that notebook 14 compares. The same results give the same cards, to the letter.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from lib import ROOT, data, files, papers, params

SAMPLES = ("jempp-fig3", "sada-fig2", "at-fig6")  # the figures that show samples at random
RADIUS = 8  # of the L_inf attack, 255ths: the papers' usual one
PROTOCOLS = {  # of lib.evaluate: which images its distances are of
    "buffer": "the replay buffer",
    "confident": "its most confident tenth per class",
    "fresh": "chains that start at p0",
    "samples": "moved p0 images",
    "start": "p0 itself",
}


@cache
def stages() -> dict:
    """The pipeline, as dvc.yaml describes it."""
    return yaml.safe_load(files.read_text(ROOT / "dvc.yaml", "git checkout dvc.yaml"))["stages"]


def card(name: str, profile: str) -> str | None:
    """The card of a run, Markdown; None where the profile has no data for it.
    Raises: DataError where it is not trained or not measured."""
    measured = files.read_json(ROOT / "results" / profile / "details" / f"{name}.json", f"run `dvc repro evaluate@{name}`")
    if "skipped" in measured:
        return None
    folder = ROOT / "artifacts" / profile / name / f"seed{measured['seeds'][0]['seed']}"
    about = files.read_json(folder / "provenance.json", f"run `dvc repro train@{name}`")
    applied = ROOT / "results" / profile / "applications" / f"{name}.json"
    extra = files.read_json(applied, f"run `dvc repro apply@{name}`") if applied.exists() else {}
    paper = papers.PAPERS.get(name.split("-")[0], "A baseline of the papers, not a method of theirs.")
    parts = [
        f"# {measured['title']}",
        f"Run `{name}` at profile `{profile}`. {paper}",
        "## Data",
        f"{measured['data']}, {_pixels(about)}. Where they come from, and their licences: `data/README.md`.",
        "## Settings",
        _settings(about, measured),
        "## Numbers",
        _numbers(measured, extra),
        "## Samples",
        _samples(name, profile, about),
        "## Limits",
        _limits(about, measured, extra),
        "## How to load it",
        _load(name, profile, about),
    ]
    return "\n\n".join(parts) + "\n"


def _pixels(about: dict) -> str:
    return "pixels in " + {"symmetric": "[-1, 1]", "unit": "[0, 1]"}[about["config"]["range"]]


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in (head, ("---",) * len(head), *rows))


def _flat(section: dict) -> str:
    """A cell of the configuration in a line: its kind, then what is set."""
    kind = section.get("kind") or section.get("optimizer")
    inner = ", ".join(
        f"{k} ({_flat(v)})" if isinstance(v, dict) else f"{k} {v}"
        for k, v in section.items()
        if k not in ("kind", "optimizer") and v not in (None, [], False)
    )
    return ": ".join(filter(None, (kind, inner)))


def _settings(about: dict, measured: dict) -> str:
    """One row per cell of the one-idea table, from the configuration that the run was trained with."""
    config, mean = about["config"], measured["mean"]
    energy = "E(x) = -f(x), one logit" if config["network"]["logits"] == 1 else "E(x) = -log sum exp of the class logits"
    rows = [("network", f"{_flat(config['network'])}; {about['parameters']:,} parameters"), ("energy", energy)]
    rows += [(k, _flat(config[k])) for k in ("start", "step", "loss", "update", "generation") if config[k]]
    rows += [
        ("images", f"augment {_flat(config['augment'])}, input noise {config['input_noise']}, branches {config['branches']}")
    ]
    rows += [
        ("training", f"{mean['iterations']:,.0f} updates, {mean['epochs']:.1f} epochs, {mean['seconds']:,.0f} s a seed"),
        ("seeds", ", ".join(str(s["seed"]) for s in measured["seeds"])),
        ("made on", f"{about['device']}, {about['precision']}, torch {about['torch']}, commit {about['commit']}"),
    ]
    return _table(("part", "setting"), rows)


class Row(NamedTuple):
    """A measure, as the card shows it."""

    what: str  # with a % at its end where the numbers are in percent
    value: float
    low: float | None = None  # of the interval; None: there is none
    high: float | None = None
    spread: float | None = None  # standard deviation over seeds; None: of one seed, there is none

    @property
    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        show = ("{:.1f}" if self.what.endswith("%") else "{:.2f}").format
        interval = "–" if self.low is None else f"{show(self.low)} to {show(self.high)}"
        return self.what, show(self.value), interval, "–" if self.spread is None else show(self.spread)


def _numbers(measured: dict, extra: dict) -> str:
    m, sd = measured["mean"], measured["sd"]
    rows = [*(_classified(m, sd) if "accuracy" in m else []), *(r for k in PROTOCOLS if k in m for r in _sampled(k, m, sd))]
    if len(measured["seeds"]) == 1:
        rows = [row._replace(spread=None) for row in rows]
    rows += _applied(extra)
    notes = ["Intervals: 95 %, bootstrap over images (means over seeds); spread: standard deviation over seeds."]
    if "start" in m:
        notes.append(
            "FD-clf and IS-clf use the features of this pipeline's reference classifier (weights "
            f"{measured['feature_extractor']}): they are not FID and IS, and not to be compared with a paper's."
        )
    return _table(("measure", "value", "interval", "spread"), [row.cells for row in rows]) + "\n\n" + " ".join(notes)


def _classified(m: dict, sd: dict) -> list[Row]:
    """Accuracy and calibration."""
    hits = (100 * m[k] for k in ("accuracy", "accuracy_low", "accuracy_high"))
    errors = (100 * m["calibration"][k] for k in ("ece", "ece_low", "ece_high"))
    return [
        Row("accuracy on test images, %", *hits)._replace(spread=100 * sd["accuracy"]),
        Row("expected calibration error (20 bins), %", *errors)._replace(spread=100 * sd["calibration"]["ece"]),
    ]


def _sampled(key: str, m: dict, sd: dict) -> list[Row]:
    """Sample quality by one of PROTOCOLS."""
    q, s, images = m[key], sd[key], PROTOCOLS[key]
    distance = f"FD-clf of {images} ({q['images']:,.0f} images)"
    rows = [
        Row(distance, q["fd_clf"], q.get("fd_low"), q.get("fd_high"), s["fd_clf"]),
        Row(f"IS-clf of {images}", q["is_clf"], spread=s["is_clf"]),
    ]
    for mode, i in q.get("inception", {}).items():
        for name in (n for n in ("fid", "is", "kid") if n in i):
            what = f"{name.upper()} of {images}, Inception, {mode}"
            rows.append(Row(what, i[name], spread=s["inception"][mode][name]))
    return rows


def _applied(extra: dict) -> list[Row]:
    """lib.applications' measures, of the first seed."""
    rows, r, worst = list[Row](), extra.get("robustness"), extra.get("worst_case", {})
    if r:
        i = _near(r["linf"]["radii"])
        rows.append(
            Row(
                f"accuracy under L∞ PGD of {r['linf']['radii'][i]}/255 ({r['steps']} steps, {r['images']} images), %",
                *(100 * r["linf"][k][i] for k in ("accuracy", "low", "high")),
            )
        )
    for kind, scores in extra.get("ood", {}).get("auroc", {}).items():
        s = scores["log_p_x"]
        rows.append(Row(f"AUROC of log p(x) against {kind}", s["value"], s["low"], s["high"]))
    for kind, s in worst.get("auroc", {}).get("log_p_x", {}).items():
        rows.append(Row(f"AUROC of log p(x) against attacked {kind} (L2 {worst['radius']:g})", s["worst"]))
    return rows


def _near(radii: list) -> int:
    """Index of the radius nearest to RADIUS, 0 apart."""
    return min((i for i, r in enumerate(radii) if r), key=lambda i: abs(radii[i] - RADIUS))


def _samples(name: str, profile: str, about: dict) -> str:
    if not about["config"]["step"]:
        return "None: a classifier has no chain."
    register = ROOT / "results" / profile / "artefacts.json"
    remedy = f"python -m lib.book register --profile {profile}"
    known = files.read_json(register, f"run {remedy}") if register.exists() else {}
    for id in SAMPLES:
        if (entry := known.get(id, {})).get("files") and name in entry["runs"]:
            png = next(f for f in entry["files"] if f.endswith(".png"))
            return f"![{entry['title']}](../{png.removeprefix(f'results/{profile}/')})\n\n*`{id}`: {entry['title']}.*"
    return "No figure shows this run's samples: `sample`, below, makes some."


def _limits(about: dict, measured: dict, extra: dict) -> str:
    config, m, seeds = about["config"], measured["mean"], measured["seeds"]
    said = []
    if config["profile"] != "paper":
        said.append(
            f"A small model ({about['parameters']:,} parameters, {m['epochs']:.1f} epochs): made to study the "
            "method, not to be used. Its numbers are not the paper's, whose data, network and training are larger."
        )
    if len(seeds) == 1:
        said.append("One seed: how much another one would differ is not known.")
    if bad := [s for s in seeds if s["verdict"] != "finished"]:
        said.append(
            "; ".join(f"seed {s['seed']} {s['verdict']}" for s in bad) + ": its numbers are of the last healthy weights."
        )
    said.append(
        "It knows only its training images' kind. log p(x) is known up to a constant: it ranks images within this "
        "model, and is no probability."
    )
    if sets := extra.get("ood", {}).get("auroc"):
        worst = min(sets, key=lambda k: sets[k]["log_p_x"]["value"])
        said.append(f"What log p(x) tells apart worst: {worst} (AUROC {sets[worst]['log_p_x']['value']:.2f}).")
    if r := extra.get("robustness"):
        radius, right = r["linf"]["radii"][-1], r["linf"]["accuracy"][-1]
        said.append(
            f"Attacked images deceive it: under PGD of {radius}/255 it is right on {100 * right:.0f} %; a stronger "
            "attack may do more."
        )
    if "buffer" in m:
        said.append(
            "Samples come from a buffer of chains that were kept through training. Short chains do not mix: they are "
            "near the data, and no fair draws of exp(-E)."
        )
    if "samples" in m:
        unlabelled = "" if _labelled(config) else "It has no labels and does not classify. "
        said.append(f"{unlabelled}Samples inherit the variety of the p0 images that they start from.")
    return "\n".join(f"* {s}" for s in said)


def _labelled(config: dict) -> bool:
    """Whether its loss has labels: `params.Run.labelled`, of the configuration that it was trained with."""
    return any(config["loss"].get(term) for term in ("cross_entropy", "adversarial_cross_entropy"))


def _load(name: str, profile: str, about: dict) -> str:
    """Score, and what else this run can: classify, sample."""
    config = about["config"]
    calls = [("s = model.score(x)", "log p(x) up to a constant: (n,)")]
    calls += [("p = model.classify(x)", "p(y|x): (n, classes)")] * _labelled(config)
    calls += [("images = model.sample(16)", "uint8 (16, C, H, W)")] * bool(config["step"])
    lines = [
        "from lib import data, load_run",
        "",
        f'model = load_run("{name}", "{profile}")',
        f'x = data.load("{profile}", "{config["data"]}").x_test',
        *(f"{call:28}# {what}" for call, what in calls),
    ]
    return (
        f"With its weights in place (`dvc pull`, or `dvc repro train@{name}`):\n\n```python\n" + "\n".join(lines) + "\n```"
    )


def write(profile: str, names: list[str]) -> list[Path]:
    """Write the cards of runs; returns their files. Raises: DataError, OSError."""
    folder, written = ROOT / "results" / profile / "models", []
    files.writable(folder)
    for name in names:
        try:
            text = card(name, profile)
        except KeyError as e:
            raise data.DataError(
                f"what was measured of {name} ({profile}) has no {e}: it is of another version; run "
                f"`dvc repro evaluate@{name}`, and apply@{name} where there is one"
            ) from e
        if text:
            written.append(folder / f"{name}.md")
            files.write_text(written[-1], text)
    return written


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model cards of the main methods.")
    parser.add_argument("runs", nargs="*", help="default: the runs that notebook 14 compares")
    parser.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    for path in write(params.profile(args.profile), args.runs or params.main_runs()):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
