"""Images are uint8 at rest, (n, C, H, W), and float in [low, 1] in use: the one place that converts them.

low = -1 is where the step sizes of JEM, JEM++ and SADA-JEM live, low = 0 where AT-EBM's do: `lib.params.Run.low`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_range(x: Tensor, low: float = -1.0) -> Tensor:
    """uint8 [0, 255] -> float [low, 1]."""
    return x.float() / (255 / (1 - low)) + low


def to_bytes(x: Tensor, low: float = -1.0) -> Tensor:
    """float [low, 1] -> uint8, clamped and rounded: what an image file would hold."""
    return ((x.clamp(low, 1) - low) * (255 / (1 - low))).round().to(torch.uint8)


def with_noise(x: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """x + sigma eps: the JEM codes' input noise, at training and at test time."""
    return x + sigma * torch.randn(x.shape, generator=generator, device=x.device) if sigma else x


def upload(x: Tensor, device: str | torch.device) -> Tensor:
    """x on a device. A copy to a GPU waits for all that runs there, unless it starts from pinned memory."""
    pinned = x.device.type == "cpu" and torch.device(device).type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)
