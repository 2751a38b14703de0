"""Two processes with half of every batch each: the single process's weights, one model in all, resumed together."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lib import ROOT, data, files, params, sources, train
from lib.parts import starts
from lib.parts.schedules import ByAUC
from lib.training import Trainer, distributed, loop

UPDATES = 5


def split_of_noise():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (64, 1, 8, 8), generator=g, dtype=torch.uint8), torch.arange(64) % 10
    return data.Split("mnist", x, y, x[:16], y[:16], x[:16], y[:16], starts.ClassGaussians.fit(data.to_range(x), y))


def trainer_of(name, norm="none", **update):
    run = params.run(name, "smoke").but({"precision": "fp32", "update.iterations": 12})
    run = run.but({f"update.{k}": v for k, v in update.items()})
    if run.network.kind == "wrn":
        run = run.but({"network.norm": norm})
    data.load = lambda *a: split_of_noise()  # AT-EBM's p0 asks for the data's shape
    return Trainer(run, split_of_noise())


def given(n, i):
    """The same n images at iteration i in every process, for all of them together."""
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1


def softmax():  # with its input noise and augmentation: all draw them alike
    return trainer_of("softmax")


def jempp():  # its own chain and loss, from given starts
    trainer = trainer_of("jempp-m5")
    trainer.start.draw = lambda real, *a: (distributed.mine(given(16, trainer.iteration)), torch.arange(len(real)))
    return trainer


def at():  # three PGD steps, real images moved as well, R1
    trainer = trainer_of("at-p0-noise")
    trainer.start.draw = lambda *a: (distributed.mine(given(16, trainer.iteration).abs()), None)
    return trainer


def sada():  # each climbs its own gradient: alike where the halves are alike
    trainer = trainer_of("sada-k5", sam={"rho": 0.05})
    for name in ("stream", "unaugmented"):
        whole = getattr(trainer, name)
        setattr(trainer, name, lambda i, g, whole=whole: tuple(torch.cat([v[:8]] * 2) for v in whole(i, g)))
    trainer.start.draw = lambda real, *a: (
        distributed.mine(torch.cat([given(8, trainer.iteration)] * 2)),
        torch.arange(len(real)),
    )
    return trainer


def updated(make):
    torch.set_num_threads(1)
    trainer = make()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for _ in range(UPDATES):
        numbers = trainer.step()
    return {"before": before, "after": trainer.model.state_dict(), "loss": numbers["loss"], "norm": numbers["grad_norm"]}


CASES = {"softmax": softmax, "jempp": jempp, "at": at, "sada": sada}


def _work(rank, port, path):
    """What one of two processes does; the tests look at what both found."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {name: updated(make) for name, make in CASES.items()}
    found["sam"] = updated(lambda: trainer_of("sada-k5", sam={"rho": 0.05}))
    found["norm"] = batch_norm()
    found["buffer"] = torch.equal(
        distributed.gather(torch.full((2, 3), rank, dtype=torch.uint8)),
        torch.tensor([[0] * 3] * 2 + [[1] * 3] * 2, dtype=torch.uint8),
    )
    found["resumed"] = common_checkpoint(rank, path)
    found["diverged"] = joint_divergence(rank, path)
    found["K"] = joint_growth(rank)
    found["own"] = trainer_of("jempp-m5").buffer.images
    try:
        trainer_of("softmax", batch=15)
    except params.ConfigError as e:
        found["odd"] = str(e)
    found["whole"] = undivided(path)
    torch.save(found, path / f"{rank}.pt")
    dist.destroy_process_group()


def batch_norm():
    """A network with batch norm after an update, and its first running mean before and after the average."""
    trainer = trainer_of("jempp-m5", norm="batch")
    update, seen = distributed.average_update, []

    def spy(model):
        seen.append(next(b.clone() for k, b in model.named_buffers() if k.endswith("running_mean")))
        update(model)

    distributed.average_update = spy
    trainer.step()
    distributed.average_update = update
    own = next(b for k, b in trainer.model.named_buffers() if k.endswith("running_mean"))
    return {"model": trainer.model.state_dict(), "alone": seen[0], "mean": own.clone()}


