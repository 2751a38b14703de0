"""dvc.yaml tells the truth: a stage depends on what its command imports of lib, as far as that can change its result. And
what DVC shows of the results: some ten numbers a run."""

import ast
import json
import re
from functools import cache
from types import SimpleNamespace

import pytest
from test_setup import imports, imports_of

from lib import ROOT, evaluate, params, pipeline

NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))

# What a stage imports without depending on it: it cannot change what comes out.
PLUMBING = {
    "memory": "where freed memory goes",
    "files": "writes files whole and names damaged ones; what is in them comes from its callers",
    "params": "checks and merges numbers; those themselves reach a stage through `params`, or a run's provenance",
    "pipeline": "when a stage runs, beside how many others (lib.bench asks it for the number of cores)",
    "vision": "imports torchvision",
}
# The same, of one stage: modules (rooms, too) that its half of a command does not call.
UNUSED = {
    # it merges what notebooks recorded; the other half of lib.book, which the notebooks call, shows runs
    "register": {"data", "evaluate", "measures", "models", "parts", "plots", "training"},
    "models": {"data", "parts"},  # a card quotes what was measured; lib.data names an error
}
# Dependencies on a file that is no command: dvc.yaml says why.
SINGLE = {"lib/models.py", "lib/parts/energy.py", "lib/parts/samplers.py"}
# How a command reads a section of params.yaml.
SECTIONS = {
    "main": "main_runs()",
    "scales.quick.applications": '["applications"]',
    "scales.quick.inception": "params.inception(",
    "scales.quick.live": '["live"]',
}


@pytest.fixture(scope="module")
def stages():
    """Stage -> its command, the paths and the parameters that it depends on, the stages that it follows, as DVC reads
    dvc.yaml with profile quick."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    pipeline.without_git()
    graph = Repo(str(ROOT)).index.graph
    return {
        s.addressing: SimpleNamespace(
            cmd=s.cmd,
            desc=s.desc,
            deps={d.def_path for d in s.deps if not isinstance(d, ParamsDependency)},
            params={p for d in s.params for p in d.params},
            after={n.addressing for n in graph.successors(s)},
        )
        for s in graph
    }


def path_of(module):
    path = ROOT.joinpath("lib", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def code_of(cmd):
    """The module of a stage's command, its text, and for a notebook its cells' as well."""
    module, *words = re.fullmatch(r"python -m lib\.(.+) --profile quick", cmd)[1].split()
    text = path_of(module).read_text(encoding="utf-8")
    if words[:1] == ["run"]:
        text += cells_of(words[1])
    return module, text


def cells_of(notebook):
    nb = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return "".join(f"\n{''.join(c['source'])}\n" for c in nb["cells"] if c["cell_type"] == "code")


@cache
def closure(cmd):
    """The module of a stage's command, what it (and a notebook) imports of lib, and what that imports."""
    module, text = code_of(cmd)
    found, todo = {module}, imports_of(text)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo |= imported(name)
    return found


@cache
def imported(module):
    return imports(path_of(module))


def within(module, rooms):
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def modules(deps):
    """Those dependencies that are code: lib/plots -> plots, lib/measures/attacks.py -> measures.attacks."""
    return {d.removeprefix("lib/").removesuffix(".py").replace("/", ".") for d in deps if d.startswith("lib/")}


def before(name, stages):
    """The stages on whose outputs this one depends, and those before them."""
    found, todo = set(), [name]
    while todo:
        new = stages[todo.pop()].after - found
        found |= new
        todo += new
    return found


def test_a_stage_depends_on_all_code_that_can_change_its_result(stages):
    """Its own dependencies, or those of the training that it follows: an artifact names its seconds, so a run that was
    trained anew is another one, and what follows runs again."""
    lacking = {}
    for name, stage in stages.items():
        covered = modules(stage.deps) | set(PLUMBING) | UNUSED.get(name, set())
        for earlier in before(name, stages):
            if earlier.startswith("train@"):
                covered |= modules(stages[earlier].deps)
        if missing := {m for m in closure(stage.cmd) if not within(m, covered)}:
            lacking[name] = missing
    assert not lacking


def test_what_is_left_out_is_imported_and_what_is_named_is_used(stages):
    """Neither list outlives its reason. Notebooks share one list of rooms: each of it is some notebook's."""
    every = {name: closure(s.cmd) for name, s in stages.items()}
    assert all(any(m in found for found in every.values()) for m in PLUMBING)
    for name, rooms in UNUSED.items():
        assert all(any(within(m, {room}) for m in every[name]) for room in rooms), name
    kinds = {}
    for name, found in every.items():
        kinds.setdefault(name.split("@")[0], set()).update(found)
    for name, stage in stages.items():
        for dep in modules(stage.deps):
            assert any(within(m, {dep}) for m in kinds[name.split("@")[0]]), f"{name} does not import lib.{dep}"


def test_dependencies_are_rooms_and_commands(stages):
    for dep in {d for s in stages.values() for d in s.deps if d.startswith("lib/")} - SINGLE:
        path = ROOT / dep
        assert path.is_dir() or (
            path.parent == ROOT / "lib" and 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
        )


