"""Trained models travel: dvc push to a folder, a fresh copy, dvc pull, and a notebook without training."""
import json
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.pipeline


def call(home, env, *module_and_args):
    """Output of python -m ... in a copy of the project, which imports that copy's lib."""
    done = subprocess.run([sys.executable, "-m", *map(str, module_and_args)], cwd=home, env={**env, "PYTHONPATH": str(home)},
                          capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


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
