"""Adversarial attacks on a classifier with images in [-1, 1]: PGD, ours to read and foolbox's to report.

epsilon is in units of the [-1, 1] range. The papers count on [0, 1], in 255ths for L-infinity: that range is half
as long, so their 8/255 is 2 * 8/255 = 0.063 here, and their L2 radius r is 2 r here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import data
from lib.parts import networks

NORMS = ("linf", "l2")
TINY = 1e-12  # a zero gradient has no direction: the image stays where it is (foolbox's rule too)


def cross_entropy_gradient(model) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The plain white-box attacker: x (B, ...), y (B,) -> loss (B,) and its gradient, shape of x.

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
    model,
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
    loss_gradient=None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018, Sec. 2.1): x <- P(x + step_size * steepest ascent of the loss),
    where P projects on the ball around the clean image, then on the range of images.

    Args:
        model: x (B, ...) -> logits (B, C), used in the mode it is in: call model.eval() before.
        x, y: clean images (B, ...) in [low, high], labels (B,).
        epsilon: the ball's radius >= 0, in units of x.   norm: 'linf' or 'l2'.
        step_size: in units of x; None: 2.5 epsilon / steps (Madry et al.), which can cross the ball and return.
        restarts: chains from different random points; of their last states, the one of highest loss is kept.
        random_start: begin uniformly in the ball, not at x.   generator: a CPU generator, for the starts.
        loss_gradient: (x, y) -> loss (B,), gradient like x; None: cross_entropy_gradient(model).
    Returns: adversarial images, shape of x, within epsilon of x and in [low, high] (to rounding).
    Raises: ValueError for an unknown norm, a negative epsilon, fewer than one step or restart, or images that are not
        floats in [low, high].
    """
    _check(x, [epsilon], norm, steps, restarts, low, high)
    x = x.detach()
    if epsilon == 0:
        return x.clone()
    step = 2.5 * epsilon / steps if step_size is None else step_size
    loss_gradient = loss_gradient or cross_entropy_gradient(model)
    best, highest = None, None
    for _ in range(restarts):
        x_adv = (x + _uniform_in_ball(x, epsilon, norm, generator)).clamp(low, high) if random_start else x
        for _ in range(steps):
            _, g = loss_gradient(x_adv, y)
            x_adv = (x + _project(x_adv + step * _steepest(g, norm) - x, epsilon, norm)).clamp(low, high)
        if restarts == 1:
            return x_adv  # nothing to compare: save a pass
        loss, _ = loss_gradient(x_adv, y)
        if best is None:
            best, highest = x_adv, loss
        better = loss > highest
        best, highest = torch.where(_over(better, x), x_adv, best), torch.where(better, loss, highest)
    return best


def own_pgd(
    model,
    x: Tensor,
    y: Tensor,
    epsilons,
    norm: str,
    steps: int = 40,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
) -> list[float]:
    """Robust accuracy, one number in [0, 1] per epsilon, by `pgd`; arguments as there. Puts the model in eval mode.

    An image counts as robust where no restart fools the model. Each epsilon uses the same random numbers, so that a
    point of a curve does not depend on which other points were asked for.
    """
    _check(x, epsilons, norm, steps, restarts)
    model.eval()
    found = []
    for epsilon in epsilons:
        g, robust = torch.Generator().manual_seed(seed), torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(restarts):
            x_adv = pgd(
                model,
                x,
                y,
                epsilon=epsilon,
                norm=norm,
                steps=steps,
                step_size=step_size,
                random_start=random_start,
                generator=g,
            )
            with torch.no_grad():
                robust &= model(x_adv).argmax(1) == y
        found.append(robust.double().mean().item())
    return found


def foolbox_pgd(
    model,
    x: Tensor,
    y: Tensor,
    epsilons,
    norm: str,
    steps: int = 40,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
) -> list[float]:
    """The same as `own_pgd` by foolbox (Rauber et al. 2017), the library behind JEM++'s robustness curves."""
    _check(x, epsilons, norm, steps, restarts)
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = kind(rel_stepsize=2.5 / steps, abs_stepsize=step_size, steps=steps, random_start=random_start)
    attack = attack.repeat(restarts)
    found = []
    # foolbox draws from torch's global generator: seed it, and leave it as it was found. It also calls backward(), which
    # would add to every weight's .grad.
    with networks.frozen(model.eval()), torch.random.fork_rng([x.device] if x.is_cuda else []):
        target = foolbox.PyTorchModel(model, bounds=(-1, 1), device=x.device)
        for epsilon in epsilons:
            torch.manual_seed(seed)
            _, _, fooled = attack(target, x, y, epsilons=[epsilon])  # (1, B)
            found.append((~fooled).double().mean().item())
    return found


def robust_accuracy(
    model,
    x: Tensor,
    y: Tensor,
    epsilons,
    norm: str,
    steps: int = 40,
    by: str = "foolbox",
    *,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    batch: int = 500,
    device="cpu",
) -> list[float]:
    """Accuracy under PGD, one number in [0, 1] per epsilon; epsilon 0 is the clean accuracy.

    PGD bounds robustness from above only, and a weak attack need not be monotone in epsilon: nothing here forces it.

    Args:
        x, y: uint8 images (n, C, H, W), labels (n,).   epsilons: radii in units of the [-1, 1] range.
        by: 'foolbox' or 'ours'; the other arguments as in `pgd`.
    Raises: ValueError as `pgd` does, and for an unknown `by` or no image.
    """
    attacks = {"foolbox": foolbox_pgd, "ours": own_pgd}
    if by not in attacks:
        raise ValueError(f"by {by!r}: expected one of {sorted(attacks)}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected equally many, and at least one")
    hits = torch.zeros(len(epsilons), dtype=torch.float64)
    for i, (a, b) in enumerate(zip(x.split(batch), y.split(batch))):
        shares = attacks[by](
            model,
            data.to_range(a.to(device)),
            b.to(device),
            epsilons,
            norm,
            steps,
            step_size=step_size,
            restarts=restarts,
            random_start=random_start,
            seed=seed + i,
        )
        hits += len(a) * torch.tensor(shares, dtype=torch.float64)
    return (hits / len(x)).tolist()


# ------------------------------------------------------------------------------------------- balls and directions
def _over(v: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to broadcast over x."""
    return v.view(-1, *[1] * (x.dim() - 1))


def _length(x: Tensor) -> Tensor:
    return _over(x.flatten(1).norm(dim=1).clamp_min(TINY), x)


def _steepest(g: Tensor, norm: str) -> Tensor:
    """The unit step that raises the loss most, to first order."""
    return g.sign() if norm == "linf" else g / _length(g)


def _project(d: Tensor, epsilon: float, norm: str) -> Tensor:
    return d.clamp(-epsilon, epsilon) if norm == "linf" else d * (epsilon / _length(d)).clamp_max(1)


def _uniform_in_ball(x: Tensor, epsilon: float, norm: str, generator) -> Tensor:
    """Uniform in the volume. Drawn on the CPU, so that a seed means the same on every device."""
    if norm == "linf":
        d = 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1
    else:
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        radius = torch.rand(len(x), generator=generator, dtype=x.dtype) ** (1 / x[0].numel())
        d = _over(radius, x) * z / _length(z)
    return epsilon * d.to(x.device)


def _check(x: Tensor, epsilons, norm: str, steps: int, restarts: int, low: float = -1.0, high: float = 1.0) -> None:
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
