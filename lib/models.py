"""A trained run, as its user meets it: sample, classify, score.

from lib import load_run
model = load_run("jempp-m10")
images = model.sample(16)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lib import ROOT, data, files, memory, params
from lib.measures import metrics, uncertainty
from lib.parts import networks, samplers
from lib.parts.energy import Energy, log_p_y
from lib.parts.starts import Start
from lib.training import checkpoint, distributed

BATCH = 250  # images moved at once
KEPT = ("verdict", "iterations", "planned", "epochs", "divergences", "seconds", "seconds_per_epoch")  # of training's metrics


@dataclass
class Trained:
    """A run as it came out of training: what notebooks and evaluation work with.

    model = load_run("jempp-m10")
    images = model.sample(16)                # uint8 (16, C, H, W)
    p, s = model.classify(images), model.score(images)      # p(y|x) (16, classes); log p(x) + log Z (16,)
    """

    run: params.Run
    seed: int
    model: networks.Network
    buffer: torch.Tensor | None  # uint8 (|B|, C, H, W)
    metrics: dict
    provenance: dict
    folder: Path
    shape: tuple[int, int, int] | None = None  # of its images, (C, H, W); None: not checked

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def energy(self, y: torch.Tensor | None = None) -> Energy:
        """Its energy, in fp32: E(x), or with class indices y (B,) E(x, y)."""
        return Energy(self.model, y)

    def perturb(self, x: torch.Tensor, K: int, alpha: float, radius: float | None = None) -> torch.Tensor:
        """Images moved down the energy by K PGD steps of length alpha (in units of the run's range): how AT-EBM
        generates, translates and repairs. uint8 (n, C, H, W) -> uint8, evaluation mode."""
        low, moved = self.run.low, []
        step = samplers.PGD(K=K, alpha=alpha, radius=radius)
        for part in metrics.batches(x, BATCH):
            chain = step(self.energy(), data.to_range(part.to(self.device), low), low=low)
            moved.append(data.to_bytes(samplers.last(chain), low).cpu())
        return torch.cat(moved)

    def sample(self, n: int, generator: torch.Generator | None = None, fresh: bool = False) -> torch.Tensor:
        """n images that the model makes, uint8 (n, C, H, W).

        The JEM family: images of the replay buffer, none twice before all were drawn, after one more visit, as in training:
        the run's own step, batch norm by the batch's statistics. AT-EBM: p0 images after `generation.steps` steps. Without
        either: fresh chains.

        Args:
            generator: on the CPU, on every device; None: torch's global random numbers.
            fresh: start at p0 instead of in the buffer, and move on for the 1 / reinit visits that a chain in the buffer has
                behind it on average: what the energy makes without its buffer.
        Raises: ValueError for a classifier, which has no chain, or n < 1; DataError where fresh starts lack their data.
        """
        run = self.run
        if run.step is None or n < 1:
            raise ValueError(f"{n} samples of {run.name}: {'expected at least 1' if run.step else params.NO_CHAIN}")
        if run.generation:
            starts = data.to_bytes(self._fresh(n, generator), run.low)
            return self.perturb(starts, run.generation.steps, run.generation.alpha)
        m = max(n, run.update.batch)  # batch norm looks at the batch: no fewer chains than in training
        if self.buffer is None or fresh:
            x0 = self._fresh(m, generator)
        else:
            x0 = data.to_range(self.buffer[_shuffled(len(self.buffer), m, generator)], run.low)
        noise = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        visits = round(1 / max(run.replay.reinit, 0.01)) if run.replay and fresh else 1
        with networks.batch_statistics(self.model):
            moved = [self._visit(part, visits, noise) for part in x0.tensor_split(-(-m // BATCH))]
        return torch.cat(moved)[:n]

    def _fresh(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """n draws from the run's p0, in its range."""
        split = data.load(self.run.profile, self.run.data)
        return self.p0(split).sample(n, generator)

    def p0(self, split: data.Split) -> Start:
        """What its chains start from where no buffer has them, on the CPU. Raises: ConfigError for a classifier."""
        return data.start_of(self.run, split)

    def _visit(self, x: torch.Tensor, visits: int, noise: torch.Generator) -> torch.Tensor:
        """The run's chain, so many times in a row: float (B, C, H, W) -> uint8."""
        x = x.to(self.device)
        for _ in range(visits):
            x = samplers.last(self.run.chain(self.energy(), x, noise, self.run.low))
        return data.to_bytes(x, self.run.low).cpu()

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """p(y|x) of uint8 images (n, C, H, W): (n, classes), rows add up to 1. Evaluation mode; without the input noise
        under which accuracy is measured. Raises: ValueError for a run without labels, and for other images."""
        if not self.run.labelled:
            raise ValueError(f"run {self.run.name} knows no classes: use score, or a run with labels, such as jempp-m10")
        return log_p_y(metrics.logits_of(self.model, self._checked(x), device=self.device, low=self.run.low)).exp()

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) + log Z in nats of uint8 images (n, C, H, W): (n,), higher is more like the training data; log Z is one
        unknown number, so scores compare within a model only. Raises: ValueError for other images."""
        return torch.from_numpy(uncertainty.scores(self.model, self._checked(x), "log_p_x", self.device, self.run.low))

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.uint8 or x.dim() != 4 or (self.shape and tuple(x.shape[1:]) != tuple(self.shape)):
            wanted = ", ".join(map(str, self.shape or ("C", "H", "W")))
            raise ValueError(
                f"images {x.dtype} of shape {tuple(x.shape)}: expected torch.uint8 (n, {wanted}), as "
                f"{self.run.name} was trained on; data.to_bytes and sources.resize make them"
            )
        return x


def _shuffled(images: int, n: int, generator: torch.Generator | None) -> torch.Tensor:
    """n indices of so many images: whole permutations, the last one cut off."""
    turns = range(-(-n // images))
    return torch.cat([torch.randperm(images, generator=generator) for _ in turns])[:n]


def load_run(name: str, profile: str | None = None, seed: int | None = None, device: str | torch.device = "cpu") -> Trained:
    """A trained run by name; its methods sample, classify and score (Trained). seed: None: the run's first.
    Raises: data.DataError where it has not been trained, where a file of it is missing, damaged, or another run's."""
    run = params.run(name, profile)
    seed = run.seeds[0] if seed is None else seed
    folder = ROOT / "artifacts" / run.profile / run.name / f"seed{seed}"
    remedy = f"train it with python -m lib.train {name} --profile {run.profile}, or run dvc repro"
    if not (folder / "weights.pt").exists():
        raise data.DataError(f"{folder} has no weights: {remedy}")
    about = files.read_json(folder / "provenance.json", remedy, ("run", "profile", "seed", "precision"))
    if (its := (about["run"], about["profile"], about["seed"])) != (run.name, run.profile, seed):
        raise data.DataError(
            f"{folder} holds {its[0]}, profile {its[1]}, seed {its[2]}; expected {run.name}, {run.profile}, {seed}: {remedy}"
        )
    numbers, split = files.read_json(folder / "metrics.json", remedy, KEPT), data.load(run.profile, run.data)
    memory.keep_freed()
    model = run.network.build(len(split.classes), split.shape[0], split.shape[1])
    load_weights(model, folder, remedy)
    buffer = read_buffer(folder, split.shape, remedy) if run.replay else None
    return Trained(run, seed, model.to(distributed.device(device)).eval(), buffer, numbers, about, folder, split.shape)


def load_weights(model: torch.nn.Module, folder: Path, remedy: str) -> None:
    """A folder's weights.pt, into the model. Raises: DataError where it is missing, damaged, or of another network."""
    path = folder / "weights.pt"
    checkpoint.load_weights(model, files.read_tensors(path, remedy), path, remedy)


def read_buffer(folder: Path, shape: tuple[int, ...], remedy: str) -> torch.Tensor:
    """The replay buffer, uint8 (|B|, *shape). Raises: DataError where it is missing, damaged or of another kind."""
    x = files.read_tensors(folder / "buffer.pt", remedy)
    if not isinstance(x, torch.Tensor) or x.dtype != torch.uint8 or tuple(x.shape[1:]) != tuple(shape) or not len(x):
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise data.DataError(
            f"{folder / 'buffer.pt'} holds {what}; expected torch.uint8 (n, {', '.join(map(str, shape))}): {remedy}"
        )
    return x
