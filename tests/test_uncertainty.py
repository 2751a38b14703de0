"""Calibration against torchmetrics, AUROC against counting."""

import numpy as np
import pytest
import torch

from lib import vision  # noqa: F401  (torchmetrics imports torchvision: see lib/vision.py)
from lib.measures import metrics, uncertainty


def random_predictions(n=3000, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(n, generator=g, dtype=dtype)
    p[:63] = torch.linspace(0, 1, 21, dtype=dtype).repeat(3)  # every edge, 0 and 1 among them
    p[63:90] = 1
    return p, torch.rand(n, generator=g) < p**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ece_is_torchmetrics_binary(dtype):
    from torchmetrics.functional.classification import binary_calibration_error

    p, hit = random_predictions(dtype=dtype)
    theirs = binary_calibration_error(p, hit.long(), n_bins=20, norm="l1").item()
    assert uncertainty.ece(p, hit) == pytest.approx(theirs, abs=1e-6)
    assert uncertainty.ece(p.numpy(), hit.numpy()) == uncertainty.ece(p, hit)
    edges = torch.linspace(0, 1, 21, dtype=dtype)
    for e in edges:  # each by itself, so that nothing can average out
        two, wrong = torch.stack([e, e - 1e-4, e + 1e-4]).clamp(0, 1), torch.tensor([1, 0, 1])
        assert uncertainty.ece(two, wrong) == pytest.approx(
            binary_calibration_error(two, wrong, n_bins=20, norm="l1").item(), abs=1e-6
        )


def test_ece_is_torchmetrics_multiclass():
    from torchmetrics.functional.classification import multiclass_calibration_error

    g = torch.Generator().manual_seed(1)
    p = (4 * torch.randn(2000, 10, generator=g)).softmax(1)
    p[:200] = torch.eye(10).repeat(20, 1)  # saturated, as confident classifiers are
    y = torch.where(torch.rand(2000, generator=g) < 0.6, p.argmax(1), torch.randint(10, (2000,), generator=g))
    theirs = multiclass_calibration_error(p, y, num_classes=10, n_bins=20, norm="l1").item()
    confidence, predicted = p.max(1)
    assert uncertainty.ece(confidence, predicted == y) == pytest.approx(theirs, abs=1e-6)


def test_reliability_of_known_predictions():
    r = uncertainty.reliability(np.array([0.0, 0.049, 0.05, 0.5, 0.96, 1.0]), np.array([0, 1, 1, 0, 1, 0]))
    assert len(r.count) == 20 and len(r.edges) == 21 and r.edges[1] == pytest.approx(0.05)
    assert {i: int(c) for i, c in enumerate(r.count) if c} == {0: 2, 1: 1, 10: 1, 19: 2}
    assert r.accuracy[[0, 1, 10, 19]].tolist() == [0.5, 1, 0, 0.5] and np.isnan(r.accuracy[2])
    assert r.confidence[19] == pytest.approx(0.98)
    assert r.ece == pytest.approx((2 * (0.5 - 0.0245) + 0.95 + 0.5 + 2 * (0.98 - 0.5)) / 6)
    apart = uncertainty.reliability([0.96, 1.0], [True, False], one_apart=True)
    assert apart.count[19:].tolist() == [1, 1] and apart.edges[19:].tolist() == pytest.approx([0.95, 1, 1])


def test_a_perfectly_calibrated_classifier_has_no_error():
    assert uncertainty.ece(np.repeat(0.75, 400), np.arange(400) % 4 > 0) == pytest.approx(0)
    assert uncertainty.ece(np.ones(10), np.zeros(10)) == 1


def test_impossible_confidences_are_named():
    with pytest.raises(ValueError, match="to 1.2: expected probabilities"):
        uncertainty.ece([0.5, 1.2], [1, 0])
    with pytest.raises(ValueError, match="expected probabilities"):
        uncertainty.ece([0.5, float("nan")], [1, 0])
    for p, hit, bins in (([], [], 20), ([0.5], [1, 0], 20), ([0.5], [1], 0)):
        with pytest.raises(ValueError, match="two vectors of one length"):
            uncertainty.ece(p, hit, bins)


def test_auroc_counts_pairs_and_halves_ties():
    g = np.random.default_rng(0)
    a, b = g.integers(0, 12, 150) + 2.0, g.integers(0, 12, 80).astype(float)
    pairs = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    assert uncertainty.auroc(a, b) == pytest.approx(pairs)
    assert uncertainty.auroc(b, a) == pytest.approx(1 - pairs)
    assert uncertainty.auroc([3.0] * 5, [3.0] * 9) == 0.5
    assert uncertainty.auroc([2.0], [1.0]) == 1


@pytest.mark.parametrize("f", [np.exp, np.arctan, lambda s: 1e3 * s - 5e4, lambda s: s**3])
def test_auroc_sees_only_ranks(f):
    g = np.random.default_rng(0)
    a, b = g.normal(1, 1, 300), g.normal(0, 2, 200)
    assert uncertainty.auroc(f(a), f(b)) == pytest.approx(uncertainty.auroc(a, b))


def test_auroc_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="outside has shape"):
        uncertainty.auroc([1.0], [])
    with pytest.raises(ValueError, match="inside has shape"):
        uncertainty.auroc(np.ones((2, 2)), [1.0])
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="1 of 2 scores in inside are not finite: has the model diverged"):
            uncertainty.auroc([1.0, bad], [1.0])


