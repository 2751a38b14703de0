"""What the loss is: a sum of weighted terms, each a cell that says what it needs and what it is.

The papers' formulas are functions of energies and logits, which return a scalar to be minimised; the terms below call them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from lib.parts import attacks
from lib.parts.cell import Cell, Count, Positive, Weight
from lib.parts.energy import Energy, energy


# ------------------------------------------------------------------------------------------------------- formulas
def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y|x), the first term of JEM++ Eq. 5. logits (B, C), y (B,)."""
    return F.cross_entropy(logits, y)


def contrastive(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """E(x+) - E(x-): its gradient is that of -log p(x) (JEM++ Eq. 2; SADA-JEM Algorithm 1, line 8).

    The value itself is not a likelihood: it hovers around zero while the samples keep up with the data.
    """
    return energy_real.mean() - energy_sample.mean()


def energy_l2(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """E(x+)^2 + E(x-)^2: weak regularisation of energy magnitudes (IGEBM; SADA-JEM Sec. 4.5)."""
    return energy_real.square().mean() + energy_sample.square().mean()


def joint(logits: Tensor, y: Tensor, energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """-log p(x, y) = -log p(y|x) - log p(x)  (JEM++ Eq. 5)."""
    return cross_entropy(logits, y) + contrastive(energy_real, energy_sample)


def real_vs_perturbed(energy_real: Tensor, energy_perturbed: Tensor) -> Tensor:
    """Binary cross-entropy of D = sigmoid(-E): -(log D(x) + log(1 - D(x*))) / 2  (AT-EBM Eq. 11, Algorithm 1 line 4).

    The paper writes the sum of two means; its code, whose R1 weights are published, averages over both batches at
    once, and so do we. Energies (m,) each.
    """
    return (F.softplus(energy_real).mean() + F.softplus(-energy_perturbed).mean()) / 2


def r1(energy_real: Tensor, x: Tensor) -> Tensor:
    """R1 penalty, half the mean squared norm of dE/dx on real images (Mescheder et al. 2018; AT-EBM Sec. 4.4).

    energy_real (m,), computed from x (m, ...), which requires its gradient. The result can be differentiated again.
    """
    (g,) = torch.autograd.grad(energy_real.sum(), x, create_graph=True)
    return g.flatten(1).square().sum(1).mean() / 2


def auc(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """The area under the ROC curve of -E: the share of (real, sample) pairs in the right order, ties half. 1/2: not told apart."""
    pairs = energy_sample[None, :] - energy_real[:, None]
    return (pairs > 0).float().mean() + (pairs == 0).float().mean() / 2


def detection_accuracy(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """Accuracy of D = sigmoid(-E) at 1/2, real against sample."""
    return ((energy_real < 0).float().mean() + (energy_sample >= 0).float().mean()) / 2


# ---------------------------------------------------------------------------------------------------------- terms
class Batch(NamedTuple):
    """What an update sees."""

    x: Tensor  # images for p(y|x), (B, C, H, W)
    y: Tensor  # their labels (B,)
    real: Tensor  # images for p(x): x itself, where both branches share one batch


@dataclass
class Seen:
    """What the network says of a batch and its samples; None where no term needs it."""

    y: Tensor
    real: Tensor
    logits: Tensor | None = None  # of batch.x, (B, C)
    attacked: Tensor | None = None  # logits of the attacked batch.x, (B, C)
    e_real: Tensor | None = None  # (B,)
    e_sample: Tensor | None = None  # (B,)


class Term(Cell):
    """One summand. `needs`, of: labels (logits of the batch), real and samples (their energies), attacked (logits of attacked
    images), curvature (the energy of real images can be differentiated twice). `drives`: enough to learn from."""

    needs: ClassVar[frozenset[str]] = frozenset()
    drives: ClassVar[bool] = True
    weight: Weight

    def __call__(self, seen: Seen) -> Tensor:
        raise NotImplementedError

    def numbers(self, seen: Seen) -> dict[str, Tensor]:
        """What else it logs."""
        return {}


class CrossEntropy(Term):
    needs = frozenset({"labels"})

    def __call__(self, seen):
        return cross_entropy(seen.logits, seen.y)

    def numbers(self, seen):
        return {"accuracy": (seen.logits.argmax(1) == seen.y).float().mean()}


class Contrastive(Term):
    needs = frozenset({"real", "samples"})

    def __call__(self, seen):
        return contrastive(seen.e_real, seen.e_sample)


class EnergyL2(Term):
    needs, drives = frozenset({"real", "samples"}), False

    def __call__(self, seen):
        return energy_l2(seen.e_real, seen.e_sample)


class BCE(Term):
    needs = frozenset({"real", "samples"})

    def __call__(self, seen):
        return real_vs_perturbed(seen.e_real, seen.e_sample)

    def numbers(self, seen):
        return {"detection_accuracy": detection_accuracy(seen.e_real, seen.e_sample)}


class R1(Term):
    needs, drives = frozenset({"real", "curvature"}), False

    def __call__(self, seen):
        return r1(seen.e_real, seen.real)


class AdversarialCrossEntropy(Term):
    """Adversarial training (Madry et al. 2018): the cross-entropy of the batch moved by PGD."""

    needs = frozenset({"attacked"})
    norm: attacks.Norm = "linf"
    radius: Positive  # 255ths of the [0, 1] range, as the papers count
    steps: Count

    def attack(self, E: Energy, x: Tensor, y: Tensor, generator: torch.Generator | None, low: float) -> Tensor:
        """The batch moved within the ball. x (B, ...), y (B,)."""
        return attacks.pgd(
            E.logits, x.clamp(low, 1), y, epsilon=(1 - low) * self.radius / 255, norm=self.norm, steps=self.steps,
            generator=generator, low=low,
        )  # fmt: skip

    def __call__(self, seen):
        return cross_entropy(seen.attacked, seen.y)

    def numbers(self, seen):
        return {"adversarial_accuracy": (seen.attacked.argmax(1) == seen.y).float().mean()}


class Loss(Cell):
    """The sum of the terms that have a weight. A number stands for a term with that weight; 0 leaves it out."""

    cross_entropy: CrossEntropy | None = None
    contrastive: Contrastive | None = None
    energy_l2: EnergyL2 | None = None
    bce: BCE | None = None
    r1: R1 | None = None
    adversarial_cross_entropy: AdversarialCrossEntropy | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _weighed(cls, value):
        value = {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value
        return None if isinstance(value, dict) and value.get("weight") == 0 else value

    @property
    def terms(self) -> dict[str, Term]:
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(t.needs for t in self.terms.values()))

    def __call__(
        self,
        E: Energy,
        batch: Batch,
        samples: Tensor | None = None,
        attacked: Tensor | None = None,
        twice: Energy | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what is logged, scalars on the device.

        Args:
            samples: x- (B, ...).   attacked: batch.x, moved.
            twice: the same energy, where it can be differentiated twice and E cannot (a compiled one); None: E.
        """
        seen = self.look(E, batch, samples, attacked, twice or E)
        values = {name: term(seen) for name, term in self.terms.items()}
        total = sum(term.weight * values[name] for name, term in self.terms.items())
        with torch.no_grad():
            numbers = {"loss": total.detach(), **{name: v.detach() for name, v in values.items()}}
            for name in ("e_real", "e_sample"):
                if (e := getattr(seen, name)) is not None:
                    numbers[name.replace("e_", "energy_")] = e.mean()
            if seen.e_sample is not None:
                numbers["auc"] = auc(seen.e_real, seen.e_sample)
            for term in self.terms.values():
                numbers |= term.numbers(seen)
        return total, numbers

    def look(self, E: Energy, batch: Batch, samples, attacked, twice: Energy) -> Seen:
        """One forward pass for each batch that a term needs; where p(y|x) and p(x) share their images, one for both.

        Real batches come last, so that batch norm's running statistics, which the test uses, end on real images.
        """
        seen, shared = Seen(batch.y, batch.real), batch.real is batch.x
        if "samples" in self.needs:
            seen.e_sample = E(samples)
        if "attacked" in self.needs:
            seen.attacked = E.logits(attacked)
        if "curvature" in self.needs:
            seen.real, E = batch.real.detach().requires_grad_(), twice if shared else E
        own = seen.real if shared else batch.x
        if "real" in self.needs and not (shared and "labels" in self.needs):
            seen.e_real = (twice if "curvature" in self.needs else E)(seen.real)
        if "labels" in self.needs:
            seen.logits = E.logits(own)
            if "real" in self.needs and seen.e_real is None:
                seen.e_real = energy(seen.logits)
        return seen

    @property
    def columns(self) -> tuple[str, ...]:
        """What `__call__` logs, in its order."""
        energies = ("energy_real",) * ("real" in self.needs) + ("energy_sample", "auc") * ("samples" in self.needs)
        own = {CrossEntropy: "accuracy", BCE: "detection_accuracy", AdversarialCrossEntropy: "adversarial_accuracy"}
        return ("loss", *self.terms, *energies, *(own[type(t)] for t in self.terms.values() if type(t) in own))
