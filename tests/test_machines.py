"""Other people's machines: their locales, folders, cores and clones, each a fresh process in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import copy_of_the_project

from lib import ROOT, environment
from lib.bench import speed as bench

# prepare data, train, measure and run a notebook: what a user does, in one process
EVERYTHING = """
import sys
from lib import applications, book, evaluate, params, sources, train
def run(module, *words):
    sys.argv = [module.__name__, *words, "--profile", "smoke"]
    module.main()
run(sources)
for name in ("reference", "softmax", "jempp-m5"):
    run(train, name)
run(evaluate, "jempp-m5")
run(applications, "softmax", "ood")
print(book.run_notebook("01_energies_in_2d", "smoke"))
print("all of it, with rho: \\u03c1")
"""
PLAIN = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("LC_", "LANG", "PYTHON", "XDG_", "EBM_", "JUPYTER", "IPYTHON", "MPL"))
}


@pytest.fixture(scope="module")
def cp1252(tmp_path_factory):
    """The folder of a locale in Windows' encoding, as glibc's LOCPATH wants it."""
    if not shutil.which("localedef"):
        pytest.skip("no localedef here, which makes locales")
    folder = tmp_path_factory.mktemp("locales")
    done = subprocess.run(["localedef", "-i", "en_US", "-f", "CP1252", folder / "en_US.CP1252"], capture_output=True)
    if not (folder / "en_US.CP1252").exists():
        pytest.skip(f"localedef makes no cp1252 locale: {done.stderr[-200:]}")
    return folder


def call(home, *words, env, **kwargs):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=home,
        env={**env, "PYTHONPATH": str(home)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=900,
        **kwargs,
    )


def without_git(tmp_path):
    """A PATH on which there is no git: links to what the stages call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    (folder / "python").symlink_to(sys.executable)
    return str(folder)


posix = pytest.mark.skipif(os.name != "posix", reason="locales and permissions of POSIX")


@posix
@pytest.mark.parametrize("machine", ["cp1252, no HOME, no git, a folder with a space and an accent", "C locale, one core"])
def test_all_of_it_runs(machine, tmp_path, request):
    """Everything that the machine lacks at once, and what runs says which part it stumbled over."""
    # the C locale has no name for an accent, and torch cannot say where a file with one lies
    home = tmp_path / ("énergie, 2e copie" if machine.startswith("cp1252") else "copy 2")
    copy_of_the_project(home)
    # without UTF-8 mode, and without the coercion of the C locale that Python does by itself
    env = {**PLAIN, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "EBM_PROFILE": "smoke", "DVC_NO_ANALYTICS": "1"}
    if machine.startswith("cp1252"):
        env |= {"LOCPATH": str(request.getfixturevalue("cp1252")), "LC_ALL": "en_US.CP1252", "PATH": without_git(tmp_path)}
        env.pop("HOME", None)
        seen = call(home, "-c", "import locale; print(locale.getpreferredencoding(False))", env=env).stdout
        assert seen.strip().lower() == "cp1252", "the locale is not in force: this would show nothing"
        words = ("-c", EVERYTHING)
    else:
        env |= {"LC_ALL": "C"}
        pin = ""
        if hasattr(os, "sched_setaffinity"):
            pin = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
        alone = "\nimport torch\nfrom lib import pipeline\nassert pipeline.jobs() == 1 and torch.get_num_threads() == 1\n"
        words = ("-c", pin + alone * bool(pin) + EVERYTHING)
    done = call(home, *words, env=env)
    assert done.returncode == 0 and "all of it" in done.stdout, f"{machine}: {done.stdout[-500:]} {done.stderr[-3000:]}"
    assert (home / "results" / "smoke" / "metrics" / "jempp-m5.json").stat().st_size > 0
    text = (home / "artifacts" / "smoke" / "jempp-m5" / "seed0" / "provenance.json").read_text(encoding="utf-8")
    assert '"commit": "unknown"' in text, "an archive has no commit"


