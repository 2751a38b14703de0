"""The sign rule and the gradient."""

import math

import torch

from lib.parts import energy as e


def test_one_logit_is_at_ebm_energy():
    f = torch.tensor([[2.0], [-3.0]])
    assert torch.equal(e.energy(f), -f[:, 0])


def test_energies_are_consistent_with_bayes():
    logits, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    # log p(y|x) = E(x) - E(x, y)
    expected = e.energy(logits) - e.joint_energy(logits, y)
    assert torch.allclose(e.log_p_y(logits).gather(1, y[:, None])[:, 0], expected, atol=1e-6)


def test_energy_of_equal_logits():
    assert torch.allclose(e.energy(torch.zeros(1, 10)), torch.tensor([-math.log(10)]))


def test_gradient_by_finite_differences(wrn):
    E = e.Energy(wrn)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)

    def E64(v):  # the library's energy is fp32; finite differences need fp64
        return -torch.logsumexp(wrn(v), 1)

    g, h = e.gradient(E64, x), 1e-5
    for i, j in ((0, 0), (3, 4), (7, 7)):
        d = torch.zeros_like(x)
        d[0, 0, i, j] = h
        numeric = (E64(x + d) - E64(x - d)) / (2 * h)
        assert torch.allclose(g[0, 0, i, j], numeric[0], rtol=1e-5, atol=1e-9)
    assert torch.allclose(E.gradient(x), g, rtol=1e-4, atol=1e-7)


def test_gradient_leaves_no_weight_gradients(wrn):
    e.Energy(wrn).gradient(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert all(p.grad is None for p in wrn.parameters())


def test_split_is_the_whole(wrn):
    E, x = e.Energy(wrn), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(E(x), E.tail(E.first(x)))
