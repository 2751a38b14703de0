"""What the loss is: a sum of weighted terms, each a cell that says what it needs and what it is.

The papers' formulas are functions of energies and logits, which return a scalar to be minimised; the terms below call them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from lib.parts import attacks
from lib.parts.cell import Cell, Count, Positive, Weight, given
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
    """The area under the ROC curve of -E: the share of (real, sample) pairs in the right order, ties half; 1/2: not told
    apart. Energies (m,) and (n,)."""
    pairs = energy_sample[None, :] - energy_real[:, None]
    return (pairs > 0).float().mean() + (pairs == 0).float().mean() / 2


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of labels that are the largest logit's. logits (B, C), y (B,)."""
    return (logits.argmax(1) == y).float().mean()


def detection_accuracy(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """Accuracy of D = sigmoid(-E) at 1/2, real against sample."""
    return ((energy_real < 0).float().mean() + (energy_sample >= 0).float().mean()) / 2


# ---------------------------------------------------------------------------------------------------------- terms
class Batch(NamedTuple):
    """What an update sees."""

    x: Tensor  # images for p(y|x), (B, C, H, W)
    y: Tensor  # their labels (B,)
    real: Tensor  # images for p(x): x itself, where both branches share one batch


@dataclass(repr=False)
class Seen:
    """What the network says of a batch and its samples. Of the last four, only those are set that a term needs."""

    y: Tensor  # labels (B,)
    real: Tensor  # images for p(x), (B, C, H, W)
    logits: Tensor = field(init=False)  # of batch.x, (B, C)
    attacked: Tensor = field(init=False)  # logits of the attacked batch.x, (B, C)
    e_real: Tensor = field(init=False)  # energies (B,)
    e_sample: Tensor = field(init=False)  # (B,)


Logs = Mapping[str, Callable[[Seen], Tensor]]  # a number's name in the curve -> the number, a scalar
OF_REAL: Logs = {"energy_real": lambda seen: seen.e_real.mean()}
OF_SAMPLES: Logs = {"energy_sample": lambda seen: seen.e_sample.mean(), "auc": lambda seen: auc(seen.e_real, seen.e_sample)}


class Term(Cell):
    """One summand: called, it gives its value, a scalar, without its weight.

    needs: what it reads of a batch: labels (logits of the batch), real and samples (their energies), attacked (logits of
        attacked images), curvature (the energy of real images can be differentiated twice).
    drives: a loss may consist of it alone; False: it only regularises.   logs: what goes into the curve, beside its value.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    drives: ClassVar[bool] = True
    logs: ClassVar[Logs] = {}
    weight: Weight

    def __call__(self, seen: Seen) -> Tensor:
        raise NotImplementedError


class CrossEntropy(Term):
    """-log p(y|x)."""

    needs = frozenset({"labels"})
    logs: ClassVar[Logs] = {"accuracy": lambda seen: accuracy(seen.logits, seen.y)}

    def __call__(self, seen: Seen) -> Tensor:
        return cross_entropy(seen.logits, seen.y)


class Contrastive(Term):
    """-log p(x), by its gradient."""

    needs = frozenset({"real", "samples"})

    def __call__(self, seen: Seen) -> Tensor:
        return contrastive(seen.e_real, seen.e_sample)


class EnergyL2(Term):
    """Energies stay near zero."""

    needs, drives = frozenset({"real", "samples"}), False

    def __call__(self, seen: Seen) -> Tensor:
        return energy_l2(seen.e_real, seen.e_sample)


class BCE(Term):
    """Real images told from samples."""

    needs = frozenset({"real", "samples"})
    logs: ClassVar[Logs] = {"detection_accuracy": lambda seen: detection_accuracy(seen.e_real, seen.e_sample)}

    def __call__(self, seen: Seen) -> Tensor:
        return real_vs_perturbed(seen.e_real, seen.e_sample)


class R1(Term):
    """E is flat at real images."""

    needs, drives = frozenset({"real", "curvature"}), False

    def __call__(self, seen: Seen) -> Tensor:
        return r1(seen.e_real, seen.real)


class AdversarialCrossEntropy(Term):
    """Adversarial training (Madry et al. 2018): the cross-entropy of the batch moved by PGD."""

    needs = frozenset({"attacked"})
    logs: ClassVar[Logs] = {"adversarial_accuracy": lambda seen: accuracy(seen.attacked, seen.y)}
    norm: attacks.Norm = "linf"
    radius: Positive  # 255ths of the [0, 1] range, as the papers count
    steps: Count

    def attack(self, E: Energy, x: Tensor, y: Tensor, generator: torch.Generator | None, low: float) -> Tensor:
        """The batch moved within the ball. x (B, ...), y (B,)."""
        return attacks.pgd(
            E.logits, x.clamp(low, 1), y, epsilon=(1 - low) * self.radius / 255, norm=self.norm, steps=self.steps,
            generator=generator, low=low,
        )  # fmt: skip

    def __call__(self, seen: Seen) -> Tensor:
        return cross_entropy(seen.attacked, seen.y)


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
    def _weighed(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return ({"weight": value} if value else None) if number else value

    @field_validator("*")
    @classmethod
    def _of_weight(cls, term: Term | None) -> Term | None:
        return term if term and term.weight else None

    @property
    def terms(self) -> dict[str, Term]:
        """Those that have a weight, by name."""
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}

    @property
    def adversary(self) -> AdversarialCrossEntropy:
        """Raises: ConfigError for a loss without adversarial training."""
        return given(self.adversarial_cross_entropy, "the loss has no adversarial_cross_entropy: nothing is attacked")

    @property
    def needs(self) -> frozenset[str]:
        """Of all terms together: `Term.needs`."""
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
            samples: x- (B, ...).   attacked: batch.x, moved.   None: no term needs them.
            twice: the same energy, where it can be differentiated twice and E cannot (a compiled one); None: E.
        Raises: ConfigError where a term needs what is not given.
        """
        seen = self.look(E, batch, samples, attacked, twice or E)
        values = {name: term(seen) for name, term in self.terms.items()}
        total = functools.reduce(operator.add, (term.weight * values[name] for name, term in self.terms.items()))
        with torch.no_grad():
            numbers = {"loss": total.detach(), **{name: v.detach() for name, v in values.items()}}
            numbers |= {name: number(seen) for name, number in self.logs.items()}
        return total, numbers

    @property
    def logs(self) -> Logs:
        """What is logged beside the loss and its terms: energies, and whether they tell real from sample; the terms' own."""
        logs = {**(OF_REAL if "real" in self.needs else {}), **(OF_SAMPLES if "samples" in self.needs else {})}
        for term in self.terms.values():
            logs |= term.logs
        return logs

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what `__call__` logs, in its order."""
        return ("loss", *self.terms, *self.logs)

    def look(self, E: Energy, batch: Batch, samples: Tensor | None, attacked: Tensor | None, twice: Energy) -> Seen:
        """One forward pass for each batch that a term needs; where p(y|x) and p(x) share their images, one for both.

        Real batches come last, so that batch norm's running statistics, which the test uses, end on real images.
        """
        needs, seen, shared = self.needs, Seen(batch.y, batch.real), batch.real is batch.x
        if "samples" in needs:
            seen.e_sample = E(given(samples, f"loss: {', '.join(self.terms)} needs samples; expected some, not None"))
        if "attacked" in needs:
            seen.attacked = E.logits(given(attacked, "loss: adversarial_cross_entropy needs attacked images, not None"))
        of_real = E
        if "curvature" in needs:
            seen.real, of_real = batch.real.detach().requires_grad_(), twice
        if shared and {"real", "labels"} <= needs:  # one pass for both
            seen.logits = of_real.logits(seen.real)
            seen.e_real = energy(seen.logits)
            return seen
        if "real" in needs:
            seen.e_real = of_real(seen.real)
        if "labels" in needs:
            seen.logits = E.logits(batch.x)
        return seen
