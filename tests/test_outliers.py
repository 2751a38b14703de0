"""Images of another kind: what they are made of, and that they are what their names say."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib.data import outliers


def test_interpolated_images_are_means_of_two_others(rng):
    x = torch.zeros(8, 1, 1, 8, dtype=torch.uint8)
    x[range(8), 0, 0, range(8)] = 101  # image i is bright at pixel i alone
    y = outliers.interpolated(x, rng)
    assert y.shape == x.shape and y.dtype == torch.uint8
    assert ((y == 50).flatten(1).sum(1) == 2).all(), "two parents, never one twice; 50.5 is rounded to even"
    assert ((y == 50).sum(0) == 2).all(), "each image serves twice"
    with pytest.raises(ValueError, match="1 images; expected at least two"):
        outliers.interpolated(x[:1])


def test_uniform_noise_is_uniform(rng):
    x = outliers.uniform_noise(500, (3, 16, 16), rng)
    assert x.shape == (500, 3, 16, 16) and x.dtype == torch.uint8 and x.min() == 0 and x.max() == 255
    counts = torch.bincount(x.flatten().long(), minlength=256).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.15


def test_dead_leaves_are_flat_discs_of_many_colours(rng):
    x = outliers.dead_leaves(2000, (1, 16, 16), rng)
    assert x.shape == (2000, 1, 16, 16) and x.dtype == torch.uint8
    same = (x[..., 1:] == x[..., :-1]).double().mean().item()
    assert 0.3 < same < 0.9, "neighbours often share a leaf; in noise 1 in 256 would"
    assert abs(x.double().mean().item() - 127.5) < 3 and len({i.numpy().tobytes() for i in x}) == 2000
    assert outliers.dead_leaves(3, (3, 20, 12), rng).shape == (3, 3, 20, 12)


class Counted(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += 1
        return function(*arguments, **named or {})


def test_dead_leaves_are_drawn_together(rng):
    counts = []
    for n in (20, 200):
        with Counted() as counted:
            outliers.dead_leaves(n, (1, 16, 16), rng)
        counts.append(counted.count)
    assert counts[0] == counts[1] > 100, "as many operations for ten times the images"


def test_one_large_leaf_is_a_disc(rng):
    x = outliers.dead_leaves(400, (1, 64, 64), rng, leaves=1, smallest=0.1249, largest=0.125)  # radius 8
    sizes = [min((i == c).sum().item() for c in i.unique()) for i in x if len(i.unique()) == 2]
    assert max(sizes) == pytest.approx(np.pi * 64, rel=0.06) and sum(s > 180 for s in sizes) > 100


def test_leaf_radii_follow_the_power_law(rng):
    x = outliers.dead_leaves(4000, (1, 64, 64), rng, leaves=1, smallest=1 / 32, largest=1 / 4)  # radii 2 to 16
    area = torch.stack([(i != i[0, 0, 0]).sum() for i in x]).double()
    inner = area[(area > 0) & (area < 2000)]
    share = (inner > np.pi * 16).double().mean().item()  # P(r > 4) = (4^-2 - 16^-2) / (2^-2 - 16^-2)
    assert share == pytest.approx((1 / 16 - 1 / 256) / (1 / 4 - 1 / 256), abs=0.05)


def test_made_images_depend_on_the_generator_alone():
    for make in (outliers.uniform_noise, outliers.dead_leaves):
        a, b, c = (make(5, (1, 8, 8), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
