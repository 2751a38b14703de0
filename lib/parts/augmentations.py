"""How images are changed at random, before p(y|x), p(x) or a chain sees them: a cell per kind.

    augment(x, generator, low) -> x'      float (B, C, H, W) in [low, 1] on any device

All random numbers come from the generator, which is on x's device: see `one_by_one` for torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from lib.parts.cell import Byte, Cell, ConfigError, Count, Index, Positive, Share
from lib.parts.pixels import to_bytes, to_range, upload

Transform = Callable[[Tensor], Tensor]  # of one image, uint8 (C, H, W)


class Unchanged(Cell):
    """Images as they are."""

    kind: Literal["none"] = "none"

    def __call__(self, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
        return x


class _Crops(Cell):
    pad: Count  # pixels
    fill: tuple[Byte, ...] | None = None  # the margin's colour, a byte per channel; None: reflected

    def __call__(self, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
        """Raises: ConfigError for a `fill` that is no colour of these images, and a margin that they cannot fill."""
        if self.fill is not None and len(self.fill) != x.shape[1]:
            raise ConfigError(f"augment.fill: {list(self.fill)} for images of {x.shape[1]} channels: expected as many bytes")
        if self.fill is None and self.pad >= min(x.shape[2:]):
            raise ConfigError(
                f"augment.pad: {self.pad} for images of {x.shape[-1]} pixels: a margin of reflected pixels is narrower than "
                "they are; lower it, or give a fill"
            )
        return crop_flip(x, self.pad, generator, None if self.fill is None else to_range(torch.tensor(self.fill), low))


class CropFlip(_Crops):
    """Pad, crop back at a random offset, flip half of them."""

    kind: Literal["crop_flip"] = "crop_flip"


class AutoAugment(_Crops):
    """Crops and flips, then AutoAugment's CIFAR-10 policy (Cubuk et al. 2019), then cutout."""

    kind: Literal["autoaugment"] = "autoaugment"
    cutout: Index = 0  # side of the black square, in pixels

    def __call__(self, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
        x = one_by_one(super().__call__(x, generator, low), self.transform(), generator, low)
        return cutout(x, self.cutout, generator, low)

    def transform(self) -> Transform:
        """torchvision's policy, for one image (C, H, W)."""
        from lib.vision import v2

        return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=None if self.fill is None else list(self.fill))


class ResizedCrop(Cell):
    """A random part of an image, scaled back to its size; then a horizontal flip of half of the images."""

    kind: Literal["resized_crop"] = "resized_crop"
    share: Share = 1.0  # of the images are cut, the others stay whole
    scale: tuple[Positive, Positive] = (0.08, 1.0)  # the part's area, from and to
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)  # the part's width over its height, from and to

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        (a, b), (c, d) = self.scale, self.ratio
        if a > b or b > 1:
            raise ValueError(f"scale: [{a:g}, {b:g}]; expected from and to in this order of an image, whose area is 1")
        if c > d:
            raise ValueError(f"ratio: [{c:g}, {d:g}]; expected from and to in this order")
        return self

    def __call__(self, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
        return one_by_one(x, self.transform(x.shape[-1]), generator, low)

    def transform(self, size: int) -> Transform:
        """torchvision's, for one image (C, size, size)."""
        from lib.vision import v2

        cut = v2.RandomResizedCrop(size, self.scale, self.ratio)
        return v2.Compose([v2.RandomApply([cut], self.share), v2.RandomHorizontalFlip()])


Augmentation = Annotated[Unchanged | CropFlip | AutoAugment | ResizedCrop, Field(discriminator="kind")]


def one_by_one(x: Tensor, transform: Transform, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
    """A random transform of torchvision's, of each image by itself, as bytes: (B, C, H, W) in [low, 1] on any device.

    torchvision draws one set of parameters a call, from torch's global generator: that is seeded from ours for as long as
    it takes. It runs on the CPU, so that a seed means the same everywhere; a GPU is waited for once a batch.
    """
    device = generator.device if generator else "cpu"
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        y = torch.stack([transform(image) for image in to_bytes(x, low).cpu()])
    return to_range(upload(y, x.device), low)


def cutout(x: Tensor, side: int, generator: torch.Generator | None = None, low: float = -1.0) -> Tensor:
    """A black square of `side` pixels in each image, as much of it as lies inside: its centre is any of the pixels
    (DeVries and Taylor 2017). (B, C, H, W) on any device."""
    B, _, H, W = x.shape
    inside = []
    for n in (H, W):
        centre = torch.randint(n, (B, 1), generator=generator, device=x.device)
        offset = torch.arange(n, device=x.device) - centre  # (B, n)
        inside.append((offset >= -(side // 2)) & (offset < side - side // 2))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], low)


def crop_flip(x: Tensor, pad: int, generator: torch.Generator | None = None, fill: Tensor | None = None) -> Tensor:
    """Pad, crop back at a random offset, flip half of them: (B, C, H, W) on any device. The margin is reflected, or of
    the colour `fill` (C,)."""
    B, _, H, W = x.shape
    if fill is None:
        padded = F.pad(x, (pad,) * 4, mode="reflect")
    else:
        padded = upload(fill, x.device)[:, None, None].repeat(B, 1, H + 2 * pad, W + 2 * pad)
        padded[:, :, pad:-pad, pad:-pad] = x
    corner = torch.randint(2 * pad + 1, (2, B, 1), generator=generator, device=x.device)
    rows = corner[0] + torch.arange(H, device=x.device)  # (B, H)
    cols = corner[1] + torch.arange(W, device=x.device)  # (B, W)
    flip = torch.rand(B, 1, generator=generator, device=x.device) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    b = torch.arange(B, device=x.device)[:, None, None]
    return padded[b, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
