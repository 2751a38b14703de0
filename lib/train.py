"""The training loop, one for every method, resumable to the bit.

    python -m lib.train jempp-m10 [--profile quick]

trains each seed of a run and leaves artifacts/<profile>/<run>/seed<s>/: weights.pt, buffer.pt (uint8),
metrics.json, curve.csv, provenance.json, snapshots/. An interrupted run continues from its last checkpoint in
scratch/ when the same command is given again; a changed configuration starts afresh. With --minutes, it interrupts
itself in time.

    torchrun --nproc-per-node=2 -m lib.train jempp-m10

trains the same run on two processes (one GPU each, where there are GPUs): update.batch images an update, half of them
each, a replay buffer of |B|/2 each, published as one. Batch norm sees each half's statistics.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from lib import ROOT, data, files, params
from lib.measures import attacks
from lib.parts import losses, networks, samplers, starts
from lib.parts.energy import Energy, energy
from lib.parts.starts import ReplayBuffer
from lib.parts.updates import SAM
from lib.training import checkpoint, distributed

DIVERGED = 1e8  # |loss| above which the official codes call a run diverged
UNFINISHED = 75  # exit status where --minutes ended a run early: sysexits.h's "try again later"
COLUMNS = (
    "iteration",
    "epoch",
    "loss",
    "cross_entropy",
    "energy_real",
    "energy_sample",
    "accuracy",
    "grad_norm",
    "lr",
    "holdout_accuracy",
    "K",
    "auc",
    "travelled",
    "seconds",
)


class OutOfTime(RuntimeError):
    """The deadline passed before the run's end. A checkpoint is written: the same call, or command, continues."""


