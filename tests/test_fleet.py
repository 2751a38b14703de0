"""Jobs in order of importance, within a time, and what a pack brings to the next machine."""

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from conftest import copy_of_the_project, move_root

from lib import ROOT, data, fleet, packing, params, sources, train

NAMES = ["softmax", "jempp-m5", "at"]
measure = fleet.measure


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(name): the project's folders move to a fresh place with prepared smoke data; returns it."""

    def at(name, prepared=True):
        move_root(monkeypatch, tmp_path / name)
        if prepared and not data.path_of("smoke", "primary").exists():
            data.path_of("smoke", "primary").parent.mkdir(parents=True)
            for role in ("primary", "second"):
                sources.stage("smoke", role)
        return tmp_path / name

    monkeypatch.setattr(fleet, "measure", lambda *a: None)  # it starts processes in the project's folder
    return at


def command(monkeypatch, capsys, *args):
    """(exit status or message, printed lines) of python -m lib.fleet."""
    monkeypatch.setattr(sys, "argv", ["fleet", "--profile", "smoke", "--runs", *NAMES, *map(str, args)])
    with pytest.raises(SystemExit) as e:
        fleet.main()
    return e.value.code, capsys.readouterr().out.splitlines()


def weights(home, name):
    return torch.load(home / "artifacts" / "smoke" / name / "seed0" / "weights.pt", weights_only=True)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a | b)


def shrink(monkeypatch, **changes):
    """Runs as params.yaml has them, but for `changes`."""
    real = params.run
    monkeypatch.setattr(params, "run", lambda *a: real(*a).model_copy(update=changes))


