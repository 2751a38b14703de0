"""What the loss is. All take energies or logits and return a scalar to be minimised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y|x): cross-entropy, the first term of JEM++ Eq. 5. logits (B, C), y (B,)."""
    return F.cross_entropy(logits, y)


def contrastive(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """E(x+) - E(x-): its gradient is that of -log p(x) (JEM++ Eq. 2; SADA-JEM Algorithm 1, line 8).

    The value itself is not a likelihood: it hovers around zero while the samples keep up with the data.
    """
    return energy_real.mean() - energy_sample.mean()


def energy_l2(energy_real: Tensor, energy_sample: Tensor) -> Tensor:
    """E(x+)^2 + E(x-)^2: weak regularisation of energy magnitudes (IGEBM; SADA-JEM Sec. 4.5)."""
    return energy_real.square().mean() + energy_sample.square().mean()


def joint(
    logits: Tensor,
    y: Tensor,
    energy_real: Tensor,
    energy_sample: Tensor,
    *,
    classify: float = 1.0,
    generate: float = 1.0,
    l2: float = 0.0,
) -> Tensor:
    """-log p(x, y) = -log p(y|x) - log p(x)  (JEM++ Eq. 5), each term with its weight."""
    loss = classify * classification(logits, y) + generate * contrastive(energy_real, energy_sample)
    return loss + l2 * energy_l2(energy_real, energy_sample) if l2 else loss


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
