"""The networks: an MLP for two dimensions, the papers' WideResNet for images.

Every network is `forward(x) = rest(first(x))`, because PYLD treats the first layer apart (JEM++ Eq. 11),
and has `features(x)`, the activations before the last linear layer.
"""
from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """first -> body -> head; subclasses set the three."""
    first: nn.Module
    body: nn.Module
    head: nn.Linear

    def rest(self, h: Tensor) -> Tensor:
        """Logits (B, C) from the first layer's output."""
        return self.head(self.body(h))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations (B, F)."""
        return self.body(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


class MLP(Network):
    """Fully connected network on R^d with smooth activations (an energy wants a gradient everywhere)."""

    def __init__(self, inputs: int = 2, classes: int = 1, width: int = 64, depth: int = 3):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        hidden = [m for _ in range(depth - 1) for m in (nn.SiLU(), nn.Linear(width, width))]
        self.body = nn.Sequential(*hidden, nn.SiLU())
        self.head = nn.Linear(width, classes)


class Block(nn.Module):
    """Pre-activation residual block: norm, LeakyReLU 0.2, 3x3 convolution, twice."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)  # no norm

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), 0.2))
        return self.conv2(F.leaky_relu(self.norm2(h), 0.2)) + self.shortcut(x)


class WideResNet(Network):
    """WideResNet-depth-widen as the JEM family uses it: LeakyReLU 0.2, convolution biases, no dropout.

    Args:
        depth: 6n + 4 (10, 16, 28, ...).   widen: width factor k.   classes: logits.
        channels: of the input images (B, channels, H, W); any H = W >= 8 works (global pooling).
        norm: 'batch' (JEM++, SADA-JEM) or 'none' (JEM).
    Raises: ValueError for a depth that is not 6n + 4 or an unknown norm.
    """

    def __init__(self, depth: int = 28, widen: int = 10, classes: int = 10, channels: int = 3,
                 norm: str = "batch"):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet depth {depth}: expected 6n + 4 with n >= 1 (10, 16, 22, 28, ...)")
        norms = {"batch": nn.BatchNorm2d, "none": lambda _: nn.Identity()}
        if norm not in norms:
            raise ValueError(f"norm {norm!r}: expected one of {sorted(norms)}")
        widths, n = (16, 16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        blocks = [Block(widths[s] if i == 0 else widths[s + 1], widths[s + 1],
                        2 if s > 0 and i == 0 else 1, norms[norm]) for s in range(3) for i in range(n)]
        self.body = nn.Sequential(*blocks, norms[norm](widths[3]), nn.LeakyReLU(0.2),
                                  nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[3], classes)


def build(kind: str, *, depth: int, widen: int, norm: str, classes: int, channels: int) -> Network:
    """The network that a run's `network` section names."""
    if kind != "wrn":
        raise ValueError(f"network kind {kind!r}: expected 'wrn'")
    return WideResNet(depth, widen, classes, channels, norm).to(memory_format=torch.channels_last)


@contextlib.contextmanager
def batch_statistics(model: nn.Module):
    """Batch norm by the batch's own statistics, running ones untouched: how JEM++ samples after training."""
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(m.training, m.track_running_stats) for m in layers]
    for m in layers:                    # torch then normalises by the batch and writes nothing back
        m.training, m.track_running_stats = True, False
    try:
        yield model
    finally:
        for m, (training, tracking) in zip(layers, before):
            m.training, m.track_running_stats = training, tracking


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
