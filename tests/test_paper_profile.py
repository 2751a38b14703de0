"""The paper profile's dry run: every run, measurement and notebook on generated files of the published formats.

Asked for by `make dry-run`: five minutes on two cores.
"""

import json
import os
import shutil
import subprocess
import sys

import paper_dry_run
import pytest
import yaml

from lib import ROOT, book, data, papers, params
from lib.papers import register as registered

SKIP = shutil.ignore_patterns(
    ".git", ".venv", ".dvc", "artifacts", "scratch", "results", "raw", "__pycache__", "*.egg-info", ".pytest_cache"
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A copy of the project with a small params.yaml: a function that starts the dry run's commands in it."""
    home = tmp_path_factory.mktemp("paper") / "project"
    shutil.copytree(ROOT, home, ignore=SKIP)
    whole = (home / "params.yaml").rename(home / "params.whole.yaml").read_text(encoding="utf-8")
    small = yaml.safe_dump(paper_dry_run.shrink(yaml.safe_load(whole)), sort_keys=False)
    (home / "params.yaml").write_text(small, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{home / 'tests'}", "OMP_NUM_THREADS": "1"}
    env["EBM_PROFILE"] = "paper"

    def begin(*words):
        return subprocess.Popen(
            [sys.executable, "tests/paper_dry_run.py", *words],
            cwd=home,
            env=env,
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    begin.home = home
    return begin


def finish(*processes):
    for p in processes:
        said, _ = p.communicate()
        assert p.returncode == 0, said[-6000:]


@pytest.fixture(scope="module")
def trained(start):
    """The copy, after every run was trained, measured and applied."""
    finish(start("files"))
    names = [n for n in params.runs() if not n.startswith("reference")]
    cut = 2 * len(names) // 3  # the published networks take as long as a third of the others
    finish(start("small", *names[:cut]), start("published", "small", *names[cut:]))
    return start.home


def measured(home, run, folder="details"):
    return json.loads((home / "results" / "paper" / folder / f"{run}.json").read_text(encoding="utf-8"))


@pytest.mark.paper
@pytest.mark.parametrize("run", params.runs())
def test_every_run_is_trained_and_measured(trained, run):
    found, config = measured(trained, run), params.run(run, "paper")
    assert found["seeds"][0]["verdict"] == "finished" and found["seeds"][0]["iterations"] == 2
    assert config.labelled == ("accuracy" in found["mean"])
    if config.step:
        sections = ("samples", "start")
        if config.start.buffer:
            sections = ("buffer", "start", "fresh", *(("confident", "matched") * config.labelled))
        for section in sections:
            assert set(found["mean"][section]["inception"]) == {"clean", "legacy_tensorflow"}, section
        assert [s["iteration"] for s in found["seeds"][0]["snapshots"]] == [1, 2]


MILLIONS = {"softmax": 36.5, "jem": 36.5, "jempp-m10": 36.5, "sada-k10": 36.5, "at": 23.5, "at-faces": 20.85}  # weights


@pytest.mark.paper
@pytest.mark.parametrize("run", paper_dry_run.PUBLISHED)
def test_one_run_of_each_method_with_its_network_as_published(trained, run):
    folder = trained / "artifacts" / "paper" / f"{run}-published" / "seed0"
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert about["parameters"] / 1e6 == pytest.approx(MILLIONS[run], rel=0.01)
    assert about["config"]["network"] == params.run(run, "paper").network.model_dump()
    assert measured(trained, f"{run}-published")["seeds"][0]["verdict"] == "finished"


APPLY = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["apply"]["foreach"]


@pytest.mark.paper
@pytest.mark.parametrize("run", APPLY)
def test_every_application_is_measured(trained, run):
    found = measured(trained, run, "applications")
    assert set(APPLY[run].split()) <= set(found)
    if "ood" in found:
        assert {"SVHN", "CIFAR-100", "CelebA", "ImageNet-32", "Interpolated"} <= set(found["ood"]["auroc"])


def test_the_table_of_what_each_profile_shows_has_every_artefact_once():
    table = registered.coverage()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    assert sum(int(row[0].split(":")[0]) for row in rows) == len(papers.ARTEFACTS)
    assert sum(row[0].count("`") for row in rows) == 2 * len(papers.ARTEFACTS)
    assert all(len(row) == 1 + len(params.PROFILES) for row in rows)
    assert ["a stand-in"] * 3 + ["CIFAR-100 32×32"] in [row[1:] for row in rows]


@pytest.fixture(scope="module")
def shown(trained, start):
    """The copy, after all notebooks were executed."""
    finish(start("notebooks", "register"))
    return trained


@pytest.mark.paper
def test_the_register_has_files_or_a_reason_for_every_artefact(shown):
    register = json.loads((shown / "results" / "paper" / "artefacts.json").read_text(encoding="utf-8"))
    assert list(register) == list(papers.ARTEFACTS)
    for id, entry in register.items():
        assert ("missing" in entry) != bool(entry.get("files")), id
        assert "stand_in" not in entry, f"{id}: the paper profile has the published data"
        for file in entry.get("files", ()):
            assert (shown / file).stat().st_size > 0, f"{id}: {file}"
        for role in papers.ARTEFACTS[id].data:
            assert data.TITLES[params.data("paper", role).name] in entry["dataset"], f"{id}: {entry['dataset']}"
    assert not [id for id, entry in register.items() if "missing" in entry]
    assert {p.stem for p in (shown / "results" / "paper" / "models").glob("*.md")} == set(params.main_runs())


@pytest.mark.paper
@pytest.mark.parametrize("path", sorted(book.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_no_notebook_fails(shown, path):
    nb = json.loads((shown / "results" / "paper" / path.stem / path.name).read_text(encoding="utf-8"))
    outputs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert outputs and not [o for o in outputs if o["output_type"] == "error"]
