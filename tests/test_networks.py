"""The networks' shapes, and what the papers say of them."""

import pytest
import torch
from torch import nn

from lib.parts.networks import MLP, WideResNet, batch_statistics, parameter_count


def test_wrn_28_10_has_the_published_size():
    # Zagoruyko & Komodakis: 36.5 M parameters; biases in the convolutions add a little.
    assert 36.4e6 < parameter_count(WideResNet(28, 10)) < 36.6e6


@pytest.mark.parametrize("channels, side", [(1, 8), (1, 16), (1, 28), (3, 32)])
def test_any_square_image(channels, side):
    net = WideResNet(10, 1, 7, channels)
    x = torch.rand(2, channels, side, side)
    assert net(x).shape == (2, 7) and net.features(x).shape == (2, 64)
    assert torch.allclose(net(x), net.head(net.features(x)), atol=1e-5)


def test_norm_none_has_none_and_shortcuts_have_none():
    assert not [m for m in WideResNet(16, 2, norm="none").modules() if isinstance(m, nn.BatchNorm2d)]
    for block in WideResNet(16, 2).body[:6]:
        assert isinstance(block.shortcut, (nn.Identity, nn.Conv2d))


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="depth 12"):
        WideResNet(12)
    with pytest.raises(ValueError, match="'layer'"):
        WideResNet(10, norm="layer")


def test_batch_statistics_writes_nothing():
    net, x = WideResNet(10, 1, channels=1).eval(), torch.rand(8, 1, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    running = net(x)
    with batch_statistics(net):
        own = net(x)
    assert not torch.allclose(running, own)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(x), running) and not net.training


def test_mlp_is_smooth():
    x = torch.zeros(1, 2, requires_grad=True)
    g = torch.autograd.grad(MLP()(x).sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(g.sum(), x)[0].abs().sum() > 0
