"""How fast a training update is, and where its time goes:  python -m lib.bench  (or make bench)

Every method's update against a plain transcription of its paper's algorithm (lib/bench/plain.py) in the same process, in
turn, with medians and quartiles; the parts of an update; scaling in batch, image size, width and K; one process
against two; memory. Writes results/bench/<machine>.json and .png and prints a short table last. A measurement, never
a test: nothing here passes or fails. On a CPU WRN-10-2 stands for WRN-28-10, which a GPU measures.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib import ROOT, data, files, params, pipeline
from lib.bench import plain
from lib.data import outliers
from lib.parts import energy, networks, starts
from lib.parts.cell import given
from lib.parts.networks import DiscriminatorCell, ResNet50Cell, WideResNetCell
from lib.parts.samplers import PGD
from lib.parts.starts import OtherImages
from lib.training import Trainer, deterministic, distributed
from lib.training.provenance import commit

RUNS = ("softmax", "jem", "jempp-m5", "jempp-m10", "jempp-m20", "sada-k10", "at")
MAIN = "jempp-m10"
EPOCH = 50_000  # images of a CIFAR-10 epoch, for seconds per epoch
ROUNDS = 7
Device = str | torch.device
SIZES = {"cpu": {"depth": 10, "widen": 2}, "cuda": {"depth": 28, "widen": 10}}


def configuration(
    name: str,
    kind: str,
    *,
    batch: int = 64,
    widen: int | None = None,
    passes: int | None = None,
    precision: str = "auto",
    **changes: object,
) -> params.Run:
    """Run `name` as published, on the device kind's network; `passes` replaces K (or M)."""
    run = params.run(name, "paper")
    if isinstance(run.network, WideResNetCell):
        changes["network"] = run.network.model_copy(update=SIZES[kind] | ({"widen": widen} if widen else {}))
    elif isinstance(run.network, ResNet50Cell) and kind == "cpu":
        changes["network"] = DiscriminatorCell(width=32, logits=run.network.logits, normalise=run.network.normalise)
    fast = run.update.schedule.model_copy(update={"warmup": 0})
    changes["update"] = run.update.model_copy(
        update={"batch": batch, "epochs": None, "iterations": 1_000_000, "schedule": fast}
    )
    if isinstance(run.start, OtherImages):  # lib.bench.plain leaves p0 images as they are
        changes["start"] = run.start.model_copy(update={"images": 1_000, "augment": None})
    if run.step:
        step = run.step.model_copy(update={"growth": None})
        changes["step"] = step.of_length(passes) if passes else step
    return params.Run(**{**dict(run), "precision": precision, **changes})


def images(size: int = 32, n: int = 1_000) -> data.Split:
    """Dead leaves in the shape of CIFAR-10, ten classes, with class Gaussians as large as real ones."""
    g = torch.Generator().manual_seed(0)
    x, y = outliers.dead_leaves(n, (3, size, size), g, leaves=30), torch.arange(n) % 10
    D = 3 * size * size
    fitted = starts.ClassGaussians(
        torch.zeros(10, D), 0.3 * torch.eye(D).repeat(10, 1, 1), torch.full((10,), 0.1), (3, size, size)
    )
    return data.Split("cifar10", x, y, x[:0], y[:0], x[:100], y[:100], fitted)


def trainer(run: params.Run, split: data.Split, device: Device) -> Trainer:
    """A run's trainer; AT-EBM's p0 is dead leaves, made here."""
    start = None
    if isinstance(run.start, OtherImages):
        start = starts.Images(data.to_range(split.x_train.flip(0), run.low).to(device))
    return Trainer(run, split, 0, device, start=start)


def compiled(t: Trainer) -> bool:
    """Whether what has run was compiled: not where run or network do without, nor where torch.compile failed."""
    return isinstance(t.fused.forward, networks.Compiled) and t.fused.forward.ran