def test_bootstrap_of_a_mean_is_the_known_interval():
    v = np.random.default_rng(1).normal(size=500)
    low, high = uncertainty.bootstrap_statistic(np.mean, v, resamples=2000)
    assert (low, high) == pytest.approx(metrics.bootstrap(v), abs=0.01)
    half = 1.96 * v.std() / np.sqrt(500)
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_bootstrap_resamples_alone_or_in_pairs():
    v = np.arange(50.0)

    def difference(a, b):
        return float(np.abs(a - b).max())

    assert uncertainty.bootstrap_statistic(difference, v, v, paired=True) == (0, 0)
    assert uncertainty.bootstrap_statistic(difference, v, v)[0] > 0
    p, hit = random_predictions(500)
    low, high = uncertainty.bootstrap_statistic(uncertainty.ece, p, hit, paired=True)
    assert 0 < low < high < 1
    a, b = np.random.default_rng(0).normal(1, 1, 200), np.random.default_rng(1).normal(0, 1, 100)
    low, high = uncertainty.bootstrap_statistic(uncertainty.auroc, a, b)
    assert low < uncertainty.auroc(a, b) < high < 1 and high - low < 0.2
    assert (low, high) == uncertainty.bootstrap_statistic(uncertainty.auroc, a, b), "one seed, one interval"
    for arrays, paired in (((), False), ((v[:1],), False), ((v, v[:9]), True)):
        with pytest.raises(ValueError, match="at least two entries each"):
            uncertainty.bootstrap_statistic(np.mean, *arrays, paired=paired)


class Brightness(torch.nn.Module):
    """Logits (B, 2): (9 m, 0) with m the mean pixel in [-1, 1]."""

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled() and len(x) <= 500
        m = x.mean((1, 2, 3))
        return torch.stack([9 * m, torch.zeros_like(m)], 1)


def test_scores_of_a_known_model():
    x = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2).repeat(200, 1, 1, 1)
    log_p, confidence = (uncertainty.scores(Brightness(), x, w) for w in uncertainty.SCORES)
    m = np.array([-1, 128 / 127.5 - 1, 1])
    assert log_p.shape == (600,) and np.allclose(log_p[:3], np.log1p(np.exp(9 * m)), atol=1e-5)
    assert np.allclose(confidence[:3], 1 / (1 + np.exp(-9 * np.abs(m))), atol=1e-6)
    with pytest.raises(ValueError, match="score 'px': expected one of log_p_x, max_p_y"):
        uncertainty.scores(Brightness(), x, "px")
