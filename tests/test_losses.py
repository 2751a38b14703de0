"""The losses' values, and the gradient that they stand for."""
import math

import torch

from lib import losses
from lib.energy import energy, joint_energy


def test_cross_entropy_is_the_difference_of_energies():
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.allclose(losses.classification(logits, y), (joint_energy(logits, y) - energy(logits)).mean())


def test_contrastive_gradient_is_minus_log_likelihoods():
    # E_w(x) = w x^2 / 2 is N(0, 1/w): d/dw of -log p averaged over data is E_data[x^2]/2 - 1/(2w)   (JEM++ Eq. 2)
    w, data = torch.tensor(2.0, requires_grad=True), torch.tensor([0.5, -1.0, 2.0])
    model = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)) / math.sqrt(2)
    losses.contrastive(w * data ** 2 / 2, w * model ** 2 / 2).backward()
    assert abs(w.grad.item() - (data.square().mean() / 2 - 1 / 4).item()) < 1e-3


def test_joint_is_the_weighted_sum():
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    a, b = torch.randn(4), torch.randn(4)
    whole = losses.joint(logits, y, a, b, classify=0.5, generate=2.0, l2=0.1)
    parts = 0.5 * losses.classification(logits, y) + 2 * (a.mean() - b.mean()) + 0.1 * (a ** 2 + b ** 2).mean()
    assert torch.allclose(whole, parts)