def test_every_notebook_is_a_stage_and_every_stage_says_what_it_does(stages):
    assert [n.split("@")[1] for n in stages if n.startswith("notebook@")] == NOTEBOOKS
    assert {f"results/quick/{name}" for name in NOTEBOOKS} <= stages["register"].deps
    for name, stage in stages.items():
        assert stage.desc and "${" not in stage.desc and len(stage.desc) < 100, name


def test_a_stage_depends_on_the_numbers_that_it_reads(stages):
    for name, stage in stages.items():
        _, text = code_of(stage.cmd)
        for section, sign in SECTIONS.items():
            known = section in stage.params or "params.yaml" in stage.deps or name == "register"
            assert sign not in text or known, f"{name}: {section}"
        used = {m for m in closure(stage.cmd) if not within(m, {*PLUMBING, *UNUSED.get(name, ())})}
        reading = [m for m in used if "params.measures()" in path_of(m).read_text(encoding="utf-8")]
        assert bool(reading) == ("measures" in stage.params), f"{name}: {reading}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_depends_on_what_it_shows(stages, name):
    """Numbers of trained runs come from results/, other profiles' settings from params.yaml."""
    stage, cells = stages[f"notebook@{name}"], cells_of(name)
    assert ("book.applications(" in cells) == ("results/quick/applications" in stage.deps)
    assert "lib.bench" not in cells or "lib/bench" in stage.deps
    calls = [n for n in ast.walk(ast.parse(cells)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "params.run"]
    others = [c for c in calls if len(c.args) > 1 and ast.unparse(c.args[1]) != "book.profile"]
    assert bool(others) == ("params.yaml" in stage.deps)
    trained = re.search(r"book\.(run|metrics|curve|snapshots)\(", cells)
    follows = before(f"notebook@{name}", stages)
    runs = [r for r in params.runs() if f'"{r}"' in cells]
    assert not trained or (runs and {f"train@{r}" for r in runs} <= follows)
    assert not trained or "book.metrics(" not in cells or "results/quick/details" in stage.deps


def test_the_main_runs_have_cards_and_numbers():
    assert set(params.main_runs()) <= set(params.runs())
    for wrong, says in (("jem", "'jem' is no list"), (["jem", "jam"], "'jam' is no run"), (None, "None is no list")):
        with pytest.MonkeyPatch.context() as patch:
            real = params.load()
            patch.setattr(params, "load", lambda real=real, wrong=wrong: {**real, "main": wrong})
            with pytest.raises(params.ConfigError, match=f"params.yaml, main: {says}"):
                params.main_runs()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"level": 95.0}, "measures.level: Input should be less than 1; got 95.0"),
        ({"resamples_fd": 0}, "measures.resamples_fd: Input should be greater than or equal to 1; got 0"),
        ({"confidant": 0.1}, "measures.confidant: unknown key .did you mean 'confident'"),
        (None, "measures: None is no section"),
    ],
)
def test_how_runs_are_measured_is_validated(change, says):
    real = params.load()
    wrong = {**real, "measures": change and {**real["measures"], **change}}
    with pytest.raises(params.ConfigError, match=says):
        params.measures(wrong)


def seed(verdict="finished", **numbers):
    return {"verdict": verdict, "seconds": 12.3456, **numbers}


def test_a_summary_has_the_numbers_that_a_terminal_has_room_for():
    one = {
        "seconds": 12.3456,
        "accuracy": 0.81954,
        "accuracy_low": 0.8,
        "accuracy_high": 0.84,
        "calibration": {"ece": 0.0123456},
    }
    assert evaluate.summary({"seeds": [seed()], "mean": one, "sd": {}}) == {
        "acc": 0.8195, "acc_low": 0.8, "acc_high": 0.84, "ece": 0.0123, "seconds": 12.35, "verdict": "finished",
    }  # fmt: skip
    of = {"fd_clf": 2.0, "is_clf": 4.0, "fd_low": 1.9, "fd_high": 2.1}
    seeds = [seed(), seed(), seed("diverged at iteration 413")]
    found = evaluate.summary({"seeds": seeds, "mean": {"seconds": 1.0, "samples": of}, "sd": {"samples": {"fd_clf": 0.5}}})
    assert found == {**of, "fd_sd": 0.5, "seconds": 1.0, "verdict": "2 finished, 1 diverged at 413"}
    assert evaluate.summary({"skipped": "profile smoke has no third data set"}) == {"verdict": "skipped"}


def test_the_committed_summaries_are_those_of_the_details():
    folder = ROOT / "results" / "quick"
    details = sorted((folder / "details").glob("*.json"))
    assert details and [p.name for p in details] == sorted(p.name for p in (folder / "metrics").glob("*.json"))
    for path in details:
        measured, shown = (json.loads(p.read_text(encoding="utf-8")) for p in (path, folder / "metrics" / path.name))
        assert evaluate.summary(measured) == shown, path.stem