class Trainer:
    """State of one run: network, optimiser, buffer, random streams. `step` makes one update.

    Nothing in `step` waits for the device (but torchvision's augmentations, which AT-EBM's paper profile uses): its numbers
    stay there until `fit` reads them. With several processes, each
    has a Trainer: the same network, its share of the batch and of the buffer, random numbers of its own. `start`
    replaces the p0 that the run names.
    """

    def __init__(self, run: params.Run, split: data.Split, seed: int = 0, device: str | torch.device = "cpu", start=None):
        self.run, self.split, self.device = run, split, torch.device(device)
        self.precision = resolve_precision(run.precision, self.device)
        self.iteration, self.seconds, self.rollbacks = 0, 0.0, 0
        torch.manual_seed(seed)  # weight initialisation draws from the global stream
        self.model = networks.build(
            **run.network.model_dump(), classes=len(split.classes), channels=split.shape[0], size=split.shape[1]
        ).to(self.device)
        if run.initial:
            checkpoint.begin_from(self.model, ROOT / run.initial, f"runs.{run.name}.initial")
        distributed.broadcast(self.model)
        self.energy = self.fused = Energy(self.model, precision=self.precision)  # fused: in `step`, the R1 penalty apart
        if run.compile and networks.has_batch_norm(self.model):  # without norm, there is nothing to fuse
            self.fused = Energy(self.model, precision=self.precision, forward=networks.compiled(self.model))
        self.optimizer = optimizer(self.model, run.update)
        self.seed(seed)
        self.batch = distributed.share(run.update.batch, "update.batch")
        u, images = run.update, (split.x_train.to(self.device), split.y_train.to(self.device))
        self.stream = data.Stream(*images, u.batch, run.augment, seed, run.low)
        self.plain = None  # p(x)'s own batches, in another order, as they are
        if run.augment.branches == "classify":
            self.plain = data.Stream(*images, u.batch, run.augment.model_copy(update={"kind": "none"}), seed + 7919, run.low)
        self.iterations = u.iterations or math.ceil(u.epochs * self.stream.per_epoch)
        self.start = self.buffer = self.progress = None
        if run.start:
            self.start = start or start_of(run, split, self.device)
            if run.start.kind != "images":
                self.buffer = ReplayBuffer.filled(
                    distributed.share(run.start.buffer, "start.buffer"), self.start, self.rng, self.device
                )
            if run.step.kind == "pgd":
                self.progress = Progress(run.step, self.iterations)

    def seed(self, seed: int) -> None:
        """Two streams: `rng` on the CPU for indices and starts, `noise` on the device for everything dense. Several
        processes draw the batches' noise from a third, alike in all of them."""
        own = seed + 15_485_863 * distributed.rank()
        self.rng = torch.Generator().manual_seed(own)
        self.noise = torch.Generator(self.device).manual_seed(own + 1)
        self.common = self.noise if distributed.world() == 1 else torch.Generator(self.device).manual_seed(seed + 1)
        self.chain = self.sampler()

    def sampler(self):
        """x0 -> x^K, the run's chain with the noise stream as it is now; on a GPU one graph, where the run says so.
        `changes` replace arguments of the sampler."""

        def chain(x: Tensor, **changes) -> Tensor:
            with networks.frozen(self.model):
                return samplers.last(samplers.sample(self.fused, x, self.run.step, self.noise, self.run.low, **changes))

        # AT-EBM's K grows, and a graph is of one length
        graph = self.run.graph and self.device.type == "cuda" and self.run.step and self.run.step.kind != "pgd"
        return samplers.Graph(chain, self.model.buffers(), self.noise) if graph else chain

    def step(self) -> dict[str, Tensor]:
        """One update: batch, samples, loss, weights. Returns scalars on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.run.update, self.iteration, self.iterations)
        self.model.train(self.progress is None)  # AT-EBM: batch norm in evaluation mode throughout
        x, y = map(distributed.mine, self.stream(self.iteration, self.common))
        x_plus = distributed.mine(self.plain(self.iteration, self.common)[0]) if self.plain else x
        x_minus, moved = None, {}
        if self.progress:
            x_plus, x_minus, moved = self.perturb(x_plus)
        elif self.run.step:
            x_minus = self.sample()
        if self.run.adversary:
            x = x_plus = self.attack(x, y)

        def closure():
            loss, numbers = self.loss(x, y, x_plus, x_minus)
            loss.backward()
            if not self.run.update.sam:  # SAM averages after its second pass
                distributed.average_update(self.model)
            numbers["grad_norm"] = torch.linalg.vector_norm(
                torch.stack(torch._foreach_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
            )
            return {"loss": loss.detach(), **numbers}

        self.optimizer.zero_grad()
        numbers = self.optimizer.step(closure) if self.run.update.sam else closure()
        if not self.run.update.sam:
            self.optimizer.step()
        if self.progress:
            self.progress.record(self.iteration, numbers["auc"])
        self.iteration += 1
        return {**numbers, **moved}

    def perturb(self, x: Tensor) -> tuple[Tensor, Tensor, dict]:
        """AT-EBM, Algorithm 1, lines 2 and 3: fresh p0 images moved down E by K steps; in the code, real images x a
        little up. Returns both, and how far the former travelled (L2, mean)."""
        step, K = self.run.step, self.progress.K(self.iteration)
        x0 = data.augmented(self.start.draw(len(x), self.rng), self.run.start.augment, self.noise, self.run.low)
        x_star = x0
        if K:
            x_star = self.chain(x0, K=K)
        if step.real:
            with networks.frozen(self.model):
                x = samplers.last(
                    samplers.pgd(
                        self.fused,
                        x,
                        K=step.real.steps,
                        alpha=step.alpha,
                        radius=step.real.radius,
                        clip=(self.run.low, 1.0),
                        climb=True,
                    )
                )
        travelled = (x_star - x0).flatten(1).norm(dim=1).mean()
        return x, x_star, {"travelled": travelled, "K": torch.full_like(travelled, K)}

    def sample(self) -> Tensor:
        """x^-: buffer and p0, the chain, back into the buffer (JEM++ Algorithm 2, lines 3, 4 and 6)."""
        x0, index = self.buffer.draw(self.batch, self.start, self.run.start.reinit, self.rng)
        x_minus = self.chain(x0)
        self.buffer.put(index, x_minus)
        return x_minus

    def attack(self, x: Tensor, y: Tensor) -> Tensor:
        """The batch moved by PGD (Madry et al. 2018), batch norm by its running statistics meanwhile."""
        a = self.run.adversary
        self.model.eval()
        x = attacks.pgd(
            self.energy.logits, x.clamp(-1, 1), y, epsilon=2 * a.radius / 255, norm=a.norm, steps=a.steps, generator=self.rng
        )
        self.model.train()
        return x

    def loss(self, x: Tensor, y: Tensor, x_plus: Tensor, x_minus: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The run's loss on a batch (x, y) for p(y|x), one for p(x) (x_plus, usually x itself), and samples x_minus.

        Where x_plus is x, one forward serves both. Real batches come last, so that batch norm's running
        statistics, which the test uses, end on real images.
        """
        w, nan = self.run.loss, torch.full((), math.nan, device=x.device)
        e_minus = self.fused(x_minus) if x_minus is not None else None
        if not w.classify:
            return self.unlabelled_loss(x_plus, e_minus)
        e_plus = self.fused(x_plus) if x_plus is not x else None
        logits = self.fused.logits(x)
        e_plus = energy(logits) if e_plus is None else e_plus
        if x_minus is None:
            loss = w.classify * losses.classification(logits, y)
        else:
            loss = losses.joint(logits, y, e_plus, e_minus, classify=w.classify, generate=w.generate, l2=w.l2)
        with torch.no_grad():
            numbers = {
                "cross_entropy": losses.classification(logits, y),
                "energy_real": e_plus.mean(),
                "energy_sample": e_minus.mean() if e_minus is not None else nan,
                "accuracy": (logits.argmax(1) == y).float().mean(),
            }
        return loss, numbers

    def unlabelled_loss(self, x: Tensor, e_minus: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """AT-EBM's loss: real against perturbed images, and R1 on the real ones; or (Sec. 5.3) the EBM objective."""
        w = self.run.loss
        e_plus = (self.energy if w.r1 else self.fused)(x.requires_grad_(bool(w.r1)))  # R1 differentiates twice
        loss = w.discriminate * losses.real_vs_perturbed(e_plus, e_minus) + w.generate * losses.contrastive(e_plus, e_minus)
        if w.r1:
            loss = loss + w.r1 * losses.r1(e_plus, x)
        with torch.no_grad():
            numbers = {
                "cross_entropy": losses.real_vs_perturbed(e_plus, e_minus),
                "energy_real": e_plus.mean(),
                "energy_sample": e_minus.mean(),
                **told_apart(e_plus, e_minus),
            }
        return loss, numbers

    def state_dict(self) -> dict:
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer.images if self.buffer else None,
            "progress": self.progress.state_dict() if self.progress else None,
            "rng": self.rng.get_state(),
            "noise": self.noise.get_state(),
            "common": self.common.get_state(),
        }

    def load_state_dict(self, s: dict) -> None:
        self.iteration, self.seconds, self.rollbacks = s["iteration"], s["seconds"], s["rollbacks"]
        self.model.load_state_dict(s["model"])
        self.optimizer.load_state_dict(s["optimizer"])
        if self.buffer:
            self.buffer.images = s["buffer"].to(self.device)
        if self.progress:
            self.progress.load_state_dict(s["progress"])
        self.rng.set_state(s["rng"].cpu())
        self.noise.set_state(s["noise"].cpu())
        self.common.set_state(s["common"].cpu())

    @torch.no_grad()
    def holdout_accuracy(self) -> float:
        """Accuracy on the held-out training images, batch norm by its running statistics; NaN for no classifier."""
        x, y = self.split.x_hold, self.split.y_hold
        if not len(x) or not self.run.loss.classify:
            return math.nan
        self.model.eval()
        g = torch.Generator(self.device).manual_seed(0)
        hits = 0
        for a, b in zip(x.split(500), y.split(500)):
            a = data.with_noise(data.to_range(a.to(self.device), self.run.low), self.run.augment.noise, g)
            hits += (self.energy.logits(a).argmax(1).cpu() == b).sum().item()
        return hits / len(x)


