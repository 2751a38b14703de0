"""One update of any run: its batch, its samples, its loss, its step. No method's name stands here; the cells differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib import ROOT, data, memory, params
from lib.parts import networks, samplers
from lib.parts.cell import given
from lib.parts.energy import Energy, resolve_precision
from lib.parts.losses import Batch
from lib.parts.pixels import to_range, with_noise
from lib.parts.schedules import Length
from lib.parts.starts import ReplayBuffer, Start
from lib.training import checkpoint, distributed


def logged(run: params.Run) -> tuple[str, ...]:
    """What one update of a run returns, by name, in its order."""
    return (*run.loss.columns, *(("travelled", "K") if run.step else ()), "grad_norm")


def deterministic() -> None:
    """As torch.use_deterministic_algorithms(True, warn_only=True), which imports the compiler for a second; and no NaN in
    every fresh tensor: that mode's search for reads of unset memory costs a twentieth of a step."""
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module


class Trainer:
    """State of one run: network, optimiser, buffer, random streams. `step` makes one update.

    Nothing in `step` waits for the device (but torchvision's augmentations): its numbers stay there until `fit` reads them.
    With several processes, each has a Trainer: the same network, its share of the batch and of the buffer, random numbers of
    its own. `start` replaces the p0 that the run names.
    """

    def __init__(
        self,
        run: params.Run,
        split: data.Split,
        seed: int = 0,
        device: str | torch.device = "cpu",
        start: Start | None = None,
    ):
        memory.keep_freed()
        self.run, self.split, self.device = run, split, torch.device(device)
        self.precision = resolve_precision(run.precision, self.device)
        self.iteration, self.seconds, self.rollbacks = 0, 0.0, 0
        torch.manual_seed(seed)  # weight initialisation draws from the global stream
        self.model = run.network.build(len(split.classes), split.shape[0], split.shape[1]).to(self.device)
        if run.initial:
            checkpoint.begin_from(self.model, ROOT / run.initial, f"runs.{run.name}.initial")
        distributed.broadcast(self.model)
        self.energy = self.fused = Energy(self.model, precision=self.precision)  # fused: what `step` uses where it can
        if run.compile and networks.has_batch_norm(self.model):  # without norm, there is nothing to fuse
            self.fused = Energy(self.model, precision=self.precision, forward=networks.Compiled(self.model))
        self.optimizer = run.update.build(self.model, lambda: distributed.average_update(self.model))
        self.seed(seed)
        u, images = run.update, (split.x_train.to(self.device), split.y_train.to(self.device))
        distributed.share(u.batch, "update.batch")
        self.stream = data.Stream(*images, u.batch, run.augment, seed, run.low, run.input_noise)
        self.unaugmented = None  # p(x)'s own batches, in another order, as they are
        if run.branches == "classify":
            self.unaugmented = data.Stream(*images, u.batch, None, seed + 7919, run.low, run.input_noise)
        self.iterations = u.iterations or math.ceil((u.epochs or 0) * self.stream.per_epoch)
        self.start, self.length = self._start(start), Length(0)
        if run.step:
            self.length = run.step.length(self.iterations, distributed.average)

    def _start(self, p0: Start | None) -> Start | None:
        """Where the run's chains start: p0, in a replay buffer where it has one."""
        if self.run.start is None:
            return None
        p0, replay = p0 or data.start_of(self.run, self.split, self.device), self.run.replay
        if replay is None:
            return p0
        size = distributed.share(replay.size, "start.buffer.size")
        return ReplayBuffer.filled(size, p0, replay.reinit, self.rng, self.device)

    @property
    def buffer(self) -> ReplayBuffer | None:
        """None for a run without one."""
        return self.start if isinstance(self.start, ReplayBuffer) else None

    def seed(self, seed: int) -> None:
        """Two streams: `rng` on the CPU for indices and starts, `noise` on the device for everything dense. Several
        processes draw the batches' noise from a third, alike in all of them."""
        own = seed + 15_485_863 * distributed.rank()
        self.rng = torch.Generator().manual_seed(own)
        self.noise = torch.Generator(self.device).manual_seed(own + 1)
        self.common = self.noise if distributed.world() == 1 else torch.Generator(self.device).manual_seed(seed + 1)
        self.chain: Callable[[Tensor], Tensor] = self.walk  # of full length; on a GPU one graph, where the run says so
        if self.run.graph and self.run.step and self.device.type == "cuda":
            self.chain = samplers.Graph(self.walk, self.model.buffers(), self.noise)

    def walk(self, x: Tensor, K: int | None = None) -> Tensor:
        """x^0 -> x^K (B, ...), one step after the other. K: None: the run's own number of steps."""
        with networks.frozen(self.model):
            return samplers.last(self.run.chain(self.fused, x, self.noise, self.run.low, K))

    def step(self) -> dict[str, Tensor]:
        """One update: batch, samples, loss, weights. Returns scalars on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.update.schedule(self.run.update.lr, self.iteration, self.iterations)
        self.model.train()
        batch = self.batch()
        samples, numbers_of_chain = self.sample(batch.real) if self.start else (None, {})
        batch = self.uphill(batch) if self.start else batch
        attacked = self.attack(batch) if "attacked" in self.run.loss.needs else None

        def closure() -> dict[str, Tensor]:
            loss, numbers = self.run.loss(self.fused, batch, samples, attacked, twice=self.energy)
            loss.backward()
            return numbers

        numbers, norm = self.optimizer.step(closure)
        if samples is not None:
            self.length.record(self.iteration, numbers["auc"])
        self.iteration += 1
        return {**numbers, **numbers_of_chain, "grad_norm": norm}

    def batch(self) -> Batch:
        """This process's part of the update's images."""
        x, y = map(distributed.mine, self.stream(self.iteration, self.common))
        real = distributed.mine(self.unaugmented(self.iteration, self.common)[0]) if self.unaugmented else x
        return Batch(x, y, real)

    def sample(self, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x^-: from the start, K steps, back to where they live (JEM++ Algorithm 2, lines 3, 4 and 6; AT-EBM Algorithm 1,
        lines 2 and 3); and how far they travelled (L2, mean)."""
        start, K = given(self.start, f"run {self.run.name} has no chain"), self.length(self.iteration)
        x0, index = start.draw(real, self.rng, self.noise)
        samples = x0
        if K:
            samples = self.chain(x0) if K == self.length.K else self.walk(x0, K)
        start.keep(index, samples)
        travelled = (samples - x0).flatten(1).norm(dim=1).mean()
        return samples, {"travelled": travelled, "K": torch.full_like(travelled, K)}

    def uphill(self, batch: Batch) -> Batch:
        """The batch with its real images moved up E a little, where the step says so."""
        with networks.frozen(self.model):
            return batch._replace(real=self.run.chain.uphill(self.fused, batch.real, self.run.low))

    def attack(self, batch: Batch) -> Tensor:
        """The batch moved by the adversary, batch norm by its running statistics meanwhile."""
        with networks.evaluating(self.model):
            return self.run.loss.adversary.attack(self.energy, batch.x, batch.y, self.rng, self.run.low)

    def state_dict(self) -> dict:
        """All that a resumed run needs, to go on to the bit."""
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer.images if self.buffer else None,
            "length": self.length.state_dict(),
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
        self.length.load_state_dict(s["length"])
        self.rng.set_state(s["rng"].cpu())
        self.noise.set_state(s["noise"].cpu())
        self.common.set_state(s["common"].cpu())

    @torch.no_grad()
    def holdout_accuracy(self) -> float:
        """Accuracy on the held-out training images, batch norm by its running statistics; NaN for no classifier."""
        x, y = self.split.x_hold, self.split.y_hold
        if not len(x) or not self.run.labelled:
            return math.nan
        self.model.eval()
        g = torch.Generator(self.device).manual_seed(0)
        hits = 0
        for a, b in zip(x.split(500), y.split(500), strict=True):
            a = with_noise(to_range(a.to(self.device), self.run.low), self.run.input_noise, g)
            hits += (self.energy.logits(a).argmax(1).cpu() == b).sum().item()
        return hits / len(x)