def wait(device: Device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(f: Callable[[], object], device: Device, repeat: int = 1) -> float:
    """Of one call, the device's work included."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeat):
        f()
    wait(device)
    return (time.perf_counter() - began) / repeat


def in_turn(steps: Mapping[str, Callable[[], object]], rounds: int, device: Device) -> dict[str, list[float]]:
    """name -> seconds of each round; A B A B ..., so that a machine that slows down slows both."""
    for f in steps.values():
        f()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, f in steps.items():
            found[name].append(seconds(f, device))
    return found


def against_plain(names: Sequence[str], split: data.Split, device: torch.device, rounds: int) -> dict[str, dict]:
    """run -> seconds per update of both, their ratio (median of the rounds' ratios, and quartiles), images per second."""
    out = {}
    for name in names:
        ours = trainer(configuration(name, device.type), split, device)
        theirs = plain.Plain(ours)
        t = in_turn({"ours": ours.step, "plain": theirs.step}, rounds, device)
        ratios = sorted(b / a for a, b in zip(t["ours"], t["plain"], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        mine = statistics.median(t["ours"])
        out[name] = {
            "seconds": mine,
            "plain_seconds": statistics.median(t["plain"]),
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "iterations_per_second": 1 / mine,
            "images_per_second": ours.run.update.batch / mine,
            "seconds_per_epoch": EPOCH / ours.run.update.batch * mine,
            "precision": ours.precision,
            "compiled": compiled(ours),
        }
        print(f"{name:10s} {mine:7.3f} s, plain {out[name]['plain_seconds']:7.3f} s, {middle:5.2f} times", flush=True)
    return out


def parts(name: str, split: data.Split, device: torch.device, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each part of an update: data, start, chain (forward, backward), loss (forward, backward),
    update, buffer; and `step`, the whole. The parts run alone, so that overheads between them show."""
    t = trainer(configuration(name, device.type), split, device)
    u = t.run.update
    t.step()
    batch = t.batch()
    start = given(t.start, f"run {name} has no chain")
    x0, index = start.draw(batch.real, t.rng, t.noise)
    K, passes = t.run.chain.passes, 2 if u.sam else 1  # of the loss: SAM's two
    update = t.optimizer.base.step

    def chain_forward() -> None:
        with networks.frozen(t.model):
            for _ in range(K):
                t.fused(x0.detach().requires_grad_())

    def loss() -> Tensor:
        t.optimizer.zero_grad()
        return t.run.loss(t.fused, batch, x0, twice=t.energy)[0]

    def chain() -> list[Tensor]:  # the run's passes, without what a step does to x
        with networks.frozen(t.model):
            return [energy.gradient(t.fused, x0) for _ in range(K)]

    whole: dict[str, Callable[[], object]] = {
        "data": lambda: t.stream(0, t.noise),
        "start": lambda: start.draw(batch.real, t.rng, t.noise),
        "chain": chain,
        "chain, forward": chain_forward,
        "sampler": lambda: t.chain(x0),
        "loss, forward": loss,
        "loss": lambda: loss().backward(),
        "update": update,
        "buffer": lambda: start.keep(index, x0),
        "step": t.step,
    }
    m = {k: statistics.median(v) for k, v in in_turn(whole, rounds, device).items()}
    m |= {k: passes * m[k] for k in ("loss", "loss, forward")}
    return {
        "data": m["data"],
        "start": m["start"],
        "chain, forward": m["chain, forward"],
        "chain, backward": m["chain"] - m["chain, forward"],
        "loss, forward": m["loss, forward"],
        "loss, backward": m["loss"] - m["loss, forward"],
        "update": m["update"],
        "buffer": m["buffer"],
        "sampler": m["sampler"],
        "step": m["step"],
        "step / passes": m["step"] / (m["chain"] + m["loss"]),
    }


class Way(NamedTuple):
    """How an update's chain is launched, and in which precision."""

    compile: bool = False
    graph: bool = False  # as one CUDA graph
    precision: str = "auto"


def launches(split: data.Split, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of one update of JEM++ (M=10) by each way of launching its chain: operation by operation, through
    torch.compile, and on a GPU as one CUDA graph of either; and in float32. Where torch.compile failed, its launches are
    left out: they were the others again."""
    settings = {"eager": Way(), "compiled": Way(compile=True), "eager, fp32": Way(precision="fp32")}
    if device.type == "cuda":
        settings |= {"graph": Way(graph=True), "compiled, graph": Way(compile=True, graph=True)}
    trainers = {k: trainer(configuration(MAIN, device.type, **v._asdict()), split, device) for k, v in settings.items()}
    found = in_turn({k: t.step for k, t in trainers.items()}, rounds, device)
    return {k: statistics.median(v) for k, v in found.items() if compiled(trainers[k]) == settings[k].compile}


def scaling(split: data.Split, device: torch.device, rounds: int = 3) -> list[dict]:
    """Seconds per update of JEM++ (M=10), one thing changed at a time; not compiled, which each change would ask for."""
    cuda = device.type == "cuda"
    jempp = partial(configuration, MAIN, device.type, compile=False)
    changes = [("batch", b, jempp(batch=b)) for b in ((32, 64, 128, 256, 512) if cuda else (16, 32, 64, 128))]
    changes += [("width", w, jempp(widen=w)) for w in ((2, 4, 10) if cuda else (1, 2, 4))]
    changes += [("M", m, jempp(passes=m)) for m in (5, 10, 20, 40)]
    changes += [("pixels", s, jempp()) for s in (16, 32)]
    out = []
    for what, value, run in changes:
        t = trainer(run, images(value, 500) if what == "pixels" else split, device)
        s = statistics.median(in_turn({"step": t.step}, rounds, device)["step"])
        out.append({"what": what, "value": value, "seconds": s, "images_per_second": t.run.update.batch / s})
        del t
    return out


def matrix_rate(device: torch.device, n: int = 8192) -> float:
    """TFLOP/s of a bf16 product of n x n matrices on this device: what a perfect step could use."""
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    a @ a
    return 2 * n**3 / seconds(lambda: a @ a, device, 10) / 1e12


def flops_per_image(model: networks.Network, shape: tuple[int, int, int]) -> float:
    """Multiplications and additions, counted apart, of one forward pass on images (C, H, W)."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape, device=next(model.parameters()).device))
    return counter.get_total_flops()


def step_flops(run: params.Run, forward: float) -> float:
    """Of one update: a chain's pass costs a forward and an equally large backward pass for the input, a loss's pass
    three forwards, for the input's gradient and the weights'."""
    batches = 2 if run.step else 1
    return run.update.batch * forward * (2 * (run.step.passes if run.step else 0) + 3 * batches)


def cost(name: str, rate: float = 300.0, images: int = 45_000) -> dict[str, float]:
    """What one seed of a run costs as published: updates, 10^18 operations, hours at `rate` TFLOP/s (an assumption, until
    a GPU has been measured), GB on disk."""
    run = params.run(name, "paper")
    size = 256 if run.data in ("faces", "cats", "church") else 32
    model = run.network.build(10, 3, size)
    updates = run.update.iterations or int((run.update.epochs or 0) * (images // run.update.batch))
    passes = 2 if run.update.sam else 1
    forward = flops_per_image(model, (3, size, size))
    chain = 2 * (run.step.passes if run.step else 0)
    if isinstance(run.step, PGD) and run.step.real:
        chain += 2 * run.step.real.steps
    losses = 3 * passes * (1 + bool(run.step) + (run.branches == "classify"))
    total = updates * run.update.batch * forward * (chain + losses)
    kept = 1 + run.snapshots
    disk = kept * (4 * networks.parameter_count(model) + (run.replay.size if run.replay else 0) * 3 * size**2)
    return {"updates": updates, "exaflop": total / 1e18, "hours": total / (rate * 1e12) / 3600, "gb": disk / 1e9}


def saved_bytes(run: params.Run, device: torch.device, batch: int = 4) -> int:
    """Bytes that one forward pass keeps for its backward pass, per image (weights left out)."""
    model = run.network.build(10, 3, 32).to(device)
    E, kept = energy.Energy(model, precision=energy.resolve_precision(run.precision, device)), dict[int, int]()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own and t.dim() == 4 and t.shape[0] == batch:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        e = E(torch.zeros(batch, 3, 32, 32, device=device, requires_grad=True))
    del e
    return sum(kept.values()) // batch


def memory(device: torch.device) -> dict[str, float]:
    """GiB that JEM++ (M=10) with WRN-28-10 at batch 64 needs, item by item: counted, not guessed; and, on a GPU, the
    measured peak. Activations grow with the batch; class Gaussians with classes times pixels squared."""
    run, GiB = configuration(MAIN, "cuda"), 2**30
    weights = networks.parameter_count(run.network.build(10, 3, 32)) * 4
    D = 3072
    out = {
        "weights, gradients, momentum": 3 * weights / GiB,
        "SAM's copy": weights / GiB,
        "replay buffer, 10,000 images": 10_000 * D * 4 / GiB,
        "class Gaussians, 10 classes": 10 * D * D * 4 / GiB,
        "class Gaussians, 100 classes": 100 * D * D * 4 / GiB,
        # the loss holds the real batch's and the samples' at once
        "activations of a chain's pass": 64 * saved_bytes(run, device) / GiB,
    }
    out["activations of the loss's passes"] = 2 * out["activations of a chain's pass"]
    return out


def processes(device: torch.device, steps: int = 4) -> dict[str, float]:
    """Images per second of JEM++ (M=10), batch 64 a process, with one process and with two (of one thread each)."""
    out = {}
    have = torch.cuda.device_count() if device.type == "cuda" else pipeline.cores()
    for n in (1, 2):
        if n > have:
            continue
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                f"--nproc-per-node={n}",
                "--standalone",
                "-m",
                "lib.bench",
                "--worker",
                str(steps),
            ],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if found := re.search(r"images per second: ([\d.]+)", done.stdout):
            out[str(n)] = float(found[1])
        else:
            print(f"{n} processes: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return out


def worker(steps: int) -> None:
    """One of torchrun's processes."""
    with distributed.joined() as place:
        device, n = torch.device(place or "cpu"), distributed.world()
        t = trainer(configuration(MAIN, device.type, batch=64 * n), images(), device)
        t.step()  # its all_reduce also makes both begin together
        s = seconds(t.step, device, steps)
        if distributed.rank() == 0:
            print(f"images per second: {64 * n / s:.2f}")


def kept_memory_gain() -> float | None:
    """How much faster an energy gradient is because lib/__init__.py keeps freed memory: the same lines in two processes."""
    code = (
        "import torch\nfrom lib.bench import speed as bench; from lib.parts import energy\nd = torch.device('cpu')\n"
        "t = bench.trainer(bench.configuration(bench.MAIN, 'cpu'), bench.images(32, 100), d)\n"
        "x = torch.randn(64, 3, 32, 32)\n"
        "print(min(bench.seconds(lambda: energy.gradient(t.energy, x), d) for _ in range(8)))"
    )
    times = []
    for keep in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "EBM_KEEP_MEMORY": keep},
        )
        if done.returncode:
            return None
        times.append(float(done.stdout))
    return times[0] / times[1]


def machine(device: torch.device) -> dict:
    """What the numbers were measured on; `slug` names the files. A CPU's instructions are those that torch uses, which
    ATEN_CPU_CAPABILITY can hold below what the processor has: the slug says so, and both can lie side by side."""
    instructions, held = None, ""
    if device.type == "cuda":
        name, cores = torch.cuda.get_device_name(device), torch.cuda.device_count()
    else:
        path = Path("/proc/cpuinfo")
        info = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        found = re.search(r"model name\s*: (.+)", info)
        name, cores = (found[1] if found else platform.processor() or platform.machine()), pipeline.cores()
        instructions = torch.backends.cpu.get_cpu_capability()
        better = {"AVX2": "_is_avx512_supported", "DEFAULT": "_is_avx2_supported"}.get(instructions, "")
        has_better = getattr(torch.cpu, better, None)  # torch's own, private
        held = instructions if has_better and has_better() else ""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {cores} {held}".lower()).strip("-")
    return {
        "device": name,
        "count": cores,
        "instructions": instructions,
        "precision": energy.resolve_precision("auto", device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "slug": slug,
    }


def gpu(split: data.Split, device: torch.device, rounds: int) -> dict[str, float]:
    """A GPU's matrix rate, what of it JEM++'s (M=10) update uses, and the memory that this takes at most."""
    t = trainer(configuration(MAIN, "cuda"), split, device)
    s = statistics.median(in_turn({"step": t.step}, rounds, device)["step"])
    torch.cuda.reset_peak_memory_stats()
    t.step()
    peak, rate = torch.cuda.max_memory_allocated() / 2**30, matrix_rate(device)
    used = step_flops(t.run, flops_per_image(t.model, (3, 32, 32))) / s / 1e12
    return {"matrix_tflops": rate, "step_tflops": used, "share": used / rate, "peak_gib": peak}


def measure(
    device: torch.device, names: Sequence[str] = RUNS, rounds: int | None = None, minutes: float = math.inf
) -> Iterator[dict]:
    """Everything, the most important first; yields what there is after each part, and begins none after so many minutes."""
    began, rounds, split = time.monotonic(), rounds or ROUNDS, images()
    out: dict[str, object] = {
        "machine": machine(device),
        "network": f"WRN-{SIZES[device.type]['depth']}-{SIZES[device.type]['widen']}",
        "data": "dead leaves, 3x32x32, batch 64",
        "runs": {},
        "ratio_to_plain": {},
    }

    runs: dict[str, dict] = {}
    others: dict[str, Callable[[], object]] = {}  # key -> what measures it
    if device.type == "cuda":
        others["cuda"] = partial(gpu, split, device, rounds)
    others |= {
        "launches": partial(launches, split, device, rounds),
        "memory_gib": partial(memory, device),
        "parts": lambda: {name: parts(name, split, device) for name in (MAIN, "sada-k10") if name in names},
        "processes": partial(processes, device),
        "scaling": partial(scaling, split, device),
    }
    if device.type == "cpu":
        others["kept_memory_gain"] = kept_memory_gain
    keys = [*filter(MAIN.__eq__, names), *others, *filter(MAIN.__ne__, names)]
    for i, key in enumerate(keys):
        if time.monotonic() - began > 60 * minutes:
            print(f"{minutes:g} minutes are over, left out: {', '.join(keys[i:])}", file=sys.stderr)
            return
        if key in others:
            out[key] = others[key]()
        else:
            runs |= against_plain([key], split, device, rounds)
            out["runs"] = {name: runs[name] for name in RUNS if name in runs}
            out["ratio_to_plain"] = {name: runs[name]["ratio"] for name in RUNS if name in runs}
        yield out


def table(found: dict) -> str:
    """The comparison as Markdown."""
    lines = [
        "| run | s / update | images/s | s / 50,000 images | plain s / update | times faster (quartiles) |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in found["runs"].items():
        lines.append(
            f"| {name} | {r['seconds']:.3f} | {r['images_per_second']:.0f} | {r['seconds_per_epoch']:.0f} | "
            f"{r['plain_seconds']:.3f} | {r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f}) |"
        )
    return "\n".join(lines)


def _rounds(text: str) -> int:
    """Quartiles need two rounds."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} rounds; expected at least 2")
    return int(text)


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed of training updates on this machine.")
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--rounds", type=_rounds, default=ROUNDS, help="of each comparison, at least 2")
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    parser.add_argument("--minutes", type=files.amount, default=8.5, help="no part is begun after so many")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker)
    device = distributed.device(args.device)
    deterministic()  # as lib.train trains
    folder = ROOT / "results" / "bench"
    files.writable(folder)
    for found in measure(device, args.runs, args.rounds, args.minutes):  # an end by force loses only the last part
        path = folder / f"{found['machine']['slug']}.json"
        files.write_json(path, found)
    from lib import plots

    plots.style()
    if {"parts", "scaling"} <= set(found):
        files.write_figure(path.with_suffix(".png"), plots.benchmark(found))
    if "cuda" in found:
        print("".join(f"{k} {v:.3g}   " for k, v in found["cuda"].items()))
    print("".join(f"{k} {v:.3f} s   " for k, v in found.get("launches", {}).items()))
    print(f"{found['machine']['device']}, {found['machine']['count']}; {path.relative_to(ROOT)}\n{table(found)}")


if __name__ == "__main__":
    main()
