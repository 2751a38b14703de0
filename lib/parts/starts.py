"""Where a chain starts: uniform noise (JEM), class Gaussians fitted to the training data (JEM++, SADA-JEM), real images of
another kind (AT-EBM), the data themselves (contrastive divergence); around any of them, a replay buffer.

    x0, index = start.draw(real, rng, noise)         real (B, ...): the images that p(x) sees at this update
    start.keep(index, x)                             where the chains ended

Settings are cells; `build` makes what draws. rng: a generator on the CPU, for choices, so that a seed means the same on
every device; noise: one on the images' device, for whatever is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lib.parts.augmentations import Augmentation
from lib.parts.cell import Cell, ConfigError, Count, Several, Share, given
from lib.parts.pixels import to_range, upload


class Start:
    """p0, the distribution in which fresh chains begin; subclasses `sample` it. It keeps no chain; a buffer does."""

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n starts (n, ...). generator: on the CPU.   y (n,): their classes, where p0 has any."""
        raise NotImplementedError

    def fill(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n starts to fill a buffer with."""
        return self.sample(n, generator)

    def draw(
        self, real: Tensor, rng: torch.Generator | None = None, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As many starts as real images (B, ...), on their device, and where they live (here: nowhere, None)."""
        return upload(self.sample(len(real), rng), real.device), None

    def keep(self, index: Tensor | None, x: Tensor) -> None:
        """The chains of `draw` ended at x (B, ...): remembered by a buffer alone."""


class Uniform(Start):
    """p0(x) = U[low, high]^(C x H x W), JEM's uninformative start. Noise has no class."""

    def __init__(self, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0):
        self.shape, self.low, self.high = tuple(shape), low, high

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        return torch.rand(n, *self.shape, generator=generator) * (self.high - self.low) + self.low


class ClassGaussians(Start):
    """p0(x) = sum_y pi_y N(mu_y, Sigma_y), the informative start (JEM++ Eq. 14).

    mu (C, D) and factor (C, D, D), the lower Cholesky factor of Sigma_y + ridge I (the official code's
    ridge is 1e-4: there are more pixels than the data have directions); prior pi (C,).
    """

    def __init__(
        self, mu: Tensor, factor: Tensor, prior: Tensor, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0
    ):
        self.mu, self.factor, self.prior = mu, factor, prior
        self.shape, self.low, self.high = tuple(shape), low, high

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, ridge: float = 1e-4, low: float = -1.0, high: float = 1.0) -> ClassGaussians:
        """Fit to images x (n, C, H, W) in [low, high] with labels y (n,).

        Raises: ValueError where a class 0..max(y) has no image.
        """
        counts = torch.bincount(y)
        if (counts == 0).any():
            empty = torch.nonzero(counts == 0).flatten().tolist()
            raise ValueError(f"classes {empty} have no image: class Gaussians need at least one of each")
        flat, mus, factors = x.flatten(1).double(), [], []
        eye = ridge * torch.eye(flat.shape[1], dtype=torch.float64)
        for c in range(len(counts)):
            own = flat[y == c]
            mus.append(own.mean(0))
            centred = own - mus[-1]
            factors.append(torch.linalg.cholesky(centred.T @ centred / len(own) + eye).float())
        return cls(torch.stack(mus).float(), torch.stack(factors), (counts / counts.sum()).float(), x.shape[1:], low, high)

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n starts (n, C, H, W), clamped to the image range as the official code does, on mu's device.

        y (n,): the classes, on the CPU; left out, y ~ pi. One product per class present, no wait for the device.
        """
        if y is None:
            y = torch.multinomial(self.prior.cpu(), n, replacement=True, generator=generator)
        z = upload(torch.randn(n, self.mu.shape[1], generator=generator), self.mu.device)
        x = torch.empty_like(z)
        for c in y.unique().tolist():
            rows = upload(torch.nonzero(y == c).flatten(), z.device)
            x[rows] = self.mu[c] + z[rows] @ self.factor[c].T
        return x.clamp_(self.low, self.high).view(n, *self.shape)

    def fill(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Equally many of each class, as the official code fills its buffer; a remainder is drawn from p0 freely."""
        y = torch.arange(len(self.prior)).repeat_interleave(n // len(self.prior))
        even = self.sample(len(y), generator, y)
        return torch.cat([even, self.sample(n - len(y), generator)]) if n > len(y) else even

    def to(self, device: str | torch.device) -> ClassGaussians:
        """A copy on another device (the same object's tensors where nothing moves)."""
        return ClassGaussians(self.mu.to(device), self.factor.to(device), self.prior, self.shape, self.low, self.high)

    def state_dict(self) -> dict:
        own = {"mu": self.mu, "factor": self.factor, "prior": self.prior}
        return {**own, "shape": list(self.shape), "low": self.low, "high": self.high}

    @classmethod
    def from_state(cls, s: dict) -> ClassGaussians:
        return cls(s["mu"], s["factor"], s["prior"], tuple(s["shape"]), s["low"], s["high"])


class Images(Start):
    """p0 of AT-EBM: real out-of-distribution images (Algorithm 1, line 2), float (n, C, H, W), on any device.

    Args:
        augment: how each batch of them is changed; None: as they are.   low: of their range.
    Raises: ValueError for no images, or ones of another shape.
    """

    def __init__(self, images: Tensor, augment: Augmentation | None = None, low: float = -1.0):
        if images.dim() != 4 or not len(images):
            raise ValueError(f"p0 images of shape {tuple(images.shape)}: expected (n, C, H, W) with n >= 1")
        self.images, self.augment, self.low, self.shape = images, augment, low, tuple(images.shape[1:])

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n images at random, with replacement, as they are."""
        return self.images[upload(torch.randint(len(self.images), (n,), generator=generator), self.images.device)]

    def draw(
        self, real: Tensor, rng: torch.Generator | None = None, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        x, index = super().draw(real, rng, noise)
        return self.augment(x, noise, self.low) if self.augment else x, index


class Data(Start):
    """Contrastive divergence (Hinton 2002): each chain starts at a data point of this very batch.

    Args:
        images: the training images, uint8 (n, C, H, W) or float (n, ...), of which a buffer is filled.   low: of the range
        in which starts are.
    """

    def __init__(self, images: Tensor, low: float = -1.0):
        self.images, self.low, self.shape = images, low, tuple(images.shape[1:])

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n training images at random, with replacement."""
        x = self.images[upload(torch.randint(len(self.images), (n,), generator=generator), self.images.device)]
        return to_range(x, self.low) if x.dtype == torch.uint8 else x

    def draw(
        self, real: Tensor, rng: torch.Generator | None = None, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return real.detach(), None


class ReplayBuffer(Start):
    """Chains that go on from update to update, on the device (IGEBM, JEM; JEM++ Algorithm 2 lines 3 and 6). Its content is
    part of a checkpoint.

    Args:
        images: (|B|, ...), the last state of each chain; the first filling usually comes from p0: see `filled`.
        fresh: p0, where a chain that is drawn begins anew with probability reinit. 0: persistent contrastive divergence
        (Tieleman 2008).
    """

    def __init__(self, images: Tensor, fresh: Start, reinit: float):
        self.images, self.fresh, self.reinit = images, fresh, reinit

    @classmethod
    def filled(
        cls,
        size: int,
        fresh: Start,
        reinit: float,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
    ) -> ReplayBuffer:
        """A buffer of `size` draws from p0, equally many of each class where p0 has classes."""
        return cls(fresh.fill(size, generator).to(device), fresh, reinit)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        return self.fresh.sample(n, generator, y)

    def draw(
        self, real: Tensor, rng: torch.Generator | None = None, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """B chain starts: from the buffer with probability 1 - reinit, else fresh from p0.

        Only the fresh ones are drawn. Indices come from the CPU, and no copy waits for the device.
        Returns: x0 (B, ...), and where they live, index (B,), for `keep`.
        """
        index = torch.randint(len(self), (len(real),), generator=rng)
        fresh = torch.nonzero(torch.rand(len(real), generator=rng) < self.reinit).flatten()
        index_on_device = upload(index, self.images.device)
        x = self.images[index_on_device]
        if len(fresh):
            where = upload(fresh, x.device)
            x[where] = self.fresh.draw(real[where], rng, noise)[0]
        return x, index_on_device

    def keep(self, index: Tensor | None, x: Tensor) -> None:
        """Write the chains' last states back. index (B,), x (B, ...)."""
        self.images[index] = x.detach()


# ------------------------------------------------------------------------------------------------------ settings
Device = str | torch.device
Others = Callable[[], Tensor]  # -> uint8 (n, C, H, W)


class TrainingSet(Protocol):
    """What a start is built from (lib.data.Split)."""

    x_train: Tensor
    gaussians: ClassGaussians | None

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def title(self) -> str: ...


class Buffer(Cell):
    """A replay buffer's settings."""

    size: Several  # |B|
    reinit: Share  # rho: the share of chains that begin anew


class _Cell(Cell):
    buffer: Buffer | None = None  # None: every chain is a fresh one

    def build(self, split: TrainingSet, low: float, device: Device = "cpu", others: Others | None = None) -> Start:
        """p0 for images of `split`, in [low, 1]. others: gives the images of another kind, which OtherImages needs."""
        raise NotImplementedError


class UniformNoise(_Cell):
    """Each pixel uniform in the range of images."""

    kind: Literal["uniform"] = "uniform"

    def build(self, split: TrainingSet, low: float, device: Device = "cpu", others: Others | None = None) -> Uniform:
        return Uniform(split.shape, low)


class Gaussians(_Cell):
    """Of each class, fitted to the training data by the data stage."""

    kind: Literal["gaussians"] = "gaussians"

    def build(self, split: TrainingSet, low: float, device: Device = "cpu", others: Others | None = None) -> ClassGaussians:
        """Raises: ConfigError where none were fitted, or for another range."""
        if split.gaussians is None:
            raise ConfigError(
                f"start kind gaussians, but {split.title} has none fitted: set gaussians: true for it in "
                "scales.<profile>.data, or another start"
            )
        g = split.gaussians
        if g.low != low:  # fitted in another range, [-1, 1]: x -> s (x - g.low) + low
            s = (1 - low) / (1 - g.low)
            g = ClassGaussians((g.mu - g.low) * s + low, g.factor * s, g.prior, g.shape, low, 1.0)
        return g.to(device)


class OtherImages(_Cell):
    """Real images of another kind than the training data."""

    kind: Literal["images"] = "images"
    of: dict[str, Share]  # source -> share; noise, leaves, discs, or a role
    images: Count  # how many there are
    augment: Augmentation | None = None  # each batch of them; None: as they are

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if abs(sum(self.of.values()) - 1) > 1e-6:
            raise ValueError(f"of: the shares {self.of} add up to {sum(self.of.values()):g}; expected 1")
        return self

    def build(self, split: TrainingSet, low: float, device: Device = "cpu", others: Others | None = None) -> Images:
        """Raises: ConfigError without `others`."""
        images = given(others, "start kind images: build needs `others`, which gives them, such as lib.data.p0")
        return Images(to_range(images(), low).to(device), self.augment, low)


class DataPoints(_Cell):
    """Contrastive divergence: chains start at the data; persistent with a buffer whose reinit is 0."""

    kind: Literal["data"] = "data"

    def build(self, split: TrainingSet, low: float, device: Device = "cpu", others: Others | None = None) -> Data:
        return Data(split.x_train.to(device), low)


Starts = Annotated[UniformNoise | Gaussians | OtherImages | DataPoints, Field(discriminator="kind")]