class Progress:
    """AT-EBM's K, growing to step.K, or fixed (lib.params.Progress). `record` is told every iteration's AUC.

    The AUC rule looks once in ten iterations, so as to wait for the device no more often. Several processes take the
    mean of theirs, and so have one K.
    """

    def __init__(self, step: params.Step, iterations: int):
        self.step, self.iterations = step, iterations
        self.k = step.progress.first if step.progress else 0
        self.since, self.aucs = 0, []  # since: the iteration at which K became k

    def K(self, i: int) -> int:
        """The number of PGD steps at iteration i, counted from 0."""
        rule = self.step.progress
        if rule is None:
            return self.step.K
        return i * (self.step.K + 1) // self.iterations if rule.kind == "linear" else self.k

    def record(self, i: int, auc: Tensor) -> None:
        rule = self.step.progress
        if rule is None or rule.kind == "linear" or self.k == self.step.K:
            return
        self.aucs = [*self.aucs, auc.detach()][-rule.window :]
        held = i + 1 - self.since
        passed = held >= rule.window and held % 10 == 0 and self.mean_auc() > rule.threshold
        if passed or held == rule.hold:
            self.k, self.since, self.aucs = self.k + 1, i + 1, []

    def mean_auc(self) -> float:
        auc = torch.stack(self.aucs).mean()
        distributed.average([auc])
        return auc.item()

    def state_dict(self) -> dict:
        return {"k": self.k, "since": self.since, "aucs": torch.stack(self.aucs).cpu() if self.aucs else torch.empty(0)}

    def load_state_dict(self, s: dict) -> None:
        self.k, self.since, self.aucs = s["k"], s["since"], list(s["aucs"])


