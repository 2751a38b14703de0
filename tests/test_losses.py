"""The losses' values, and the gradient that they stand for."""

import math

import torch

from lib.parts import losses
from lib.parts.energy import energy, joint_energy


def test_cross_entropy_is_the_difference_of_energies():
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.allclose(losses.classification(logits, y), (joint_energy(logits, y) - energy(logits)).mean())


def test_contrastive_gradient_is_minus_log_likelihoods():
    # E_w(x) = w x^2 / 2 is N(0, 1/w): d/dw of -log p averaged over data is E_data[x^2]/2 - 1/(2w)   (JEM++ Eq. 2)
    w, data = torch.tensor(2.0, requires_grad=True), torch.tensor([0.5, -1.0, 2.0])
    model = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)) / math.sqrt(2)
    losses.contrastive(w * data**2 / 2, w * model**2 / 2).backward()
    assert abs(w.grad.item() - (data.square().mean() / 2 - 1 / 4).item()) < 1e-3


def test_joint_is_the_weighted_sum():
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    a, b = torch.randn(4), torch.randn(4)
    whole = losses.joint(logits, y, a, b, classify=0.5, generate=2.0, l2=0.1)
    parts = 0.5 * losses.classification(logits, y) + 2 * (a.mean() - b.mean()) + 0.1 * (a**2 + b**2).mean()
    assert torch.allclose(whole, parts)


def test_bce_gradient_is_the_scaled_ebm_gradient():
    """AT-EBM Eq. 14: weights 1 - sigmoid(f) on real and sigmoid(f) on perturbed images; f = -E."""
    f, g = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    (2 * losses.real_vs_perturbed(-f, -g)).backward()  # the paper's sum of two means
    assert torch.allclose(f.grad, -(1 - torch.sigmoid(f.detach())) / 5)
    assert torch.allclose(g.grad, torch.sigmoid(g.detach()) / 5)
    D = torch.sigmoid(torch.cat([f, g]).detach())
    assert torch.allclose(
        losses.real_vs_perturbed(-f, -g), torch.nn.functional.binary_cross_entropy(D, torch.tensor([1.0] * 5 + [0.0] * 5))
    )


def test_bce_cancels_where_ebm_does_not():
    big = torch.full((4,), 1e4, requires_grad=True)
    losses.real_vs_perturbed(-big, big).backward()  # both told apart for certain
    assert big.grad.abs().max() == 0
    assert torch.autograd.grad(losses.contrastive(-big, big), big)[0].abs().min() > 0


def test_r1_of_a_linear_energy():
    w, x = torch.tensor([3.0, 4.0]), torch.randn(6, 2, requires_grad=True)
    assert torch.allclose(losses.r1(x @ w, x), torch.tensor(12.5))  # |w|^2 / 2
    scale = torch.tensor(2.0, requires_grad=True)
    losses.r1(scale * (x @ w), x).backward()
    assert torch.allclose(scale.grad, torch.tensor(2.0 * 25))  # it can be differentiated again
