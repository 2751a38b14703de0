"""The replay buffer (IGEBM, JEM; JEM++ Algorithm 2 lines 3 and 6): persistent chains, on the device."""
from __future__ import annotations

import torch
from torch import Tensor

from lib.inits import upload


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
