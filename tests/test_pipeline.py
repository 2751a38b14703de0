"""The smoke pipeline, end to end, every notebook through nbval, and trained models that travel by dvc push and pull."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import STAGES

from lib import ROOT, papers, params
from lib.pipeline import jobs

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.pipeline


def call(home, env, *module_and_args):
    """Output of python -m ... in a copy of the project, which imports that copy's lib."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, module_and_args)],
        cwd=home,
        env={**env, "PYTHONPATH": str(home)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def dvc(pipeline, *args):
    return call(*pipeline[:2], "dvc", *args)


def stale(pipeline):
    """Of the stages that the fixture ran, those that DVC would run again."""
    return re.findall(r"Running stage '([^']+)'", dvc(pipeline, "repro", "--dry", "--glob", *STAGES))


def measured(home, folder, run):
    return json.loads((home / "results" / "smoke" / folder / f"{run}.json").read_text(encoding="utf-8"))


def test_every_run_was_trained_and_measured(pipeline):
    home = pipeline[0]
    for run in params.runs():
        if params.data("smoke", params.run(run, "smoke").data) is None:  # a role of the paper profile only
            assert "skipped" in measured(home, "details", run) and measured(home, "metrics", run) == {"verdict": "skipped"}
            continue
        folder = home / "artifacts" / "smoke" / run / "seed0"
        for file in ("weights.pt", "metrics.json", "curve.csv", "provenance.json"):
            assert (folder / file).stat().st_size > 0
        m = measured(home, "details", run)["mean"]
        config = params.run(run, "smoke")
        if config.labelled:
            assert 0 <= m["accuracy_low"] <= m["accuracy"] <= m["accuracy_high"] <= 1
        if config.generation:
            assert m["samples"]["fd_clf"] > 0 and m["samples"]["images"] == 40 and m["seconds_per_image"] > 0
        elif config.step:
            assert m["buffer" if config.start.buffer else "samples"]["fd_clf"] > 0 and m["start"]["fd_clf"] >= 0


def test_a_second_run_does_nothing_by_dvcs_own_word_too(pipeline):
    home, env, _ = pipeline
    out = dvc(pipeline, "repro", "--glob", *STAGES)
    assert "Running stage" not in out and "up to date" in out
    again = subprocess.run(
        [sys.executable, "-m", "lib.pipeline", *STAGES], cwd=home, env=env, capture_output=True, encoding="utf-8"
    )
    assert again.returncode == 0 and again.stdout == "Nothing changed: results are up to date.\n", again.stderr


def test_editing_another_profile_invalidates_nothing(pipeline):
    home = pipeline[0]
    path = home / "params.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("iterations: null, epochs: 20,", "iterations: null, epochs: 21,"), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    try:
        assert stale(pipeline) == ["notebook@00_map"]  # the map shows all profiles' sizes
    finally:
        path.write_text(before, encoding="utf-8")


def test_metrics_and_plots_show(pipeline):
    table = dvc(
        pipeline, "metrics", "show", *(f"results/smoke/metrics/{run}.json" for run in params.main_runs())
    ).splitlines()
    assert len(table) == 1 + len(params.main_runs()) and max(map(len, table)) <= 140, "room in a terminal"
    assert "file://" in dvc(pipeline, "plots", "show")
    page = (pipeline[0] / "scratch" / "plots" / "index.html").read_text(encoding="utf-8")
    assert page.count("vegaEmbed(") >= 1 and page.count("<img") >= 2, "curves, and the figures of notebook 05"
    assert '"run"' in page and "jempp-m10/seed0/curve.csv" in page, "a line a run"


def test_changing_prose_reruns_that_notebook_alone(pipeline):
    home = pipeline[0]
    path = home / "notebooks" / "01_energies_in_2d.ipynb"
    before = path.read_text(encoding="utf-8")
    nb = json.loads(before)
    nb["cells"][0]["source"] += "\nAnother sentence." if isinstance(nb["cells"][0]["source"], str) else ["\nmore"]
    path.write_text(json.dumps(nb), encoding="utf-8")
    try:
        assert stale(pipeline) == ["notebook@01_energies_in_2d"]
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_what_a_reader_needs(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    compared = [c for c in code if "".join(c["source"]).startswith("# NBVAL_CHECK_OUTPUT")]
    assert len(compared) >= 3, "at least three cells whose output nbval compares"
    assert all(c["outputs"] for c in compared), "a notebook that was never executed compares nothing"
    assert any("parameters" in c["metadata"].get("tags", []) for c in code)
    assert max(len("".join(c["source"]).splitlines()) for c in code) <= 24
    assert not [o for c in code for o in c["outputs"] if o.get("output_type") == "error"]
    assert not [place for place in ("/work", "/root", "/tmp/", "site-packages") if place in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def compared(pipeline):
    """Every notebook through nbval, as many side by side as there are cores: stem -> the finished process, to come."""
    home, env, _ = pipeline

    def nbval(path):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "--nbval-lax",
                "--nbval-cell-timeout=120",
                "-q",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                f"notebooks/{path.name}",
            ],
            cwd=home,
            env=env,
            capture_output=True,
            encoding="utf-8",
        )

    with ThreadPoolExecutor(jobs()) as pool:
        yield {path.stem: pool.submit(nbval, path) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_through_nbval(compared, path):
    done = compared[path.stem].result()
    assert done.returncode == 0, done.stdout[-6000:]


def test_the_register_is_whole_and_its_files_exist(pipeline, compared):
    """As the notebooks recorded it under nbval, merged by the pipeline's own stages; and model cards from it."""
    home = pipeline[0]
    assert all(done.result().returncode == 0 for done in compared.values())
    dvc(pipeline, "repro", "--single-item", "register", "models")
    assert len(list((home / "results" / "smoke" / "models").glob("*.md"))) > 5
    register = json.loads((home / "results" / "smoke" / "artefacts.json").read_text(encoding="utf-8"))
    assert list(register) == list(papers.ARTEFACTS)
    for id, entry in register.items():
        assert ("missing" in entry) != bool(entry.get("files")), id
        for file in entry.get("files", ()):
            assert (home / file).stat().st_size > 0, f"{id}: {file}"


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fresh_copy_pulls_the_runs_and_trains_nothing(pipeline, tmp_path):
    home, env, _ = pipeline
    clone, store = tmp_path / "clone", tmp_path / "store"
    call(home, env, "dvc", "remote", "add", "--local", "--default", "store", store)
    try:
        call(home, env, "dvc", "push", "-q")
        # what git would bring, and the remote's address: no artifacts, no cache, no scratch
        shutil.copytree(home, clone, ignore=shutil.ignore_patterns("artifacts", "cache", "tmp", "scratch", "__pycache__"))
    finally:
        call(home, env, "dvc", "remote", "remove", "--local", "store")
    assert not (clone / "artifacts").exists()
    call(clone, env, "dvc", "pull", "-q")
    assert files(clone / "artifacts") == files(home / "artifacts")
    stale = [re.findall("Running stage '(.+?)'", call(place, env, "dvc", "repro", "--dry")) for place in (home, clone)]
    assert stale[0] == stale[1], "the copy is as current as what it was copied from"
    # nbval has executed notebooks there, whose timings differ: they and what follows them, but nothing that trains
    assert not [s for s in stale[1] if s.split("@")[0] in ("data", "train", "evaluate", "apply")]
    before = (clone / "results" / "smoke" / "00_map" / "00_map.ipynb").read_text(encoding="utf-8")
    call(clone, env, "lib.book", "run", "00_map", "--profile", "smoke")
    after = json.loads((clone / "results" / "smoke" / "00_map" / "00_map.ipynb").read_text(encoding="utf-8"))
    assert [c["source"] for c in after["cells"]] == [c["source"] for c in json.loads(before)["cells"]]
    assert any(c["cell_type"] == "code" and c["outputs"] for c in after["cells"])