# -------------------------------------------------------------------------------------------------- what comes first
def test_the_main_runs_are_notebook_14s():
    nb = json.loads((ROOT / "notebooks" / "14_three_papers_one_table.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code")
    assert params.main_runs() == re.findall(r'"([\w-]+)"', re.search(r"^RUNS = (\[.*?\])", code, re.M | re.S)[1])


def test_references_come_first_then_main_runs_seed_by_seed():
    order = [(j.run.name, j.seed) for j in fleet.jobs("gpu")]
    main = params.main_runs()
    assert order[:4] == [("reference", 0), *(("reference-second", s) for s in (0, 1, 2))]
    assert order[4 : 4 + 3 * len(main)] == [(n, s) for s in (0, 1, 2) for n in main]
    rest = order[4 + 3 * len(main) :]
    seeds = [s for _, s in rest]
    assert seeds == sorted(seeds) and not {n for n, _ in rest} & {*main, "reference", "softmax-third"}
    assert (
        len(order)
        == len(set(order))
        == sum(len(params.run(n, "gpu").seeds) for n in params.runs() if params.data("gpu", params.run(n, "gpu").data))
    )


# -------------------------------------------------------------------------------------------------- within a time
def test_no_time_trains_nothing_and_says_so(machine, monkeypatch, capsys):
    home = machine("a", prepared=False)
    status, out = command(monkeypatch, capsys)
    assert status == train.UNFINISHED and out[-1] == "nothing trained in 0 minutes; 3 of 3 pending, next softmax seed 0"
    assert command(monkeypatch, capsys, "--minutes", "1e-9") == (status, [*out[:-1], out[-1].replace("in 0", "in 1e-09")])
    assert not list(home.rglob("*.pt"))


def test_pieces_give_the_bits_of_a_whole_and_of_the_plain_command(machine, monkeypatch, capsys):
    home, pieces = machine("a"), 0
    todo = fleet.jobs("smoke", NAMES)
    while not all(j.finished for j in todo):
        fleet.work([j for j in todo if not j.finished], time.monotonic() + 0.01)
        pieces += 1
    said = capsys.readouterr().out
    assert pieces > 3 and "jempp-m5 seed 0: out of time at iteration" in said and "jempp-m5 seed 0: finished, 6 iter" in said
    assert not list((home / "scratch").rglob("*.pt"))
    machine("b")
    assert command(monkeypatch, capsys, "--minutes", 5)[1][-1] == "3 trained in 5 minutes; nothing of 3 pending"
    other = machine("c")
    for name in NAMES:
        train.train(params.run(name, "smoke"), "cpu")
        whole = weights(other, name)
        assert same(weights(home, name), whole) and same(weights(home.parent / "b", name), whole), name


def test_what_params_changes_is_pending_again_and_leaves_no_old_snapshot(machine, monkeypatch, capsys):
    home = machine("a")
    assert command(monkeypatch, capsys, "--minutes", 5)[0] == 0
    more = params.run("at", "smoke").model_copy(update={"seeds": (0, 1)})
    assert fleet.Job(more, 0).finished, "another seed beside it does not change this one"
    assert len(list(home.rglob("snapshots/*"))) == 2
    shrink(monkeypatch, snapshots=1)
    status, out = command(monkeypatch, capsys)
    assert status == train.UNFINISHED and out[-1].startswith("nothing trained in 0 minutes; 3 of 3 pending")
    assert command(monkeypatch, capsys, "--minutes", 5)[0] == 0 and len(list(home.glob("artifacts/*/at/*/snapshots/*"))) == 1


def test_dvc_is_told_of_what_is_finished_alone(machine, monkeypatch, capsys):
    machine("a")
    command(monkeypatch, capsys, "--minutes", 5)
    path, told = fleet.result("metrics", "smoke", "at"), []
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    (fleet.ROOT / "artifacts" / "smoke" / "softmax" / "seed0" / "provenance.json").unlink()
    monkeypatch.setattr(subprocess, "run", lambda cmd, **kw: told.extend(cmd[2:]) or subprocess.CompletedProcess(cmd, 0))
    status, _ = command(monkeypatch, capsys, "--commit")
    assert status == "error: --commit: params.yaml has profile quick, these are of smoke: set it there first"
    real = params.load
    monkeypatch.setattr(params, "load", lambda: {**real(), "profile": "smoke"})
    command(monkeypatch, capsys, "--commit")
    assert told == ["dvc", "commit", "-f", "-q", "data", "train@jempp-m5", "train@at"], "at's reference is not there"


def test_a_job_that_fails_does_not_stop_the_others(machine, monkeypatch, capsys):
    machine("a")
    real = train.train

    def out_of_memory(run, **kw):
        if run.name == "softmax":
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
        return real(run, **kw)

    monkeypatch.setattr(train, "train", out_of_memory)
    status, out = command(monkeypatch, capsys, "--minutes", 5)
    failed = "softmax seed 0: failed: CUDA out of memory. Tried to allocate 2 GiB ("
    assert status == 1 and any(line.startswith(failed) for line in out)
    assert out[-1] == "2 trained in 5 minutes; 1 of 3 pending, next softmax seed 0"


def test_measuring_ends_with_the_time(machine, monkeypatch, capsys):
    run, home = [], machine("a")
    assert command(monkeypatch, capsys, "--minutes", 5)[0] == 0
    todo = fleet.jobs("smoke", NAMES)

    def measured(cmd, timeout, **kw):
        run.append(cmd[2:])
        if cmd[2] == "lib.applications":
            raise subprocess.TimeoutExpired(cmd, timeout)
        assert 0 < timeout <= 60 and kw["cwd"] == home

    monkeypatch.setattr(subprocess, "run", measured)
    measure(todo, time.monotonic())
    assert not run, "no time, no process"
    measure(todo, time.monotonic() + 60)
    assert run[0] == ["lib.applications", "softmax", "robustness", "ood", "worst_case", "--profile", "smoke"]
    assert "softmax applications: out of time; nothing written (0 s)" in capsys.readouterr().out
    assert not [r for r in run if r[0] == "lib.evaluate"], "the reference is not trained"
    path = fleet.result("applications", "smoke", "softmax")
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    assert [n for n, *_ in fleet.measurements(todo)] == ["jempp-m5", "at"]


# -------------------------------------------------------------------------------------------------- to another machine
def test_a_pack_leaves_nothing_pending_elsewhere(machine, monkeypatch, capsys, tmp_path):
    home = machine("a")
    shown = home / "results" / "smoke" / "metrics" / "softmax.json"
    shown.parent.mkdir(parents=True)
    shown.write_text("{}", encoding="utf-8")
    status, out = command(monkeypatch, capsys, "--minutes", 5, "--pack", tmp_path / "pack")
    assert status == 0 and out[-2].endswith("0 did not fit")
    fresh = machine("b", prepared=False)
    status, out = command(monkeypatch, capsys, "--unpack", tmp_path / "pack")
    assert status == 0 and out[-1] == "nothing trained in 0 minutes; nothing of 3 pending"
    for name in NAMES:
        assert same(weights(home, name), weights(fresh, name))
    held = [
        {p.relative_to(h).as_posix(): p.read_bytes() for p in h.rglob("*") if p.is_file() and p.suffix != ".lock"}
        for h in (home, fresh)
    ]
    assert held[0] == held[1]


def test_an_interrupted_job_continues_elsewhere(machine, monkeypatch, capsys, tmp_path):
    machine("a")
    [job] = fleet.jobs("smoke", ["sada-k5"])
    fleet.work([job], time.monotonic() + 0.01)
    assert job.checkpoint and not job.finished
    packing.pack(fleet.to_pack("smoke", [job]), fleet.ROOT, tmp_path / "pack", "fleet-smoke")
    fresh = machine("b", prepared=False)
    fleet.restore(tmp_path / "pack", "smoke")
    assert job.checkpoint.is_relative_to(fresh)
    fleet.work([job], time.monotonic() + 100)
    assert job.finished and "sada-k5: resumed at iteration" in capsys.readouterr().err
    whole = machine("c")
    train.train(params.run("sada-k5", "smoke"), "cpu")
    assert same(weights(fresh, "sada-k5"), weights(whole, "sada-k5"))
    assert len(list(fresh.rglob("snapshots/*"))) == len(list(whole.rglob("snapshots/*"))) == 2


def test_a_finished_job_here_is_not_overwritten(machine, monkeypatch, capsys, tmp_path):
    machine("a")
    command(monkeypatch, capsys, "--minutes", 5, "--pack", tmp_path / "pack")
    home = machine("b")
    command(monkeypatch, capsys, "--minutes", 5)
    mark = home / "artifacts" / "smoke" / "softmax" / "seed0" / "curve.csv"
    mark.write_text("mine\n", encoding="utf-8")
    (home / "artifacts" / "smoke" / "at" / "seed0" / "provenance.json").unlink()
    assert command(monkeypatch, capsys, "--unpack", tmp_path / "pack")[0] == 0
    assert mark.read_text(encoding="utf-8") == "mine\n"
    assert (home / "artifacts" / "smoke" / "at" / "seed0" / "provenance.json").exists()


def test_a_run_measured_before_it_was_packed_needs_no_weights(machine, monkeypatch, capsys):
    home = machine("a")
    command(monkeypatch, capsys, "--minutes", 5)
    [job] = fleet.jobs("smoke", ["softmax"])
    (job.folder / "weights.pt").unlink()
    assert not job.finished
    path = home / "results" / "smoke" / "metrics" / "softmax.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    assert job.finished and not fleet.measurements([job])


# -------------------------------------------------------------------------------------------------- what is damaged
@pytest.mark.parametrize(
    "file, damage, says",
    [
        ("provenance.json", lambda b: b[: len(b) // 2], "is damaged .torn.*: softmax seed 0 counts as unfinished"),
        ("provenance.json", lambda b: b'{"config": 3}', ""),
        ("provenance.json", lambda b: b"[]", "holds no JSON object"),
        ("weights.pt", lambda b: b[: len(b) // 2], "is damaged .torn.: softmax seed 0 counts as unfinished"),
    ],
)
def test_a_damaged_result_is_unfinished_and_stops_nothing(machine, monkeypatch, capsys, file, damage, says):
    home = machine("a")
    command(monkeypatch, capsys, "--minutes", 5)
    whole = weights(home, "softmax")
    path = home / "artifacts" / "smoke" / "softmax" / "seed0" / file
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(sys, "argv", ["fleet", "--profile", "smoke", "--runs", *NAMES])
    with pytest.raises(SystemExit) as e:
        fleet.main()
    out, err = capsys.readouterr()
    assert e.value.code == train.UNFINISHED and out.endswith("1 of 3 pending, next softmax seed 0\n")
    assert re.search(says, err) and len(err.splitlines()) == bool(says), "once, however often jobs are looked at"
    assert command(monkeypatch, capsys, "--minutes", 5)[0] == 0 and same(weights(home, "softmax"), whole)


def test_damaged_data_are_prepared_anew(machine, monkeypatch, capsys):
    machine("a")
    path = data.path_of("smoke", "primary")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    status, out = command(monkeypatch, capsys, "--minutes", 5)
    assert status == 0 and out[0].startswith(f"prepared again: {path} is damaged (torn") and path.read_bytes() == whole


@pytest.mark.parametrize("nth", range(1, 12, 2))
def test_a_kill_while_unpacking_leaves_nothing_torn_and_no_job_that_seems_done(machine, monkeypatch, capsys, tmp_path, nth):
    home = machine("a")
    command(monkeypatch, capsys, "--minutes", 5, "--pack", tmp_path / "pack")
    fresh, real, calls = machine("b", prepared=False), shutil.copyfileobj, []

    def killed(source, to, *a):
        calls.append(to)
        if len(calls) == nth:
            to.write(source.read(20))
            raise KeyboardInterrupt
        real(source, to, *a)

    with monkeypatch.context() as m:
        m.setattr(shutil, "copyfileobj", killed)
        with pytest.raises(KeyboardInterrupt):
            fleet.restore(tmp_path / "pack", "smoke")
    assert not [j for j in fleet.jobs("smoke", NAMES) if j.finished]
    for path in (p for p in fresh.rglob("*") if p.is_file()):
        assert path.read_bytes() == (home / path.relative_to(fresh)).read_bytes()
    fleet.restore(tmp_path / "pack", "smoke")
    assert all(j.finished for j in fleet.jobs("smoke", NAMES))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--minutes", "nan"], "argument --minutes: invalid amount value: 'nan'"),
        (["--minutes", "-1"], "invalid amount value"),
        (["--megabytes", "nan"], "argument --megabytes: invalid amount"),
        (["--pack", "PACK"], "PACK is no folder to write to"),
    ],
)
def test_a_command_line_that_cannot_be_is_one_line(machine, monkeypatch, capsys, tmp_path, words, says):
    machine("a")
    (tmp_path / "PACK").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fleet", "--profile", "smoke", *words])
    monkeypatch.setattr(fleet, "work", lambda *a: pytest.fail("trained"))
    with pytest.raises(SystemExit) as e:
        fleet.main()
    assert says in capsys.readouterr().err + str(e.value)


@pytest.mark.pipeline
def test_in_two_copies_of_the_project(tmp_path):
    """Train, measure, tell DVC, pack; unpack in the other copy, where nothing is left to do."""

    def call(home, *args):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, args)],
            cwd=home,
            env=envs[home],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    envs = {home: copy_of_the_project(home) for home in (tmp_path / "a", tmp_path / "b")}
    call(tmp_path / "a", "dvc", "config", "core.no_scm", "true")
    fleet_ = ("lib.fleet", "--runs", "reference", "softmax")
    out = call(tmp_path / "a", *fleet_, "--minutes", 5, "--commit", "--pack", tmp_path / "pack")
    assert "softmax applications: measured" in out and "softmax    1 of 1   yes      yes" in out
    assert "6 stages committed to dvc.lock" in out and out.endswith("2 trained in 5 minutes; nothing of 2 pending\n")
    dry = call(tmp_path / "a", "dvc", "repro", "--dry", "apply@softmax", "evaluate@softmax", "evaluate@reference")
    assert "Running stage" not in dry
    out = call(tmp_path / "b", *fleet_, "--unpack", tmp_path / "pack")
    assert "softmax    1 of 1   yes      yes" in out and "nothing of 2 pending" in out


# -------------------------------------------------------------------------------------------------- the few files
@pytest.fixture
def three(tmp_path):
    """Three files of 3000 bytes that do not shrink, and one that does: (root, files)."""
    root, g = tmp_path / "root" / "artifacts", torch.Generator().manual_seed(0)
    root.mkdir(parents=True)
    for name in "abc":
        (root / name).write_bytes(torch.randint(256, (3000,), generator=g, dtype=torch.uint8).numpy().tobytes())
    (root / "flat").write_bytes(bytes(1500))
    return root.parent, [root / n for n in ("a", "b", "c", "flat")]


def test_a_pack_keeps_to_its_limits_and_takes_the_first_files_first(three, tmp_path):
    root, files = three
    m = packing.pack(files, root, tmp_path / "p", "x", count=5, megabytes=0.002)
    assert m["left_out"] == ["artifacts/c"] and list(m["files"]) == ["artifacts/a", "artifacts/b", "artifacts/flat"]
    written = sorted((tmp_path / "p").iterdir())
    assert len(written) == 5 and all(p.stat().st_size <= 2000 for p in written)
    m = packing.pack(files[:1], root, tmp_path / "p", "x", count=8, megabytes=0.004)
    assert len(m["parts"]) == 1 and len(list((tmp_path / "p").iterdir())) == 2, "the earlier pack is gone"
    whole = gzip.decompress(b"".join((tmp_path / "p" / p["name"]).read_bytes() for p in m["parts"]))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getnames() == ["artifacts/a"], "an ordinary tar"
    with pytest.raises(data.DataError, match="1 files of 16 MB: expected at least 2"):
        packing.pack(files, root, tmp_path / "p", "x", count=1)


def test_a_damaged_or_missing_part_is_named_and_nothing_restored(three, tmp_path):
    root, files = three
    m = packing.pack(files, root, tmp_path / "p", "x", megabytes=0.004)
    manifest, to = tmp_path / "p" / "x.json", tmp_path / "to"
    part = tmp_path / "p" / m["parts"][1]["name"]
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(data.DataError, match=r"x.tar.gz.01 is damaged: sha256 .*; copy it again") as e:
        packing.unpack(manifest, to, inside=("artifacts",))
    assert "\n" not in str(e.value) and not to.exists()
    part.unlink()
    with pytest.raises(data.DataError, match="x.tar.gz.01 is missing: expected 3 parts beside x.json"):
        packing.unpack(manifest, to, inside=("artifacts",))
    manifest.write_text('{"parts": 3}', encoding="utf-8")
    with pytest.raises(data.DataError, match="x.json is not the manifest of a pack"):
        packing.unpack(manifest, to, inside=("artifacts",))


def entry(name, kind=tarfile.REGTYPE, link=""):
    e = tarfile.TarInfo(name)
    e.type, e.linkname = kind, link
    return e


@pytest.mark.parametrize(
    "evil",
    [
        entry("../out"),
        entry("/etc/out"),
        entry("lib/train.py"),
        entry("artifacts/../lib/train.py"),
        entry("artifacts"),
        entry("artifacts/x", tarfile.SYMTYPE, "/etc/passwd"),
        entry("artifacts/x", tarfile.LNKTYPE, "lib/train.py"),
        entry("artifacts/x", tarfile.CHRTYPE),
    ],
    ids=lambda e: f"{e.name}-{e.type.decode()}",
)
def test_a_pack_writes_nowhere_else(evil, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(entry("artifacts/good"))
        tar.addfile(evil)
    (tmp_path / "x.tar.gz.00").write_bytes(out.getvalue())
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    (tmp_path / "x.json").write_text(json.dumps({"parts": [{"name": "x.tar.gz.00", "sha256": digest}]}), encoding="utf-8")
    with pytest.raises(data.DataError, match="expected only plain files in artifacts/, results/, scratch/; nothing was"):
        packing.unpack(tmp_path / "x.json", tmp_path / "to", inside=fleet.FOLDERS)
    assert not (tmp_path / "to").exists()


def test_a_pack_of_another_profile_is_named(machine, monkeypatch, capsys, tmp_path):
    machine("a")
    (tmp_path / "fleet-gpu.json").write_text("{}", encoding="utf-8")
    status, _ = command(monkeypatch, capsys, "--unpack", tmp_path)
    assert status.endswith("fleet-smoke.json is missing: expected a pack of profile smoke; packs there: fleet-gpu.json")
