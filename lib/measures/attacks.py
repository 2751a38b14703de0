"""Robustness of a classifier with images in [-1, 1] to PGD: ours (lib.parts.attacks) to read, and foolbox's to report."""

from __future__ import annotations

import torch
from torch import Tensor

from lib import data
from lib.parts import networks
from lib.parts.attacks import NORMS, check, cross_entropy_gradient, pgd

__all__ = ["NORMS", "cross_entropy_gradient", "foolbox_pgd", "own_pgd", "pgd", "robust_accuracy"]


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
    check(x, epsilons, norm, steps, restarts)
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
    check(x, epsilons, norm, steps, restarts)
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    once = kind(rel_stepsize=2.5 / steps, abs_stepsize=step_size, steps=steps, random_start=random_start)
    attack = once.repeat(restarts)
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
    for i, (a, b) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
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
