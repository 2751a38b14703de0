"""The losses' values, and the gradient that they stand for."""

import math

import pytest
import torch

from lib.parts import losses
from lib.parts.energy import energy, joint_energy


def test_cross_entropy_is_the_difference_of_energies():
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.allclose(losses.cross_entropy(logits, y), (joint_energy(logits, y) - energy(logits)).mean())


def test_contrastive_gradient_is_minus_log_likelihoods():
    # E_w(x) = w x^2 / 2 is N(0, 1/w): d/dw of -log p averaged over data is E_data[x^2]/2 - 1/(2w)   (JEM++ Eq. 2)
    w, data = torch.tensor(2.0, requires_grad=True), torch.tensor([0.5, -1.0, 2.0])
    model = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)) / math.sqrt(2)
    losses.contrastive(w * data**2 / 2, w * model**2 / 2).backward()
    assert abs(w.grad.item() - (data.square().mean() / 2 - 1 / 4).item()) < 1e-3


class Linear:
    """An energy of one logit per class, f(x) = W x, on points (B, 2); counts its forward passes."""

    def __init__(self, classes=3):
        self.W, self.passes = torch.randn(2, classes, generator=torch.Generator().manual_seed(0)), 0

    def logits(self, x):
        self.passes += 1
        return x @ self.W

    def __call__(self, x):
        return energy(self.logits(x))


def batches(shared=True):
    g = torch.Generator().manual_seed(1)
    x, y, x_minus = torch.randn(6, 2, generator=g), torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 2, generator=g)
    return losses.Batch(x, y, x if shared else torch.randn(6, 2, generator=g)), x_minus


def test_the_loss_is_the_weighted_sum_of_its_terms():
    E, (batch, x_minus) = Linear(), batches(shared=False)
    loss = losses.Loss(cross_entropy=0.5, contrastive=2.0, energy_l2=0.1, bce=3.0, r1=4.0)
    whole, numbers = loss(E, batch, x_minus)
    x = batch.real.clone().requires_grad_()
    a, b = E(x), E(x_minus)
    terms = {
        "cross_entropy": losses.cross_entropy(E.logits(batch.x), batch.y),
        "contrastive": a.mean() - b.mean(),
        "energy_l2": (a**2).mean() + (b**2).mean(),
        "bce": losses.real_vs_perturbed(a, b),
        "r1": losses.r1(a, x),
    }
    assert torch.allclose(whole, sum(w * terms[k] for k, w in zip(terms, (0.5, 2.0, 0.1, 3.0, 4.0), strict=True)))
    assert all(torch.allclose(numbers[k], v) for k, v in terms.items()) and tuple(numbers) == loss.columns
    assert torch.allclose(losses.joint(E.logits(batch.x), batch.y, a, b), terms["cross_entropy"] + terms["contrastive"])


@pytest.mark.parametrize(
    "loss, shared, passes",
    [
        ({"cross_entropy": 1.0}, True, 1),
        ({"cross_entropy": 1.0, "contrastive": 1.0}, True, 2),  # p(y|x) and p(x) share a forward pass
        ({"cross_entropy": 1.0, "contrastive": 1.0}, False, 3),
        ({"bce": 1.0, "r1": 1.0}, True, 2),
        ({"cross_entropy": 1.0, "bce": 1.0, "r1": 1.0}, True, 2),
    ],
)
def test_no_forward_pass_is_made_twice(loss, shared, passes):
    E, (batch, x_minus) = Linear(), batches(shared)
    _, numbers = losses.Loss(**loss)(E, batch, x_minus)
    assert E.passes == passes and tuple(numbers) == losses.Loss(**loss).columns


def test_a_weight_of_nought_leaves_a_term_out():
    assert losses.Loss(cross_entropy=1.0, r1=0.0, contrastive={"weight": 0.0}).terms.keys() == {"cross_entropy"}


def test_told_apart_or_not():
    a, b = torch.tensor([-2.0, -1.0, 0.5]), torch.tensor([-1.5, 1.0, 2.0])
    assert losses.auc(a, b).item() == pytest.approx(7 / 9) and losses.auc(a, a).item() == pytest.approx(0.5)
    assert losses.detection_accuracy(a, b).item() == pytest.approx(2 / 3)


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
