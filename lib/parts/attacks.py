"""The adversary of a classifier: projected gradient descent within a ball around the image.

epsilon is in units of the images' range. The papers count on [0, 1], in 255ths for L-infinity: [-1, 1] is twice as long,
so their 8/255 is 2 * 8/255 = 0.063 there, and their L2 radius r is 2 r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.parts.cell import given

LossGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # x (B, ...), y (B,) -> loss (B,), gradient like x
Norm = Literal["linf", "l2"]
NORMS = get_args(Norm)
TINY = 1e-12  # a zero gradient has no direction: the image stays where it is (foolbox's rule too)


def cross_entropy_gradient(model: Callable[[Tensor], Tensor]) -> LossGradient:
    """The plain white-box attacker, of a model x (B, ...) -> logits (B, C).

    An attack on a defence that is random or not differentiable hands `pgd` another such callable: EOT averages
    over the defence's chains, BPDA replaces their backward pass. Only the input's gradient is computed.
    """

    def loss_gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(model(x), y, reduction="none")
            return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    return loss_gradient


def pgd(
    model: Callable[[Tensor], Tensor] | None,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: str,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    low: float = -1.0,
    high: float = 1.0,
    loss_gradient: LossGradient | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, Sec. 2.1): x <- P(x + step_size * steepest ascent of the loss),
    where P projects on the ball around the clean image, then on the range of images.

    Args:
        model: x (B, ...) -> logits (B, C), used in the mode it is in: call model.eval() before. None: loss_gradient says
            all.
        x, y: clean images (B, ...) in [low, high], labels (B,).
        epsilon: the ball's radius >= 0, in units of x.   norm: 'linf' or 'l2'.
        step_size: in units of x; None: 2.5 epsilon / steps (Madry et al.), which can cross the ball and return.
        restarts: chains from different random points; of their last states, the one of highest loss is kept.
        random_start: begin uniformly in the ball, not at x.   generator: a CPU generator, for the starts.
        loss_gradient: (x, y) -> loss (B,), gradient like x; None: cross_entropy_gradient(model).
    Returns: adversarial images, shape of x, within epsilon of x and in [low, high] (to rounding).
    Raises: ValueError for neither model nor loss_gradient, an unknown norm, a negative epsilon, fewer than one step or
        restart, or images that are not floats in [low, high].
    """
    check(x, [epsilon], norm, steps, restarts, low, high)
    x = x.detach()
    if epsilon == 0:
        return x.clone()
    step = 2.5 * epsilon / steps if step_size is None else step_size
    attacker = loss_gradient or cross_entropy_gradient(given(model, "model None: expected a model, or a loss_gradient"))

    def chain() -> Tensor:
        x_adv = (x + uniform_in_ball(x, epsilon, norm, generator)).clamp(low, high) if random_start else x
        for _ in range(steps):
            _, g = attacker(x_adv, y)
            x_adv = (x + project(x_adv + step * steepest(g, norm) - x, epsilon, norm)).clamp(low, high)
        return x_adv

    best = chain()
    if restarts == 1:
        return best  # nothing to compare: save a pass
    highest, _ = attacker(best, y)
    for _ in range(restarts - 1):
        x_adv = chain()
        loss, _ = attacker(x_adv, y)
        better = loss > highest
        best, highest = torch.where(broadcast(better, x), x_adv, best), torch.where(better, loss, highest)
    return best


# ------------------------------------------------------------------------------------------- balls and directions
def broadcast(v: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to broadcast over x."""
    return v.view(-1, *[1] * (x.dim() - 1))


def length(x: Tensor) -> Tensor:
    """L2 norm of each image of x (B, ...), at least TINY: (B, 1, ...)."""
    return broadcast(x.flatten(1).norm(dim=1).clamp_min(TINY), x)


def steepest(g: Tensor, norm: str) -> Tensor:
    """The unit step that raises the loss most, to first order."""
    return g.sign() if norm == "linf" else g / length(g)


def project(d: Tensor, epsilon: float, norm: str) -> Tensor:
    """Differences d (B, ...) from the clean images, brought into the ball of radius epsilon."""
    return d.clamp(-epsilon, epsilon) if norm == "linf" else d * (epsilon / length(d)).clamp_max(1)


def uniform_in_ball(x: Tensor, epsilon: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """Differences from x (B, ...), uniform in the ball's volume. Drawn on the CPU, so that a seed means the same on
    every device."""
    if norm == "linf":
        d = 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1
    else:
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        radius = torch.rand(len(x), generator=generator, dtype=x.dtype) ** (1 / x[0].numel())
        d = broadcast(radius, x) * z / length(z)
    return epsilon * d.to(x.device)


def check(
    x: Tensor, epsilons: Iterable[float], norm: str, steps: int, restarts: int, low: float = -1.0, high: float = 1.0
) -> None:
    """Raises: ValueError for what no attack can be made with, as `pgd` says. On a GPU, x is not looked at."""
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORMS)}")
    for epsilon in epsilons:
        if not 0 <= epsilon < float("inf"):
            raise ValueError(f"epsilon {epsilon}: expected a radius >= 0 in units of the [{low:g}, {high:g}] range")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps {steps}, restarts {restarts}: expected at least one of each")
    # On a GPU the look at the range would wait for the device, at each update of adversarial training.
    inside = x.is_cuda or bool(((x >= low) & (x <= high)).all())
    if not (x.is_floating_point() and len(x) and inside):
        raise ValueError(
            f"images {tuple(x.shape)} of {x.dtype}: expected at least one, of floats in "
            f"[{low:g}, {high:g}] (lib.data.to_range makes them from bytes)"
        )