def told_apart(e_plus: Tensor, e_minus: Tensor) -> dict[str, Tensor]:
    """How well E tells real from perturbed: accuracy of D = sigmoid(-E) at 1/2, and the area under the ROC curve
    (the share of pairs in the right order). Scalars on the device."""
    pairs = e_minus[None, :] - e_plus[:, None]
    return {
        "accuracy": ((e_plus < 0).float().mean() + (e_minus >= 0).float().mean()) / 2,
        "auc": (pairs > 0).float().mean() + (pairs == 0).float().mean() / 2,
    }


def optimizer(model: torch.nn.Module, u: params.Update) -> torch.optim.Optimizer | SAM:
    """The optimiser that `update` describes; SAM's second pass leaves batch norm's running statistics alone, and its
    gradients are the ones that several processes average."""
    if u.optimizer == "adam":
        base = torch.optim.Adam(model.parameters(), u.lr, u.betas, weight_decay=u.weight_decay)
    else:
        base = torch.optim.SGD(model.parameters(), u.lr, u.momentum, weight_decay=u.weight_decay, nesterov=u.nesterov)
    if not u.sam:
        return base
    return SAM(
        base,
        u.sam.rho,
        u.sam.adaptive,
        second_pass=lambda: networks.batch_statistics(model),
        reduce=lambda: distributed.average_update(model),
    )


def learning_rate(u: params.Update, i: int, total: int) -> float:
    """Linear warm-up, then a drop by `decay` at each milestone (share of the training), or half a cosine down
    to zero; i counts from 0."""
    warm = min(1.0, (i + 1) / u.warmup) if u.warmup else 1.0
    if u.schedule == "cosine":
        return u.lr * warm * 0.5 * (1 + math.cos(math.pi * i / total))
    return u.lr * warm * u.decay ** sum(i >= m * total for m in u.milestones)


def start_of(run: params.Run, split: data.Split, device):
    """p0 of a run: JEM's uniform noise, JEM++'s class Gaussians, or AT-EBM's images of another kind."""
    kind = run.start.kind
    if kind == "images":
        return starts.Images(data.to_range(data.p0(run), run.low).to(device))
    if kind == "uniform":
        return starts.Uniform(split.shape, run.low)
    if split.gaussians is None:
        raise data.DataError(
            f"{run.name}: start kind gaussians, but {split.title} has none fitted: set gaussians: true in "
            f"scales.{run.profile}.data.{run.data}, or another start"
        )
    return split.gaussians.to(device)


