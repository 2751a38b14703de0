"""The pipeline's runner: how many side by side, in which order, and what a failure or an interruption leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib import ROOT, environment, pipeline

STAGES = """\
stages:
  data: {cmd: python -m make a.txt one, deps: [make.py], outs: [a.txt]}
  train:
    foreach: {long: b.txt, other: c.txt}
    do: {cmd: "python -m make ${item} a.txt", deps: [make.py, a.txt], outs: ["${item}"]}
  last: {cmd: python make.py d.txt b.txt c.txt, deps: [b.txt, c.txt], outs: [d.txt: {cache: false}]}
"""
MAKE = """\
import pathlib, sys, time
pathlib.Path("began-" + sys.argv[1]).touch()
if pathlib.Path("slow").exists(): time.sleep(60)
if sys.argv[1] == pathlib.Path("broken").read_text().strip(): sys.exit("error: no luck with " + sys.argv[1])
pathlib.Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
print("made", sys.argv[1])
"""


@pytest.fixture
def project(tmp_path):
    """A small pipeline beside a link to lib: folder, and what runs the runner there."""
    (tmp_path / "lib").mkdir()
    for name in ("__init__.py", "files.py", "pipeline.py"):
        (tmp_path / "lib" / name).write_bytes((ROOT / "lib" / name).read_bytes())
    (tmp_path / "dvc.yaml").write_text(STAGES, encoding="utf-8")
    (tmp_path / "make.py").write_text(MAKE, encoding="utf-8")
    (tmp_path / "broken").write_text("nothing", encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def start(*args):
        return subprocess.Popen(
            [sys.executable, "-m", "lib.pipeline", *args],
            cwd=tmp_path,
            env=env,
            text=True,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return SimpleNamespace(home=tmp_path, start=start, run=lambda *args: start(*args).communicate(timeout=120)[0])


def finished(out):
    return [line.split()[1] for line in out.replace("[ ", "[").splitlines() if line.startswith("[")]


def test_all_of_it_runs_in_an_order_that_its_needs_allow_and_then_no_more(project):
    out = project.run("--jobs", "2")
    assert finished(out)[0] == "data" and finished(out)[-1] == "last" and len(finished(out)) == 4, out
    assert "4 stages in" in out and (project.home / "d.txt").read_text(encoding="utf-8") == "b.txt c.txt"
    assert "made d.txt" in (project.home / "scratch" / "logs" / "last.log").read_text(encoding="utf-8")
    assert "no_scm" in (project.home / ".dvc" / "config.local").read_text(encoding="utf-8"), "an archive: no .git"
    assert project.run() == "Nothing changed: results are up to date.\n"
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=project.home, capture_output=True, encoding="utf-8")
    assert "up to date" in status.stdout, "DVC finds in dvc.lock what it would have written itself"


def test_one_stage_brings_what_it_needs_and_no_more(project):
    assert finished(project.run("train@other")) == ["data", "train@other"]
    assert "stage 'train@elsewhere': expected one of dvc.yaml's" in project.run("train@elsewhere")
    assert finished(project.run("train@*")) == ["train@long"], "the other's is there"


def test_what_was_made_once_comes_from_the_cache(project):
    project.run()
    make = project.home / "make.py"
    make.write_text(MAKE + "\n# another comment\n", encoding="utf-8")
    assert len(finished(project.run())) == 3, "the last stage's needs came out as they were"
    make.write_text(MAKE, encoding="utf-8")
    assert finished(project.run()) == []


def test_a_stage_that_fails_stops_what_follows_and_says_where_to_look(project):
    (project.home / "broken").write_text("c.txt", encoding="utf-8")
    process = project.start("--jobs", "2")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "error: stage train@other failed" in out and "no luck with c.txt" in out
    assert "scratch/logs/train-other.log" in out and not (project.home / "d.txt").exists() and "Traceback" not in out
    (project.home / "broken").write_text("nothing", encoding="utf-8")
    assert sorted(finished(project.run("--jobs", "2"))) == ["last", "train@other"], "what was finished stays"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_what_is_at_work_in_one_line(project, number):
    project.run("data")
    (project.home / "slow").touch()
    process, began = project.start("--jobs", "2"), project.home / "began-b.txt"
    for _ in range(1200):
        if began.exists():
            break
        time.sleep(0.1)
    assert began.exists() and process.poll() is None, "nothing to interrupt"
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and out.endswith("interrupted: what was finished stays, and the same command continues\n")
    assert "Traceback" not in out and not (project.home / "b.txt").exists()
    (project.home / "slow").unlink()
    assert len(finished(project.run())) == 3


def test_as_many_jobs_as_cores_memory_and_the_user_allow(monkeypatch):
    monkeypatch.delenv("JOBS", raising=False)
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: None)
    monkeypatch.setattr(pipeline, "memory", lambda: 8.0)
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    control = {"cpu.max": "max 100000"}
    monkeypatch.setattr(pipeline, "_control", lambda name: control.get(name, ""))
    assert pipeline.jobs() == 6
    control["cpu.max"] = "150000 100000"  # a container with one and a half cores of many
    assert pipeline.jobs() == 1
    control["cpu.max"] = ""
    monkeypatch.setattr(pipeline, "memory", lambda: 2.5)
    assert pipeline.jobs() == 2
    monkeypatch.setenv("JOBS", "5")
    assert pipeline.jobs() == 5 and pipeline.jobs("3") == 3
    for wrong in ("0", "two", "-1"):
        with pytest.raises(ValueError, match="expected the number of stages"):
            pipeline.jobs(wrong)
    monkeypatch.delenv("JOBS")
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: "/usr/bin/" + name)
    assert pipeline.jobs() == 1, "one GPU to share"


def test_memory_is_the_smaller_of_the_machines_and_the_containers(monkeypatch):
    monkeypatch.setattr(
        pipeline, "_control", lambda name: {"memory.max": "3000000000", "memory.current": "1000000000"}[name]
    )
    assert pipeline.memory() == 2.0
    monkeypatch.setattr(pipeline, "_control", lambda name: "max" if name == "memory.max" else "")
    assert pipeline.memory() > 0.1


def test_the_environment_refuses_a_python_without_wheels_in_one_line(monkeypatch, capsys):
    versions = (3, 10, 9), (3, 11, 4), (3, 11, 5), (3, 14, 2), (3, 15, 0)
    assert [environment.refusal(v) is None for v in versions] == [False, False, True, True, False]
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 1, "final", 0))
    with pytest.raises(SystemExit, match="^error: Python 3.9.1: expected 3.11.5 to 3.14; choose one with make PYTHON"):
        environment.main()
