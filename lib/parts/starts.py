"""Where a chain starts: uniform noise (JEM), class Gaussians fitted to the training data (JEM++, SADA-JEM), or real
images of another kind (AT-EBM)."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(x: Tensor, device) -> Tensor:
    """x on a device. A copy to a GPU waits for all that runs there, unless it starts from pinned memory."""
    pinned = x.device.type == "cpu" and torch.device(device).type == "cuda"
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


class Uniform:
    """p0(x) = U[low, high]^(C x H x W), JEM's uninformative start."""

    def __init__(self, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0):
        self.shape, self.low, self.high = tuple(shape), low, high

    def draw(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n starts (n, *shape); y is ignored: noise has no class."""
        return torch.rand(n, *self.shape, generator=generator) * (self.high - self.low) + self.low


class ClassGaussians:
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
    def fit(cls, x: Tensor, y: Tensor, ridge: float = 1e-4, low: float = -1.0, high: float = 1.0):
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

    def draw(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n starts (n, C, H, W), clamped to the image range as the official code does, on mu's device.

        y (n,): the classes, on the CPU; left out, y ~ pi. Random numbers come from a CPU generator, so that
        a seed means the same on every device; one product per class present, no wait for the device.
        """
        if y is None:
            y = torch.multinomial(self.prior.cpu(), n, replacement=True, generator=generator)
        z = upload(torch.randn(n, self.mu.shape[1], generator=generator), self.mu.device)
        x = torch.empty_like(z)
        for c in y.unique().tolist():
            rows = upload(torch.nonzero(y == c).flatten(), z.device)
            x[rows] = self.mu[c] + z[rows] @ self.factor[c].T
        return x.clamp_(self.low, self.high).view(n, *self.shape)

    def to(self, device) -> ClassGaussians:
        """A copy on another device (the same object's tensors where nothing moves)."""
        return ClassGaussians(self.mu.to(device), self.factor.to(device), self.prior, self.shape, self.low, self.high)

    def state_dict(self) -> dict:
        return {
            "mu": self.mu,
            "factor": self.factor,
            "prior": self.prior,
            "shape": list(self.shape),
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_state(cls, s: dict) -> ClassGaussians:
        return cls(s["mu"], s["factor"], s["prior"], tuple(s["shape"]), s["low"], s["high"])


class Images:
    """p0 of AT-EBM: real out-of-distribution images (Algorithm 1, line 2), float (n, C, H, W), on any device."""

    def __init__(self, images: Tensor):
        if images.dim() != 4 or not len(images):
            raise ValueError(f"p0 images of shape {tuple(images.shape)}: expected (n, C, H, W) with n >= 1")
        self.images, self.shape = images, tuple(images.shape[1:])

    def draw(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n images at random, with replacement; y is ignored. The generator is a CPU one."""
        return self.images[upload(torch.randint(len(self.images), (n,), generator=generator), self.images.device)]


class ReplayBuffer:
    """`images` (|B|, C, H, W): the last state of each chain. Its content is part of a checkpoint.

    Args:
        images: the first filling, usually drawn from p0.
    """

    def __init__(self, images: Tensor):
        self.images = images

    @classmethod
    def filled(cls, size: int, start, generator: torch.Generator | None = None, device="cpu"):
        """A buffer of `size` draws from p0, equally many of each class where p0 has classes (as the
        official code fills it); a remainder is drawn from p0 freely."""
        classes = len(getattr(start, "prior", ())) or 1
        y = torch.arange(classes).repeat_interleave(size // classes)
        even = start.draw(len(y), generator, y=y)
        rest = start.draw(size - len(y), generator) if size > len(y) else even[:0]
        return cls(torch.cat([even, rest]).to(device))

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, n: int, start, reinit: float, generator: torch.Generator | None = None):
        """n chain starts: from the buffer with probability 1 - reinit, else fresh from p0.

        Only the reinitialised ones are drawn. Indices come from a CPU generator, and no copy waits for the device.
        Returns: x0 (n, C, H, W), and where they live, index (n,), for `put`.
        """
        index = torch.randint(len(self), (n,), generator=generator)
        fresh = torch.nonzero(torch.rand(n, generator=generator) < reinit).flatten()
        index_on_device = upload(index, self.images.device)
        x = self.images[index_on_device]
        if len(fresh):
            x[upload(fresh, x.device)] = upload(start.draw(len(fresh), generator), x.device)
        return x, index_on_device

    def put(self, index: Tensor, x: Tensor) -> None:
        """Write the chains' last states back. index (n,), x (n, C, H, W)."""
        self.images[index] = x.detach()
