"""Images of another kind than the data: what detectors are tested on, and what AT-EBM's chains start from. All uint8."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolated(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The papers' "Interp": means of two random images. x uint8 (n, C, H, W) with n >= 2 -> the same shape.

    Each image serves twice, never with itself.
    """
    if len(x) < 2:
        raise ValueError(f"interpolated: {len(x)} images; expected at least two")
    order = torch.randperm(len(x), generator=generator)
    a, b = x[order], x[order.roll(1)]
    return ((a.float() + b.float()) / 2).round().to(torch.uint8)  # half to even: no drift to bright or dark


def uniform_noise(n: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """n images of independent uniform bytes: uint8 (n, *shape), shape (C, H, W)."""
    return torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)


def dead_leaves(
    n: int,
    shape: tuple[int, int, int],
    generator: torch.Generator | None = None,
    *,
    leaves: int = 100,
    smallest: float = 1 / 16,
    largest: float = 1 / 2,
    black: bool = False,
) -> Tensor:
    """n dead-leaves images: discs of random place and colour, each covering those before it; uint8 (n, *shape).

    Radii have density ~ r^-3, which gives natural images' scale invariance and spectrum (Baradad et al. 2021,
    "Learning to see by looking at noise"; Lee, Mumford and Huang 2001).

    Args:
        shape: (C, H, W).   smallest, largest: radii as shares of the longer side.
        leaves: discs an image; 100 leave some 2 % of the background to be seen.
        black: the background is black; otherwise, of a random colour.
    """
    C, H, W = shape
    u = torch.rand(3, n, leaves, generator=generator)
    cy, cx = u[0] * H, u[1] * W  # (n, leaves)
    # r^2, r from the inverse of the power law's distribution function
    r2 = max(H, W) ** 2 / (smallest**-2 - u[2] * (smallest**-2 - largest**-2))
    colours = torch.randint(256, (n, leaves + 1, C), generator=generator, dtype=torch.uint8)
    if black:
        colours[:, 0] = 0
    dy2 = (torch.arange(H) + 0.5 - cy[..., None]) ** 2  # (n, leaves, H)
    dx2 = (torch.arange(W) + 0.5 - cx[..., None]) ** 2  # (n, leaves, W)
    top = torch.zeros(n, H, W, dtype=torch.long)  # which leaf is seen; 0: none
    for part in torch.arange(n).split(250):  # small enough for the cache
        seen = top[part[0] : part[-1] + 1]
        for k in range(leaves):
            inside = dy2[part, k, :, None] + dx2[part, k, None, :] < r2[part, k, None, None]
            seen.masked_fill_(inside, k + 1)
    b = torch.arange(n)[:, None, None]
    return colours[b, top].permute(0, 3, 1, 2).contiguous()


def discs(n: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """n images of six large dead leaves on black: shapes without a meaning, uint8 (n, *shape)."""
    return dead_leaves(n, shape, generator, leaves=6, smallest=1 / 8, black=True)