def common_checkpoint(rank, path):
    """Process 1's newest file is torn, process 0 has one more: both go back to the one that both have whole."""
    folder = path / f"checkpoints{rank}"
    for i in (3, 6, 9) if rank == 0 else (3, 6):
        files.write_tensors(folder / f"{i:08d}.pt", {"iteration": i})
    if rank == 1:
        (folder / "00000006.pt").write_bytes(b"torn")
    state = loop._latest(folder, "cpu")
    return state["iteration"], sorted(p.name for p in folder.glob("*.pt"))


def joint_divergence(rank, path):
    trainer = trainer_of("jempp-m5")
    trainer.run = trainer.run.but({"rollbacks": 1})
    real, calls = trainer.step, []

    def step():  # one bad update, in process 1 alone
        row = real()
        if rank == 1 and trainer.iteration == 7 and not calls:
            calls.append(1)
            row["loss"] = torch.tensor(float("nan"))
        return row

    trainer.step = step
    m = loop.fit(trainer, path / "out", path / "scratch")
    return m["verdict"], m["divergences"], m["iterations"]


def joint_growth(rank):
    """One process sees AUC 1.0, the other 0.5; their mean 0.75 passes a threshold of 0.7."""
    length = ByAUC(threshold=0.7, window=10).build(5, 100, distributed.average)
    for i in range(10):
        length.record(i, torch.tensor(1.0 if rank else 0.5))
    return length(10)


def undivided(path):
    """Weights and buffer of jempp-m5, trained without a stop."""
    data.load = lambda *a: sources.prepare(params.data("smoke", "primary"))
    train.train(params.run("jempp-m5", "smoke"), "cpu", path / "whole", path / "whole-scratch")
    return [
        torch.load(path / "whole" / "smoke" / "jempp-m5" / "seed0" / f, weights_only=True)
        for f in ("weights.pt", "buffer.pt")
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_work, (port, path), nprocs=2)
    return [torch.load(path / f"{r}.pt", weights_only=True) for r in (0, 1)]


def flat(state):
    return torch.cat([v.flatten().float() for v in state.values()])


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_single_process_weights(name, both, monkeypatch):
    monkeypatch.setattr(data, "load", data.load)
    alone, (a, b) = updated(CASES[name]), (r[name] for r in both)
    assert torch.equal(flat(a["after"]), flat(b["after"])), "one model, to the bit"
    moved = (flat(alone["after"]) - flat(alone["before"])).abs().max()
    assert moved > 1e-3 and (flat(alone["after"]) - flat(a["after"])).abs().max() < 1e-3 * moved
    assert float(a["loss"] + b["loss"]) / 2 == pytest.approx(float(alone["loss"]), rel=1e-3, abs=1e-5)


def test_gradients_are_averaged_before_the_step_and_not_before_sams_ascent(both):
    a, b = (r["sam"] for r in both)  # different images and chains in each
    assert torch.equal(flat(a["after"]), flat(b["after"])) and a["norm"] != b["norm"] and a["loss"] != b["loss"]
    a, b = (r["jempp"] for r in both)
    assert a["norm"] == b["norm"] and a["loss"] != b["loss"]


def test_batch_norm_by_halves_and_statistics_by_their_mean(both):
    a, b = (r["norm"] for r in both)
    assert torch.equal(flat(a["model"]), flat(b["model"])) and not torch.equal(a["alone"], b["alone"])
    assert torch.allclose(a["mean"], (a["alone"] + b["alone"]) / 2, atol=1e-7)


def test_processes_agree(both):
    a, b = both
    assert a["buffer"] and b["buffer"] and len(a["own"]) == 50 and not torch.equal(a["own"], b["own"])
    assert a["resumed"] == b["resumed"] == (3, ["00000003.pt"])
    assert a["diverged"] == b["diverged"] == ("finished", [7], 12)
    assert a["K"] == b["K"] == 1
    assert a["odd"] == "update.batch 15 on 2 processes: expected a multiple of 2; change it, or torchrun's --nproc-per-node"