@posix
def test_an_archive_is_prepared_by_the_pipeline_for_dvc_itself_too(tmp_path):
    """Without .git, and without git on PATH: DVC alone says 'not a git repository' until the pipeline has run once."""
    home = tmp_path / "archive"
    env = {**copy_of_the_project(home), "PATH": without_git(tmp_path)}
    done = call(home, "-m", "lib.pipeline", "data", env=env)
    assert done.returncode == 0 and "data" in done.stdout, done.stdout + done.stderr
    again = call(home, "-m", "dvc", "repro", "data", env=env)
    assert again.returncode == 0 and "not a git repository" not in again.stderr and "didn't change" in again.stdout


def read_only(home):
    """A prefix of commands that see `home` as it is, and cannot write there; None where this machine has no such means."""
    if os.geteuid():
        for path in (home, *home.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
        return []
    if not shutil.which("unshare"):  # root writes anywhere: mount it read-only, out of sight
        return None
    prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"',
        str(home),
    ]
    probe = subprocess.run([*prefix, "touch", "x"], capture_output=True)
    return prefix if b"ead-only" in probe.stderr else None


@posix
def test_a_read_only_checkout_ends_at_once_in_one_line(tmp_path):
    home = tmp_path / "read only"
    env = copy_of_the_project(home) | {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    prefix = read_only(home)
    if prefix is None:
        pytest.skip("root without mount namespaces writes anywhere")
    for words in (("lib.pipeline",), ("lib.sources",), ("lib.train", "softmax"), ("lib.environment",)):
        done = subprocess.run(
            [*prefix, sys.executable, "-m", *words], cwd=home, env=env, capture_output=True, encoding="utf-8", timeout=120
        )
        assert done.returncode == 1 and done.stderr.startswith("error: "), (words, done.stderr[-2000:])
        assert len(done.stderr.splitlines()) == 1 and str(home) in done.stderr and "writ" in done.stderr, done.stderr


def test_another_clones_lib_is_refused_in_one_line(tmp_path):
    """One environment, two clones: what works in B must not import A, read A's results and write A's figures."""
    a, b = tmp_path / "A", tmp_path / "B"
    env = copy_of_the_project(b)
    a.mkdir()
    for name in ("lib", "params.yaml"):  # of A, what B's Python would import and read
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, a / name)
    env = env | {"PYTHONPATH": str(a), "PYTHONDONTWRITEBYTECODE": "1"}
    before = sorted(a.rglob("*"))
    for folder, code in (
        (b / "notebooks", "from lib.book import Book; Book('01_energies_in_2d')"),
        (
            b,
            "import runpy, sys; sys.argv = ['x', 'softmax']; sys.path.remove('');"
            "runpy.run_module('lib.train', run_name='__main__')",
        ),
    ):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, encoding="utf-8")
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and f"this is the project in {b}, but lib is imported from {a}" in last, done.stderr
        assert "pip install --no-deps -e" in last and sorted(a.rglob("*")) == before, "something was written in A"


def test_one_core_of_many_is_measured_with_one_process(monkeypatch):
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(bench.pipeline, "cores", lambda: 1)
    monkeypatch.setattr(
        bench.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="images per second: 8.00", stderr="")
    )
    assert bench.processes(torch.device("cpu")) == {"1": 8.0}


def test_the_forges_workflow_runs_pinned_actions_on_the_first_and_the_last_python():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (.+)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", u) for u in used), used
    tested = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == [".".join(map(str, version[:2])) for version in environment.SUPPORTED]


def test_an_empty_lib_where_somebody_works_does_not_stand_before_the_package(tmp_path):
    """As lib.environment installs it; pip's own way of `-e .` would import the empty folder."""
    if any("Editable" in str(finder) for finder in sys.meta_path):
        pytest.skip("an environment of another making: pip install --config-settings editable_mode=compat --no-deps -e .")
    (tmp_path / "lib").mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "import lib.params; print(lib.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("__init__.py"), done.stderr


def test_a_checkout_of_windows_has_the_same_bytes(tmp_path):
    """core.autocrlf would give every text file another hash, and bash scripts that do not run."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("an archive, or no git: nothing to check out")
    clone = tmp_path / "clone"
    subprocess.run(["git", "-c", "core.autocrlf=true", "clone", "-q", ROOT, clone], check=True)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=clone, capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    text = [f for f in tracked if Path(f).suffix not in (".png", ".gif", ".npz")]
    assert len(text) > 100 and not [f for f in text if b"\r\n" in (clone / f).read_bytes()]
