"""Chain starts and the replay buffer."""

from types import SimpleNamespace

import pytest
import torch

from lib.parts.starts import ClassGaussians, Data, Gaussians, ReplayBuffer, Start, Uniform


def two_classes(n=400, side=3):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4 // 3  # 3/4 of class 0, 1/4 of class 1
    x = 0.1 * torch.randn(n, 1, side, side, generator=g) + torch.where(y == 0, -0.4, 0.4)[:, None, None, None]
    return x, y


def test_moments_of_the_draw_are_the_fitted_ones(rng):
    x, y = two_classes()
    p0 = ClassGaussians.fit(x, y)
    assert torch.allclose(p0.prior, torch.tensor([0.75, 0.25]))
    for c in (0, 1):
        draw = p0.sample(20_000, rng, torch.full((20_000,), c)).flatten(1)
        own = x[y == c].flatten(1)
        assert torch.allclose(draw.mean(0), own.mean(0), atol=0.01)
        assert torch.allclose(torch.cov(draw.T), torch.cov(own.T, correction=0) + 1e-4 * torch.eye(9), atol=1e-3)


def test_classes_are_drawn_by_their_share(rng):
    x, y = two_classes()
    draw = ClassGaussians.fit(x, y).sample(4000, rng)
    assert abs((draw.mean((1, 2, 3)) < 0).float().mean().item() - 0.75) < 0.03


def test_draws_stay_in_range(rng):
    x, y = two_classes()
    assert ClassGaussians.fit(3 * x, y).sample(500, rng).abs().max() <= 1
    u = Uniform((1, 8, 8)).sample(500, rng)
    assert u.min() >= -1 and u.max() <= 1 and abs(u.var().item() - 1 / 3) < 0.01


def test_an_empty_class_is_named():
    x, y = two_classes()
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        ClassGaussians.fit(x, torch.where(y == 1, 2, y))


def test_state_round_trip(tmp_path, rng):
    x, y = two_classes()
    p0 = ClassGaussians.fit(x, y)
    torch.save(p0.state_dict(), tmp_path / "p0.pt")
    again = ClassGaussians.from_state(torch.load(tmp_path / "p0.pt", weights_only=True))
    a, b = (p.sample(5, torch.Generator().manual_seed(2)) for p in (p0, again))
    assert torch.equal(a, b)


class Nine(Start):
    """A start that is 9 everywhere and counts what it draws."""

    drawn = 0

    def sample(self, n, generator=None, y=None):
        self.drawn += n
        return torch.full((n, 1, 2, 2), 9.0)


def test_buffer_reinitialises_its_share_and_draws_only_those(rng):
    start = Nine()
    buffer = ReplayBuffer(torch.zeros(50, 1, 2, 2), start, 0.05)
    x, index = buffer.draw(torch.zeros(10_000, 1, 2, 2), rng)
    fresh = (x == 9).flatten(1).all(1)
    assert start.drawn == fresh.sum() and abs(fresh.float().mean().item() - 0.05) < 0.01
    assert (buffer.images == 0).all(), "drawing must not write"
    buffer.keep(index, x + 1)
    assert (buffer.images == 1).any() and index.max() < 50


def test_contrastive_divergence_starts_at_the_batch_and_persistent_chains_do_not(rng):
    real, images = torch.full((8, 1, 2, 2), 0.5), torch.full((40, 1, 2, 2), 255, dtype=torch.uint8)
    data = Data(images)
    x, index = data.draw(real, rng)
    assert torch.equal(x, real) and index is None and data.keep(index, x) is None
    assert torch.equal(data.sample(3, rng), torch.ones(3, 1, 2, 2)), "without a batch, training images"
    persistent = ReplayBuffer.filled(20, data, 0.0, rng)
    x, index = persistent.draw(real, rng)
    assert torch.equal(x, torch.ones_like(real))
    persistent.keep(index, torch.zeros_like(real))
    assert (persistent.images == 0).any() and (persistent.images == 1).any()
    x, _ = ReplayBuffer(torch.zeros(20, 1, 2, 2), data, 1.0).draw(real, rng)
    assert torch.equal(x, real), "a chain that begins anew begins at this batch"


def test_gaussians_fitted_in_one_range_serve_the_other(rng):
    x, y = two_classes()
    split = SimpleNamespace(gaussians=ClassGaussians.fit(x, y), title="two classes")
    here, there = (Gaussians().build(split, low).sample(50, torch.Generator().manual_seed(0)) for low in (-1.0, 0.0))
    assert torch.allclose(there, (here + 1) / 2, atol=1e-5)


def test_buffer_is_filled_evenly_over_classes(rng):
    x, y = two_classes()
    buffer = ReplayBuffer.filled(101, ClassGaussians.fit(x, y), 0.05, rng)
    assert len(buffer) == 101
    assert (buffer.images[:50].mean((1, 2, 3)) < 0).all() and (buffer.images[50:100].mean((1, 2, 3)) > 0).all()