def test_one_process_is_no_group():
    x = torch.arange(3.0)
    distributed.average([x])
    assert distributed.world() == 1 and distributed.rank() == 0 and distributed.share(7, "batch") == 7
    distributed.wait()
    assert distributed.mine(x) is x and distributed.gather(x) is x and distributed.least(2.5) == 2.5


def test_torchrun_trains_one_run_and_resumes_it(both, tmp_path, monkeypatch):
    """The real thing, batch norm and replay buffer included: stopped after a window, resumed, against an undivided run."""
    for name in ("lib", "params.yaml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "data").symlink_to(ROOT / "data")
    split = tmp_path / "artifacts" / "smoke" / "data" / "primary.pt"
    split.parent.mkdir(parents=True)
    data.save(sources.prepare(params.data("smoke", "primary")), split)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "EBM_PROFILE": "smoke"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def call(*arguments):
        return subprocess.run(
            [*torchrun, "-m", "lib.train", "jempp-m5", "--device", "cpu", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )

    out = tmp_path / "artifacts" / "smoke" / "jempp-m5" / "seed0"
    early = call("--minutes", "0")
    assert early.returncode and early.stderr.count("out of time at iteration 2 of 6") == 1
    assert not (out / "weights.pt").exists()
    monkeypatch.setattr(data, "path_of", lambda *a: split)
    monkeypatch.setattr(data, "load", lambda *a: sources.prepare(params.data("smoke", "primary")))
    with pytest.raises(params.ConfigError, match=r"jempp-m5: begun by 2 process\(es\), this is 1;"):
        train.train(params.run("jempp-m5", "smoke"), "cpu", tmp_path / "artifacts", tmp_path / "scratch")
    again = call()
    assert again.returncode == 0 and again.stderr.count("resumed at iteration 2") == 1, again.stderr[-3000:]
    assert again.stdout.count("finished") == 1, "process 0 alone reports"
    weights, images = (torch.load(out / f, weights_only=True) for f in ("weights.pt", "buffer.pt"))
    assert json.loads((out / "provenance.json").read_text(encoding="utf-8"))["processes"] == 2 and len(images) == 100
    for saved, kept in (r["whole"] for r in both):
        assert all(torch.equal(weights[k], saved[k]) for k in weights) and torch.equal(images, kept)
    assert not (tmp_path / "scratch" / "smoke" / "jempp-m5").exists()


def test_more_processes_than_gpus_says_so(monkeypatch):
    for key, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(params.ConfigError, match="process 1 has no GPU: there are 1; expected at most"):
        with distributed.joined("cuda"):
            pass


@pytest.mark.parametrize(
    "environment, says",
    [
        (
            {"WORLD_SIZE": "2"},
            "environment's LOCAL_RANK is None: expected a number, as torchrun sets it; start with torchrun",
        ),
        ({"WORLD_SIZE": "two"}, "environment's WORLD_SIZE is 'two': expected a number"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "environment's RANK is None: expected a number"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}, "environment's MASTER_PORT is None: expected a number"),
    ],
)
def test_half_of_torchruns_environment_is_one_line(monkeypatch, environment, says):
    for key in ("WORLD_SIZE", "LOCAL_RANK", "RANK", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(params.ConfigError, match=says):
        with distributed.joined("cpu"):
            pass


def test_a_device_works_or_is_named():
    assert distributed.device("cpu").type == "cpu" and distributed.device(None).type in ("cpu", "cuda")
    for name in ("cuda:97", "nonsense", "meta"):
        with pytest.raises(
            params.ConfigError, match=f"^device '{name}' does not work .*: torch .* has cpu.* here; name"
        ) as e:
            distributed.device(name)
        assert "\n" not in str(e.value) and len(str(e.value)) < 250
