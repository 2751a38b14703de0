"""The ground: pins, environment file and package agree; what the README promises exists."""

import ast
import re
import subprocess
import sys
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from lib import ROOT


def pins():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = dict(
        re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line).groups() for line in lines if line and not line.startswith("#")
    )
    return {re.sub(r"[-_.]+", "-", k).lower(): v for k, v in found.items()}


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        need = Requirement(line)
        pinned = pins().get(re.sub(r"[-_.]+", "-", need.name).lower())
        assert pinned and need.specifier.contains(Version(pinned)), f"{line}: requirements.txt has {pinned}"


def test_conda_installs_the_same_pins(tmp_path):
    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = next(d for d in env["dependencies"] if isinstance(d, str) and d.startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert Requirement(f"x{project['requires-python']}").specifier.contains(Version(python.split("=")[1]))
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    assert pip[0] == "-r requirements.txt", "one list of versions, for pip and for conda"
    lines = tmp_path / "condaenv.requirements.txt"  # what conda makes of them, and hands to pip
    lines.write_text("\n".join(pip).replace("-r ", f"-r {ROOT.as_posix()}/"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "-U", "-r", lines],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    # without an index, pip can go no further than to look for what builds the package itself
    assert done.returncode == 0 or ("setuptools" in done.stderr and "no such option" not in done.stderr), done.stderr


def test_the_installed_versions_are_the_pins():
    from importlib.metadata import PackageNotFoundError, version

    wrong = {}
    exact = ("dvc", "papermill", "nbval", "seaborn", "scikit-learn", "clean-fid", "scipy", "pydantic", "ruff", "mypy")
    for name in ("torch", *exact):
        try:
            have = version(name).split("+")[0]
        except PackageNotFoundError:
            have = "absent"
        if have != pins()[name]:
            wrong[name] = have
    # a GPU machine may bring its own torch: only the rest must be exact
    wrong.pop("torch", None)
    assert not wrong, f"not the pinned versions: {wrong}; run pip install -r requirements.txt"


def test_a_commit_is_checked_by_what_make_lint_runs():
    """No hook names a tool that would be downloaded, or other arguments than the Makefile's."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = [hook["entry"].replace(" --force-exclude", "") for hook in repo["hooks"]]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert hooks == [line.strip().replace("$(PY)", ".venv/bin/python") for line in recipe.splitlines()[1:]]


def test_torchvision_imports_beside_any_torch():
    from lib import vision

    assert vision.torchvision.__version__ and vision.datasets.FashionMNIST.resources


def imports(path):
    """What a file of lib imports of lib: dotted names."""
    return imports_of(path.read_text(encoding="utf-8"))


def imports_of(text):
    """The same, of Python's text."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            whole = [f"{node.module}.{a.name}" for a in node.names]
            found |= {name if exists(name) else node.module for name in whole}
    return {name.removeprefix("lib.") for name in found} - {"lib"}


def exists(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


# Each room imports from those before it; within a room, the order is the files' own.
ROOMS = (
    *("files", "memory", "environment", "pipeline", "vision", "parts", "params", "data", "sources", "measures", "training"),
    *("models", "train", "plots", "evaluate", "applications", "papers", "book", "cards", "bench", "packing", "fleet"),
)


def test_imports_point_one_way():
    for path in (ROOT / "lib").rglob("*.py"):
        room = path.relative_to(ROOT / "lib").with_suffix("").parts[0]
        if room == "__init__":
            continue
        assert room in ROOMS, f"{path.name}: give it a place in the order"
        for other in imports(path):
            assert ROOMS.index(other.split(".")[0]) <= ROOMS.index(room), f"{path} imports lib.{other}, which comes after it"


def test_the_readmes_job_array_names_every_run():
    code = re.search(r'RUN=\$\(python -c "(.+?)" \|', (ROOT / "docs" / "machines.md").read_text(encoding="utf-8"))[1]
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    from lib import params

    assert printed.split() == params.runs()


def test_no_large_file_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8").stdout.split("\n")
    big = {f: (ROOT / f).stat().st_size for f in listed if f and (ROOT / f).exists() and (ROOT / f).stat().st_size > 6e6}
    assert not big
