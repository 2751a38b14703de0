"""One run on several processes, which torchrun starts: each takes its share of every batch. In one process, all of
this does nothing.

There is no DistributedDataParallel: it supports no gradient with respect to images through its wrapper, and no two
forward passes before a backward one with batch norm. Chains run on the bare module, and one all_reduce averages.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib import params


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that logs and publishes."""
    return dist.get_rank() if world() > 1 else 0


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[str | None]:
    """The group of processes that torchrun describes in the environment; yields this process's device (gloo and the
    CPU, or NCCL and the GPU of its own number). Without torchrun: the device, None for the default one.

    Raises: ConfigError where there are fewer GPUs than processes, or the environment is not torchrun's.
    """
    if _number("WORLD_SIZE", "1") == 1:
        yield device
        return
    cuda, local = torch.cuda.is_available() if device is None else device.startswith("cuda"), _number("LOCAL_RANK")
    place = f"cuda:{local}" if cuda else device or "cpu"
    if cuda and local >= torch.cuda.device_count():
        raise params.ConfigError(
            f"process {local} has no GPU: there are {torch.cuda.device_count()}; expected at most as many "
            "processes (torchrun --nproc-per-node), or --device cpu"
        )
    for variable in ("RANK", "MASTER_PORT"):
        _number(variable)
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield place
    finally:
        dist.destroy_process_group()


def _number(variable: str, otherwise: str | None = None) -> int:
    value = os.environ.get(variable, otherwise)
    if value is None or not value.isdecimal():
        raise params.ConfigError(
            f"the environment's {variable} is {value!r}: expected a number, as torchrun sets it; start "
            "with torchrun, or unset WORLD_SIZE"
        )
    return int(value)


def device(wanted: str | torch.device | None) -> torch.device:
    """A device that works here; None: cuda where there is one. Raises: ConfigError, which says what there is."""
    try:
        found = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # torch raises each of them
        have, cause = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))], " ".join(str(e).split())[:60]
        raise params.ConfigError(
            f"device {str(wanted)!r} does not work ({cause} ...): torch {torch.__version__} has "
            f"{', '.join(have)} here; name one of these, or none"
        ) from None
    return found


def share(n: int, what: str) -> int:
    """n / N, one process's part. Raises: ConfigError where N does not divide n."""
    if n % world():
        raise params.ConfigError(
            f"{what} {n} on {world()} processes: expected a multiple of {world()}; change it, or torchrun's --nproc-per-node"
        )
    return n // world()


def mine(x: Tensor) -> Tensor:
    """This process's part of a tensor (n, ...) that all have alike: (n / N, ...)."""
    return x if world() == 1 else x.chunk(world())[rank()]


def average(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in place; one all_reduce for all of one type and device."""
    if world() > 1:
        _together(tensors, lambda flat: dist.all_reduce(flat.div_(world())))


def average_update(model: nn.Module) -> None:
    """Average the gradients, and with them batch norm's running statistics: each process normalises by its own part
    of the batch, all remember the mean of what they saw, and so hold one model, to the bit."""
    if world() > 1:
        average([p.grad for p in model.parameters() if p.grad is not None] + _statistics(model))


def broadcast(model: nn.Module) -> None:
    """Process 0's weights for all."""
    if world() > 1:
        _together([*model.parameters(), *_statistics(model)], lambda flat: dist.broadcast(flat, 0))


def gather(x: Tensor) -> Tensor:
    """All processes' parts (n, ...), in their order: (N n, ...)."""
    if world() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def least(value: float, device: str | torch.device = "cpu") -> float:
    """The smallest of the processes' numbers: how they agree. All wait for it."""
    if world() == 1:
        return value
    found = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return found.item()


def wait(device: str | torch.device = "cpu") -> None:
    """Until all processes have come here."""
    least(0, device)


def _statistics(model: nn.Module) -> list[Tensor]:
    return [b for b in model.buffers() if b.is_floating_point()]


@torch.no_grad()
def _together(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    """A collective on all tensors at once, in place: one message instead of hundreds."""
    tensors = list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    collective(flat)
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view(t.shape))
