"""Metrics against known values and another library."""

import numpy as np
import pytest
import torch

from lib.measures import metrics


def test_frechet_distance_of_known_gaussians():
    eye = np.eye(3)
    assert metrics.frechet((np.zeros(3), eye), (np.array([3.0, 4.0, 0.0]), eye)) == pytest.approx(25)
    # tr(A + B - 2 sqrt(A B)) for commuting covariances: sum (sqrt a - sqrt b)^2
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 1.0])
    assert metrics.frechet((np.zeros(3), a), (np.zeros(3), b)) == pytest.approx(1 + 0 + 4)


def test_moments_and_their_lower_limit():
    f = np.random.default_rng(0).normal(size=(50, 4))
    mu, cov = metrics.moments(f)
    assert np.allclose(mu, f.mean(0)) and np.allclose(cov, np.cov(f.T))
    assert metrics.frechet((mu, cov), (mu, cov)) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.moments(f[:1])


def test_frechet_interval_covers_the_known_distance():
    g = np.random.default_rng(0)
    real = (np.zeros(4), np.eye(4))
    truth, hits = 1.0, 0  # |mu|^2 = 1, equal covariances
    for _ in range(20):
        f = g.normal(size=(300, 4)) + np.array([1.0, 0, 0, 0])
        value = metrics.frechet(metrics.moments(f), real)
        low, high = metrics.frechet_interval(f, real, value)
        hits += low <= truth <= high
        assert low < high
    assert hits >= 16, "a 95 % interval from 30 resamples"


def test_inception_score_of_known_predictions():
    certain = np.eye(10)[np.arange(100) % 10]
    assert metrics.inception_score(certain, 10)[0] == pytest.approx(10, rel=1e-6)  # sharp and even: C
    assert metrics.inception_score(np.full((100, 10), 0.1))[0] == pytest.approx(1)  # says nothing: 1
    assert metrics.inception_score(np.eye(10)[np.zeros(100, int)])[0] == pytest.approx(1)  # one class only: 1
    with pytest.raises(ValueError, match="3 images for 10 splits"):
        metrics.inception_score(certain[:3])


def test_most_confident_share_is_taken_in_each_class():
    confidence = np.linspace(0, 1, 100)
    predicted = np.repeat([0, 1], 50)  # class 0 is the less confident half
    kept = metrics.most_confident(confidence, predicted, 0.1)
    assert kept.tolist() == [45, 46, 47, 48, 49, 95, 96, 97, 98, 99]
    assert len(metrics.most_confident(confidence, predicted, 1.0)) == 100
    with pytest.raises(ValueError, match="share 0"):
        metrics.most_confident(confidence, predicted, 0)


def test_bootstrap_interval_is_the_binomial_one():
    hits = np.random.default_rng(1).random(2000) < 0.8
    low, high = metrics.bootstrap(hits)
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert low == pytest.approx(hits.mean() - half, abs=0.003) and high == pytest.approx(hits.mean() + half, abs=0.003)
    with pytest.raises(ValueError, match="at least two"):
        metrics.bootstrap(np.array([1.0]))


def test_accuracy():
    assert metrics.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
