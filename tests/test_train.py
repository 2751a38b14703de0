"""The training loop: repeatable, resumable to the bit, honest about divergence."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from lib import ROOT, data, files, params, train
from lib.parts import schedules
from lib.training import Trainer, loop, provenance


def configure(name="jempp-m5", update=()):
    """A smoke run of 12 iterations with a checkpoint every 3."""
    run = params.run(name, "smoke").but({"update.iterations": 12, "checkpoint_every": 3, "precision": "fp32"})
    return run.but({f"update.{k}": v for k, v in dict(update).items()})


def weights(trainer):
    return torch.cat([v.flatten().float() for v in trainer.model.state_dict().values()])


def fit(run, split, tmp_path, name, seed=0, **kw):
    trainer = Trainer(run, split, seed)
    return trainer, loop.fit(trainer, tmp_path / name, tmp_path / f"{name}-scratch", **kw)


@pytest.mark.parametrize("name", ["softmax", "jem", "jempp-m5"])
def test_two_runs_with_one_seed_are_identical(name, split, tmp_path):
    (a, m), (b, _), (c, _) = (fit(configure(name), split, tmp_path, f"r{i}", seed=s) for i, s in enumerate((0, 0, 1)))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    assert m["verdict"] == "finished" and m["iterations"] == 12
    if a.buffer:
        assert torch.equal(a.buffer.images, b.buffer.images)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", ["jem", "jempp-m5"])
def test_an_interrupted_run_resumes_to_the_bit(name, split, tmp_path):
    run = configure(name)
    whole, _ = fit(run, split, tmp_path, "whole")

    def stop(trainer, row):
        if trainer.iteration == 8:  # after the checkpoint of iteration 6
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(run, split, tmp_path, "halved", on_log=stop)
    halved, _ = fit(run, split, tmp_path, "halved")
    assert torch.equal(weights(whole), weights(halved)) and torch.equal(whole.buffer.images, halved.buffer.images)
    curves = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / d / "curve.csv").read_text(encoding="utf-8").splitlines()]
        for d in ("whole", "halved")
    ]
    assert curves[0] == curves[1], "all but the seconds"


@pytest.mark.parametrize("name", ["jempp-m5", "sada-k5"])
def test_a_run_out_of_time_continues_to_the_same_bits(name, split, tmp_path):
    run = configure(name)  # a window ends every 2 iterations, and at 3 and 9 for a checkpoint
    whole, _ = fit(run, split, tmp_path, "whole")
    stops = []
    while not (tmp_path / "pieces" / "metrics.json").exists():
        try:
            pieces, metrics = fit(run, split, tmp_path, "pieces", deadline=time.monotonic())
        except loop.OutOfTime as e:
            stops.append(str(e).removeprefix(f"{name}: out of time at iteration "))
    assert [s.split()[0] for s in stops] == ["2", "3", "4", "6", "8", "9", "10"] and stops[0].startswith("2 of 12; the same")
    assert torch.equal(weights(whole), weights(pieces)) and torch.equal(whole.buffer.images, pieces.buffer.images)
    assert metrics["verdict"] == "finished" and metrics["iterations"] == 12
    curves = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / d / "curve.csv").read_text(encoding="utf-8").splitlines()]
        for d in ("whole", "pieces")
    ]
    assert curves[0] == curves[1], "all but the seconds"
    assert fit(run, split, tmp_path, "far", deadline=time.monotonic() + 1e4)[1]["verdict"] == "finished"


def test_the_command_ends_in_time_with_a_status_of_its_own(split, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *a: split)
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "softmax", "--profile", "smoke", "--device", "cpu", "--minutes", "0"])
    statuses = []
    for _ in range(6):
        try:
            train.main()
            break
        except SystemExit as e:
            statuses.append(e.code)
    assert statuses == [train.UNFINISHED] * 3 and "softmax: out of time at iteration 2 of 6" in capsys.readouterr().err
    folder = tmp_path / "artifacts" / "smoke" / "softmax" / "seed0"
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert about["processes"] == 1 and not (tmp_path / "scratch" / "smoke" / "softmax").exists()


def test_a_seed_that_is_done_is_not_trained_again(split, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *a: split)
    steps, real = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: steps.append(1) or real(self))
    run = configure("softmax").but({"seeds": (0, 1)})
    results = []
    while not results:
        with contextlib.suppress(loop.OutOfTime):
            results = train.train(run, "cpu", tmp_path / "a", tmp_path / "s", deadline=time.monotonic())
    assert [m["iterations"] for m in results] == [12, 12] and len(steps) == 24


def test_the_start_loads_no_compiler_and_sets_what_makes_runs_repeatable():
    code = (
        "import sys, torch; from lib import train\n"
        "torch.set_deterministic_debug_mode('warn'); a = [f() for f in (torch.are_deterministic_algorithms_enabled,\n"
        "    torch.is_deterministic_algorithms_warn_only_enabled, torch.get_deterministic_debug_mode)]\n"
        "assert not any(m in sys.modules for m in ('torch._inductor', 'torchvision', 'sklearn', 'matplotlib', 'scipy'))\n"
        "torch.use_deterministic_algorithms(True, warn_only=True)\n"
        "assert a == [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),\n"
        "    torch.get_deterministic_debug_mode()] == [True, True, 1]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]


def test_sigkill_in_the_middle_gives_the_same_weights(split, tmp_path, monkeypatch):
    """The real thing: a process, SIGKILL, the same command again; against an undivided run in this process."""
    home = tmp_path / "project"
    home.mkdir()
    for name in ("lib", "data"):
        (home / name).symlink_to(ROOT / name)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("iterations: 6,", "iterations: 60,", 1)
    (home / "params.yaml").write_text(text.replace("checkpoint_every: 3", "checkpoint_every: 10", 1), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(home), "EBM_PROFILE": "smoke"}
    # lib is a link: anchor the project's root at the copy
    code = (
        f"import sys, pathlib, lib; lib.ROOT = pathlib.Path({str(home)!r})\n"
        "from lib import data, params, sources, train\n"
        "path = data.path_of('smoke', 'primary'); path.parent.mkdir(parents=True, exist_ok=True)\n"
        "data.save(sources.prepare(params.data('smoke', 'primary')), path)\n"
        "train.train(params.run('jempp-m10', 'smoke'), 'cpu', pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )

    def start(out):
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / out), str(tmp_path / f"{out}-scratch")],
            env=env,
            stderr=subprocess.PIPE,
            cwd=home,
        )

    victim, began = start("killed"), time.time()
    run = params.run("jempp-m10", "smoke")
    run = run.model_copy(update={"checkpoint_every": 10, "update": run.update.but({"iterations": 60})})
    scratch = tmp_path / "killed-scratch"
    while len(list(scratch.rglob("*.pt"))) < 2 or not max(p.stem for p in scratch.rglob("*.pt")) >= "00000020":
        assert victim.poll() is None, "ended before it could be killed"
        assert time.time() - began < 120
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    again = start("killed")
    monkeypatch.setattr(data, "load", lambda *a: split)
    train.train(run, "cpu", tmp_path / "whole", tmp_path / "whole-scratch")
    err = again.stderr.read().decode()
    assert again.wait(120) == 0 and "resumed at iteration" in err, err[-2000:]
    for file in ("weights.pt", "buffer.pt"):
        a, b = (
            torch.load(tmp_path / d / "smoke" / "jempp-m10" / "seed0" / file, weights_only=True) for d in ("whole", "killed")
        )
        if isinstance(a, dict):
            assert all(torch.equal(a[k], b[k]) for k in a)
        else:
            assert torch.equal(a, b)


def test_a_diverging_run_is_a_result(split, tmp_path):
    run = configure("jempp-m5", {"lr": 1e12, "schedule.warmup": 0})
    trainer, m = fit(run, split, tmp_path, "wild")
    assert m["verdict"].startswith("diverged at iteration") and m["divergences"]
    assert torch.isfinite(weights(trainer)).all(), "the last healthy checkpoint's weights are published"
    assert json.loads((tmp_path / "wild" / "metrics.json").read_text(encoding="utf-8")) == m


def test_a_run_with_rollbacks_tries_again_and_says_so(split, tmp_path):
    run = configure("jempp-m5").but({"rollbacks": 2})
    trainer, calls = Trainer(run, split, 0), []
    real = trainer.step

    def step():  # one bad update at iteration 7, the first time only
        row = real()
        if trainer.iteration == 7 and not calls:
            calls.append(1)
            row["loss"] = torch.tensor(float("nan"))
        return row

    trainer.step = step
    m = loop.fit(trainer, tmp_path / "a", tmp_path / "s")
    assert m["verdict"] == "finished" and m["divergences"] == [7] and m["iterations"] == 12


def test_adversarial_training_trains_on_moved_images(split, tmp_path):
    run = configure("softmax-pgd")
    trainer = Trainer(run, split, 0)
    batch = trainer.batch()
    moved = trainer.attack(batch)
    radius = 2 * run.loss.adversarial_cross_entropy.radius / 255
    assert 0.5 * radius < (moved - batch.x.clamp(-1, 1)).abs().max() <= radius + 1e-6 and trainer.model.training
    plain = Trainer(run.but({"loss": {"cross_entropy": 1.0}}), split, 0)
    assert not torch.equal(*(t.step()["loss"] for t in (trainer, plain)))


def test_snapshots_are_kept_along_the_way(split, tmp_path):
    run = configure("jempp-m10").but({"snapshots": 4})
    fit(run, split, tmp_path, "a")
    assert sorted(p.name for p in (tmp_path / "a" / "snapshots").iterdir()) == [f"{i:08d}" for i in (3, 6, 9, 12)]
    assert (tmp_path / "a" / "snapshots" / "00000003" / "buffer.pt").exists()


def test_schedules():
    steps = schedules.Steps(warmup=10, milestones=(0.5, 0.75), decay=0.1)
    assert [steps(1.0, i, 100) for i in (0, 4, 9, 49, 50, 75)] == pytest.approx([0.1, 0.5, 1, 1, 0.1, 0.01])
    assert [schedules.Cosine()(1.0, i, 100) for i in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert [schedules.Constant(warmup=2)(0.3, i, 100) for i in (0, 1, 99)] == pytest.approx([0.15, 0.3, 0.3])


def test_a_second_trainer_of_the_same_run_is_refused(tmp_path, monkeypatch, split):
    from filelock import FileLock

    monkeypatch.setattr(data, "load", lambda *a: split)
    (tmp_path / "smoke").mkdir()
    with FileLock(tmp_path / "smoke" / "softmax.lock"):
        with pytest.raises(RuntimeError, match="being trained by another process"):
            train.train(params.run("softmax", "smoke"), "cpu", tmp_path / "out", tmp_path)


def test_changed_parameters_do_not_resume_the_old_state():
    a, b = configure(), configure(update={"lr": 0.05})
    assert provenance.fingerprint(a) != provenance.fingerprint(b) and provenance.fingerprint(a) == provenance.fingerprint(
        configure()
    )


def test_command_line_says_what_is_wrong():
    done = subprocess.run(
        [sys.executable, "-m", "lib.train", "jempp-m99", "--profile", "smoke"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert done.returncode != 0 and done.stderr.startswith("error: runs: no 'jempp-m99'")


# --------------------------------------------------------------------------------------- what ends early, or is damaged
def strict(path):
    """JSON as the standard has it: no NaN, no Infinity."""

    def no(constant):
        raise ValueError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=no)


def test_a_run_that_diverges_at_once_leaves_results_that_can_be_read(split, tmp_path):
    run = configure("jempp-m5").but({"snapshots": 2})
    trainer = Trainer(run, split, 0)
    before, real = weights(trainer), trainer.step
    trainer.step = lambda: {**real(), "loss": torch.tensor(float("nan"))}
    m = loop.fit(trainer, tmp_path / "a", tmp_path / "s")
    assert m["verdict"] == "diverged at iteration 1" and m["iterations"] == 0 and m["holdout_accuracy"] is None
    assert strict(tmp_path / "a" / "metrics.json") == m and all(v == v for v in m.values())
    assert (tmp_path / "a" / "curve.csv").read_text(encoding="utf-8") == ",".join(loop.columns(run)) + "\n"
    curve = pd.read_csv(tmp_path / "a" / "curve.csv")
    assert curve.empty and tuple(curve.columns) == loop.columns(run)
    assert torch.equal(weights(trainer), before), "what is published are the first weights"
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"weights.pt", "buffer.pt", "metrics.json", "curve.csv"}


def test_a_divergence_without_an_intact_checkpoint_is_one_line(split, tmp_path):
    trainer = Trainer(configure("softmax"), split, 0)
    real = trainer.step

    def step():
        row = real()
        if trainer.iteration == 8:
            for path in (tmp_path / "s").glob("*.pt"):
                path.write_bytes(b"torn")
            row["loss"] = torch.tensor(float("nan"))
        return row

    trainer.step = step
    with pytest.raises(data.DataError, match="softmax diverged, and no checkpoint in .* is intact: run the same comman"):
        loop.fit(trainer, tmp_path / "a", tmp_path / "s")


def test_a_checkpoint_of_another_version_is_one_line(split, tmp_path):
    run = configure("softmax")
    with pytest.raises(loop.OutOfTime):
        fit(run, split, tmp_path, "a", deadline=time.monotonic())
    path = max((tmp_path / "a-scratch").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    del state["common"]
    torch.save(state, path)
    with pytest.raises(data.DataError, match="a-scratch holds a checkpoint of another version .KeyError.: remove that"):
        fit(run, split, tmp_path, "a")


def test_a_kill_between_two_files_leaves_nothing_that_passes_for_a_result(split, tmp_path, monkeypatch):
    """provenance.json, which vouches for the others, is gone before the first of them is replaced."""
    monkeypatch.setattr(data, "load", lambda *a: split)
    train.train(configure("jempp-m5"), "cpu", tmp_path / "a", tmp_path / "s")
    folder, real = tmp_path / "a" / "smoke" / "jempp-m5" / "seed0", files.write_tensors
    assert (folder / "provenance.json").exists()

    def killed(path, state):
        if path.name == "buffer.pt":
            raise Interrupted
        real(path, state)

    monkeypatch.setattr(files, "write_tensors", killed)
    with pytest.raises(Interrupted):
        train.train(configure("jempp-m5", {"lr": 0.05}), "cpu", tmp_path / "a", tmp_path / "s")
    assert (folder / "weights.pt").exists() and not (folder / "provenance.json").exists()


@pytest.mark.parametrize("taken", ["a", "s"])
def test_where_nothing_can_be_written_nothing_is_trained(split, tmp_path, monkeypatch, taken):
    monkeypatch.setattr(data, "load", lambda *a: pytest.fail("data were loaded"))
    (tmp_path / taken).write_bytes(b"")
    with pytest.raises(OSError, match=f"{tmp_path / taken} is no folder to write to .File exists.: make it writable"):
        train.train(configure("softmax"), "cpu", tmp_path / "a", tmp_path / "s")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--device", "cuda:97"], "error: device 'cuda:97' does not work"),
        (["--device", "nonsense"], "error: device 'nonsense' does not work"),
        (["--minutes", "nan"], "argument --minutes: invalid amount value: 'nan'"),
        (["--minutes", "-1"], "invalid amount value"),
        (["--minutes", "inf"], "invalid amount value: 'inf'"),
    ],
)
def test_a_command_line_that_cannot_be_is_one_line(words, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "softmax", "--profile", "smoke", *words])
    with pytest.raises(SystemExit) as e:
        train.main()
    assert says in capsys.readouterr().err + str(e.value) and "\n" not in str(e.value)


def test_the_commit_is_unknown_without_git_and_outside_a_checkout(tmp_path, monkeypatch):
    assert provenance.commit() != ""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == "unknown"
