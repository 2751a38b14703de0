"""Worst-case detection (AT-EBM Sec. 5.2, Table 4): out-of-distribution images, moved in a ball to look like data.

AUROC compares clean test images with the attacked ones. The attack is APGD (Croce & Hein 2020, Alg. 1), which
chooses its step size. epsilon is in units of [low, high]: a radius r in AT-EBM's [0, 1] is 2 r in the JEM family's
[-1, 1]. AT-EBM: L2, epsilon 1.0 at 32 px (7.0 at 256) in [0, 1], 100 steps, 5 restarts, 1,024 images; at N px,
N / 32 moves a pixel as much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lib.parts.attacks import TINY, broadcast, check, steepest, uniform_in_ball
from lib.parts.energy import energy

MOMENTUM = 0.75  # alpha: the share of the new step; 1 - alpha carries the last move on
ENOUGH = 0.75  # rho: the share of steps that must raise the score, or the step size is halved
Score = Callable[[Tensor], Tensor]  # (B, ...) -> (B,), higher: more an inlier


def log_p_x(model) -> Score:
    """log p(x) + log Z = -E(x) in nats; for AT-EBM's one logit, f(x) itself. x (B, C, H, W) -> (B,). Eval mode:
    batch statistics would let the images of a batch act on each other."""
    return lambda x: -energy(model.eval()(x))


def max_p_y(model) -> Score:
    """The confidence p = max_y p(y|x) as its log-odds, log p - log(1 - p) in nats: x (B, C, H, W) -> (B,). Eval mode.

    Log-odds rank as p does, so AUROC is the same; but where p rounds to 1 (17 nats between the logits, in single
    precision) p and log p are flat: ties, and no gradient. The log-odds go on with the difference of the logits.
    Both sides of an AUROC need this scale (epsilon 0 gives clean images' scores); torch.sigmoid gives p back.
    Raises: ValueError, at the call, for fewer than two logits.
    """

    def log_odds(x: Tensor) -> Tensor:
        logits = model.eval()(x).float()
        if logits.shape[1] == 1:
            raise ValueError(f"max_p_y: logits {tuple(logits.shape)}; expected two classes or more. Use log_p_x")
        y = logits.argmax(1, keepdim=True)
        return logits.gather(1, y).squeeze(1) - logits.scatter(1, y, -torch.inf).logsumexp(1)

    return log_odds


def adaptive_pgd(
    score: Score,
    x: Tensor,
    *,
    epsilon: float,
    norm: str = "l2",
    steps: int = 100,
    restarts: int = 5,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Maximise s(x), image by image, over the ball and the range: the best point of all steps and restarts.

    The clean image is a candidate, and restart r has the same random numbers however many there are: from one seed
    the attack is never weaker than none, nor than one of fewer restarts.

    Args:
        score: s, differentiable; each image's score by itself.   x: clean images (B, ...), floats in [low, high].
        epsilon: the ball's radius >= 0, in units of x.   norm: 'l2' or 'linf'.
        restarts: starts, uniform in the ball.   generator: a CPU generator, for them.
    Returns: images, shape of x, within epsilon of x and in [low, high] (to rounding); their scores (B,).
    Raises: ValueError for an unknown norm, a negative epsilon, fewer than one step or restart, images that are not
        floats in [low, high], a score of another shape than (B,), or a clean score that is not finite.
    """
    check(x, [epsilon], norm, steps, restarts, low, high)
    x = x.detach()
    best, top = x.clone(), _value_and_gradient(score, x)[0]  # the clean images
    if not top.isfinite().all():
        raise ValueError(f"{(~top.isfinite()).sum()} of {len(x)} clean scores are not finite: has the model diverged?")
    for _ in range(restarts if epsilon else 0):
        start = (x + uniform_in_ball(x, epsilon, norm, generator)).clamp(low, high)
        found, s = _chain(score, x, start, epsilon, norm, steps, low, high)
        best, top = _where(s > top, (found, s), (best, top))
    return best, top


def worst_case_scores(
    score: Score,
    x: Tensor,
    *,
    epsilon: float,
    norm: str = "l2",
    steps: int = 100,
    restarts: int = 5,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    batch: int = 256,
    device="cpu",
) -> np.ndarray:
    """Scores (n,) of attacked images: the `outside` of `uncertainty.auroc`. Arguments as in `adaptive_pgd`, except for

        x: uint8 images (n, C, H, W), mapped to [low, high], the range that the network takes. The attacked ones are
            not rounded to bytes (nor are AT-EBM's).   batch: images at once; batch i draws its starts from seed + i.
    Raises: ValueError as there, and for images that are not bytes, no image, no batch, an empty range.
    """
    if x.dtype != torch.uint8 or not len(x) or batch < 1 or not low < high:
        raise ValueError(
            f"images {tuple(x.shape)} of {x.dtype}, batch {batch}, range [{low:g}, {high:g}]: expected "
            "uint8 (lib.data.to_bytes makes it), at least one image and one a batch, low < high"
        )
    found = []  # (batch,) each
    for i, part in enumerate(x.split(batch)):
        images = (part.to(device).float() / (255 / (high - low)) + low).clamp(low, high)
        found.append(
            adaptive_pgd(
                score,
                images,
                epsilon=epsilon,
                norm=norm,
                steps=steps,
                restarts=restarts,
                low=low,
                high=high,
                generator=torch.Generator().manual_seed(seed + i),
            )[1].cpu()
        )
    return torch.cat(found).numpy()


def checkpoints(steps: int) -> list[int]:
    """When the step size may halve: ceil(p_j steps), p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06) (C & H, Sec. 3.2)."""
    p = [0, 22]  # in whole hundredths: no rounding
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    return sorted({-(-q * steps // 100) for q in p[1:-1]})


def project(z: Tensor, x: Tensor, epsilon: float, norm: str, low: float, high: float) -> Tensor:
    """The point nearest to z that is in the ball around x and in [low, high], as x must be; all of one shape.

    For L2: x + clip(t (z - x)), with the largest t in [0, 1] that stays in the ball. AutoAttack and `attacks.pgd` clip
    after shrinking, and so fall short of the sphere. t only rises: after any number of rounds the point is inside."""
    d, down, up = z - x, low - x, high - x
    if norm == "linf":
        return (x + d.clamp(-epsilon, epsilon)).clamp(low, high)
    t = d.new_zeros(len(d), *[1] * (d.dim() - 1))
    for _ in range(8):
        free = (t * d >= down) & (t * d <= up)
        spent = broadcast((d.clamp(down, up) * ~free).flatten(1).square().sum(1), d)
        rest = broadcast((d * free).flatten(1).square().sum(1), d).clamp_min(TINY**2)
        t = torch.maximum(t, ((epsilon**2 - spent).clamp_min(0) / rest).sqrt().clamp_max(1))
    return (x + t * d).clamp(low, high)


def _chain(
    score: Score, x: Tensor, start: Tensor, epsilon: float, norm: str, steps: int, low: float, high: float
) -> tuple[Tensor, ...]:
    """Croce & Hein's Algorithm 1, each image with its own step size -> best images, their scores."""
    now, before, (s, g) = start, start, _value_and_gradient(score, start)
    best: tuple[Tensor, ...] = (now, s, g)
    last = (0, s)  # the last checkpoint and its best score
    step = torch.full_like(s, 2 * epsilon)  # the ball's diameter: explore first
    halved, rises = torch.zeros_like(s).bool(), torch.zeros_like(s)  # rises: how many since the last checkpoint
    for k in range(1, steps + 1):
        z = project(now + broadcast(step, x) * steepest(g, norm), x, epsilon, norm, low, high)
        if k > 1:
            z = project(now + MOMENTUM * (z - now) + (1 - MOMENTUM) * (now - before), x, epsilon, norm, low, high)
        before, now, s_before, (s, g) = now, z, s, _value_and_gradient(score, z)
        rises = rises + (s > s_before)
        best = _where(s > best[1], (now, s, g), best)
        if k in checkpoints(steps):
            halved = (rises < ENOUGH * (k - last[0])) | (~halved & (best[1] == last[1]))
            step = torch.where(halved, step / 2, step)
            now, s, g = _where(halved, best, (now, s, g))  # go on from the best point
            rises, last = torch.zeros_like(s), (k, best[1])
    return best[:2]


def _value_and_gradient(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:  # s(x) (B,); ds/dx, none of the weights
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x)
        if s.shape != (len(x),):
            raise ValueError(f"score of shape {tuple(s.shape)} for {len(x)} images: expected one number each, (B,)")
        return s.detach(), torch.autograd.grad(s.sum(), x)[0]


def _where(mask: Tensor, yes, no) -> tuple[Tensor, ...]:  # by mask (B,), of tensors (B, ...)
    return tuple(torch.where(broadcast(mask, a), a, b) for a, b in zip(yes, no, strict=True))