def resolve_precision(wanted: str, device: torch.device) -> str:
    """'auto' -> 'bf16' where the hardware multiplies in bf16 itself, else 'fp32'."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = any(getattr(torch.cpu, f, bool)() for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    # torch may be told to do without (ATEN_CPU_CAPABILITY=avx2): bf16 would be emulated then, 8 to 12 times as slow as fp32
    return "bf16" if native and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2") else "fp32"


# ------------------------------------------------------------------------------------------- the loop around it
def fit(trainer: Trainer, folder: Path, scratch: Path, on_log=None, deadline: float | None = None) -> dict:
    """Train to the end, or to a divergence; returns the metrics that are written to folder/metrics.json.

    A window of `log_every` iterations is read from the device at once. A loss that is not finite, or beyond
    1e8, ends the run with a verdict (its last healthy checkpoint's weights are kept), or, while
    `rollbacks` remain, sends it back to that checkpoint with fresh noise. Several processes decide on the mean of their
    numbers; process 0 alone writes and calls `on_log`.

    Args:
        deadline: by time.monotonic(); it is looked at when a window ends.
    Raises: OutOfTime; ConfigError where the run in scratch/ was begun by another number of processes; DataError where what
        it would continue from is of another version.
    """
    run, first = trainer.run, distributed.rank() == 0
    rows, divergences, scratch = [], [], _own_folder(trainer, scratch)
    state = _latest(scratch, trainer.device)
    if state:
        rows, divergences = _resume(trainer, state, scratch)
        if first:
            print(f"{run.name}: resumed at iteration {trainer.iteration}", file=sys.stderr)
    else:
        _checkpoint(trainer, rows, divergences, scratch)
    bar = tqdm(
        total=trainer.iterations,
        initial=trainer.iteration,
        desc=run.name,
        unit="it",
        mininterval=0.5 if sys.stderr.isatty() else 20,
        file=sys.stderr,
        disable=not first,
    )
    verdict, window, began = "finished", [], time.perf_counter()
    while trainer.iteration < trainer.iterations:
        window.append(trainer.step())
        i, end = trainer.iteration, trainer.iteration == trainer.iterations
        if not (i % run.log_every == 0 or i % run.checkpoint_every == 0 or end or _snapshot_due(trainer)):
            continue
        table = torch.stack([torch.stack(tuple(w.values())) for w in window])  # (window, numbers)
        distributed.average([table])
        values = dict(zip(window[0], table.T.tolist()))  # the one wait
        now = time.perf_counter()
        trainer.seconds, began = trainer.seconds + now - began, now
        bad = next((j for j, v in enumerate(values["loss"]) if not abs(v) <= DIVERGED), None)
        if bad is not None:
            at = i - len(window) + bad + 1
            divergences.append(at)
            if first:
                bar.write(f"{run.name}: diverged at iteration {at} (loss {values['loss'][bad]:.3g})", file=sys.stderr)
            rows_kept = _roll_back(trainer, scratch, len(divergences))
            window, began = [], time.perf_counter()
            if len(divergences) > run.rollbacks:
                verdict = f"diverged at iteration {at}"
                break
            rows = rows_kept
            bar.n = trainer.iteration
            continue
        row = {k: sum(v) / len(v) for k, v in values.items()}
        row |= {
            "iteration": i,
            "epoch": i / trainer.stream.per_epoch,
            "seconds": trainer.seconds,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "holdout_accuracy": math.nan,
        }
        if (i % run.validate_every == 0 or end) and run.loss.classify:
            row["holdout_accuracy"] = trainer.holdout_accuracy()
        began = time.perf_counter()  # validation is not training time
        rows.append(row)
        bar.update(len(window))
        bar.set_postfix(loss=f"{row['loss']:.3g}", acc=f"{row['accuracy']:.2f}", refresh=False)
        window = []
        if on_log and first:
            on_log(trainer, row)
        if _snapshot_due(trainer):
            _publish(trainer, folder / "snapshots" / f"{i:08d}")
        late = not end and deadline is not None and distributed.least(deadline - time.monotonic(), trainer.device) <= 0
        if late or (len(run.seeds) > 1 if end else i % run.checkpoint_every == 0):  # a seed that is done stays done
            _checkpoint(trainer, rows, divergences, scratch)
        if late:
            distributed.wait(trainer.device)  # the first to end would have torchrun end the others
            bar.close()
            raise OutOfTime(f"{run.name}: out of time at iteration {i} of {trainer.iterations}; the same command continues")
    bar.close()
    per_epoch = trainer.seconds / max(trainer.iteration, 1) * trainer.stream.per_epoch
    metrics = {
        "verdict": verdict,
        "iterations": trainer.iteration,
        "planned": trainer.iterations,
        "epochs": trainer.iteration / trainer.stream.per_epoch,
        "divergences": divergences,
        "seconds": trainer.seconds,
        "seconds_per_epoch": per_epoch,
        "holdout_accuracy": next(
            (r["holdout_accuracy"] for r in reversed(rows) if r["holdout_accuracy"] == r["holdout_accuracy"]), None
        ),
    }
    if first:  # what marks a result as whole comes last: an earlier run's would vouch for a mixture
        for old in (folder / "provenance.json", *folder.glob("*.part*")):  # and what a killed process left
            old.unlink(missing_ok=True)
    _publish(trainer, folder)
    if first:
        files.write_text(folder / "curve.csv", _csv(rows))
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _csv(rows: list[dict]) -> str:
    """The training curve. A run that diverged before its first window has a header alone."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    return out.getvalue()


def _snapshot_due(trainer: Trainer) -> bool:
    n = trainer.run.snapshots
    return bool(n) and trainer.iteration % max(1, trainer.iterations // n) == 0


def _checkpoint(trainer: Trainer, rows, divergences, scratch: Path) -> None:
    checkpoint.save({**trainer.state_dict(), "rows": rows, "divergences": divergences}, scratch, trainer.iteration)


def _roll_back(trainer: Trainer, scratch: Path, times: int) -> list:
    """Back to the last healthy checkpoint, with other random numbers: the same ones would diverge again."""
    state = _latest(scratch, trainer.device)
    if state is None:
        raise data.DataError(
            f"{trainer.run.name} diverged, and no checkpoint in {scratch} is intact: run the same command "
            "again, it begins at iteration 0"
        )
    rows, _ = _resume(trainer, state, scratch)
    trainer.rollbacks = times
    trainer.seed(1_000 * times + trainer.iteration)
    return rows


def _resume(trainer: Trainer, state: dict, scratch: Path) -> tuple[list, list]:
    """Put a checkpoint's state into the trainer; returns its rows and divergences."""
    try:
        rows, divergences = state.pop("rows"), state.pop("divergences")
        trainer.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as e:
        raise data.DataError(
            f"{scratch} holds a checkpoint of another version ({type(e).__name__}): remove that folder, "
            "and the same command starts afresh"
        ) from e
    return rows, divergences


def _own_folder(trainer: Trainer, scratch: Path) -> Path:
    """Where this process keeps its checkpoints: scratch itself, or a folder of its own in it."""
    N, begun = distributed.world(), {int(p.name.split("of")[1]) for p in scratch.glob("rank*of*")}
    begun |= {1} if any(scratch.glob("*.pt")) else set()
    distributed.wait(trainer.device)  # all have looked before any of them writes
    if begun - {N}:
        raise params.ConfigError(
            f"{trainer.run.name}: begun by {max(begun - {N})} process(es), this is {N}; continue with "
            f"as many (torchrun --nproc-per-node), or remove {scratch} to start afresh"
        )
    return scratch if N == 1 else scratch / f"rank{distributed.rank()}of{N}"


def _latest(scratch: Path, device) -> dict | None:
    """The newest checkpoint that every process has intact, or None."""
    upto = math.inf
    while True:
        state = checkpoint.latest(scratch, device, upto)
        at = state["iteration"] if state else -1
        upto = distributed.least(at, device)
        if distributed.least(at == upto, device):
            return state


def _publish(trainer: Trainer, folder: Path) -> None:
    """Weights, and all processes' parts of the buffer; process 0 writes."""
    images = distributed.gather(data.to_bytes(trainer.buffer.images)).cpu() if trainer.buffer else None
    if distributed.rank():
        return
    files.write_tensors(folder / "weights.pt", {k: v.cpu() for k, v in trainer.model.state_dict().items()})
    if images is not None:
        files.write_tensors(folder / "buffer.pt", images)


@contextlib.contextmanager
def _alone(path: Path, run: params.Run, device):
    """The lock on a run's folder, which process 0 holds for all of the run's. Raises: RuntimeError where it is taken."""
    lock, free = FileLock(path), True
    try:
        if distributed.rank() == 0:
            lock.acquire(timeout=0)
    except Timeout:
        free = False
    if not distributed.least(free, device):
        raise RuntimeError(
            f"run {run.name} ({run.profile}) is being trained by another process (lock {path}): wait for it, "
            "or end it, then try again"
        )
    try:
        yield
    finally:
        lock.release()


def train(
    run: params.Run,
    device: str | None = None,
    artifacts: Path | None = None,
    scratch: Path | None = None,
    deadline: float | None = None,
) -> list[dict]:
    """Train every seed of a run, one folder each; returns their metrics. Where processes are joined
    (lib.training.distributed), all of them call this alike.

    Args:
        device: None: cuda where there is one.   deadline: by time.monotonic(); None: no end but the run's.
    Raises: DataError, ConfigError, OutOfTime, OSError, RuntimeError where another process is at work on the same run.
    """
    device = distributed.device(device)
    files.writable(*(Path(own or ROOT / name) for own, name in ((artifacts, "artifacts"), (scratch, "scratch"))))
    split = data.load(run.profile, run.data)
    digest = fingerprint(run)
    artifacts = Path(artifacts or ROOT / "artifacts") / run.profile / run.name
    scratch = Path(scratch or ROOT / "scratch") / run.profile / run.name
    scratch.mkdir(parents=True, exist_ok=True)
    # As torch.use_deterministic_algorithms(True, warn_only=True), which imports the compiler for a second; and no NaN
    # in every fresh tensor: that mode's search for reads of unset memory costs a twentieth of a step.
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False
    if run.threads:
        torch.set_num_threads(run.threads)
    with _alone(scratch.with_suffix(".lock"), run, device):
        results = []
        for seed in run.seeds:
            began = time.time()
            folder, work = artifacts / f"seed{seed}", scratch / digest / f"seed{seed}"
            trainer = Trainer(run, split, seed, device)
            folder.mkdir(parents=True, exist_ok=True)
            if not work.exists() and distributed.rank() == 0:  # begun afresh: another configuration's would stay
                shutil.rmtree(folder / "snapshots", ignore_errors=True)
            results.append(fit(trainer, folder, work, deadline=deadline))
            if distributed.rank() == 0:
                files.write_json(folder / "provenance.json", provenance(run, seed, trainer, time.time() - began))
        distributed.wait(device)
        if distributed.rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        return results


def fingerprint(run: params.Run) -> str:
    """A hash of the configuration and the data: what a checkpoint may be resumed under."""
    split = data.path_of(run.profile, run.data)
    content = hashlib.sha256().hexdigest()
    if split.exists():
        with split.open("rb") as f:  # 25 GB, some: not all at once
            content = hashlib.file_digest(f, "sha256").hexdigest()
    return hashlib.sha256((run.model_dump_json() + content).encode()).hexdigest()[:16]


def provenance(run: params.Run, seed: int, trainer: Trainer, wall: float) -> dict:
    """What a result was made from and on."""
    d = trainer.device
    name = torch.cuda.get_device_name(d) if d.type == "cuda" else (platform.processor() or platform.machine())
    return {
        "run": run.name,
        "profile": run.profile,
        "seed": seed,
        "config": run.model_dump(mode="json"),
        "data": trainer.split.title,
        "commit": commit(),
        "device": f"{d.type}: {name}",
        "processes": distributed.world(),
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "parameters": networks.parameter_count(trainer.model),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system(),
        "wall_seconds": round(wall, 1),
    }


def commit() -> str:
    """The commit of the code; '+' where lib/ or params.yaml differ from it; 'unknown' outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "lib", "params.yaml"], cwd=ROOT, capture_output=True
        ).stdout.strip()
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty else "") if head.returncode == 0 else "unknown"


def amount(text: str) -> float:
    """A command line's number of minutes, or of whatever there cannot be less than none. Raises: ValueError."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


@files.command(params.ConfigError, RuntimeError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Train a run of params.yaml.")
    parser.add_argument("run")
    parser.add_argument("--profile", choices=params.PROFILES)
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda where there is one")
    parser.add_argument(
        "--minutes",
        type=amount,
        help=f"then write a checkpoint and end with status {UNFINISHED}: the same command continues",
    )
    args = parser.parse_args()
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    with distributed.joined(args.device) as device:
        try:
            _train_or_skip(params.run(args.run, args.profile), device, deadline)
        except OutOfTime as e:
            if distributed.rank() == 0:
                print(e, file=sys.stderr)
            sys.exit(UNFINISHED)


def _train_or_skip(run: params.Run, device: str | None, deadline: float | None) -> None:
    first = distributed.rank() == 0
    if params.data(run.profile, run.data) is None:  # a role that this profile does not have
        if first:
            reason = f"profile {run.profile} has no {run.data} data set"
            files.write_text(
                ROOT / "artifacts" / run.profile / run.name / "skipped.json", json.dumps({"skipped": reason}) + "\n"
            )
            print(f"{run.name}: skipped, {reason}")
        return
    for seed, m in zip(run.seeds, train(run, device, deadline=deadline)):
        if first:
            print(
                f"{run.name} seed {seed}: {m['verdict']}, {m['iterations']} iterations in {m['seconds']:.0f} s, "
                f"held-out accuracy {m['holdout_accuracy']}"
            )


if __name__ == "__main__":
    main()
