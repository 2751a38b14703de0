"""A classifier behind its own Langevin chain, and the attacks made for that defence (SADA-JEM Sec. 4.4, Fig. 5).

The defence (Hill, Mitchell & Zhu, "Stochastic Security", ICLR 2021) samples from the image that it is given, and
averages the logits of several such purifications. PGD on the bare classifier does not see the chain. EOT averages over
the chain's noise, BPDA runs backwards as if the chain were the identity (Athalye, Carlini & Wagner, ICML 2018).

The SADA-JEM code has one attack, Hill et al.'s, and both words stand for it: the loss of logits averaged over 15
chains (EOT), whose gradient at the purified images is handed back (BPDA); 150 chains verify. That is `bpda` here;
`eot`, through the chain, is in neither code. Where ours differs: theirs tests every state that PGD passes, an image
broken once being broken (ours tests the last); steps by 2/255 of [0, 1] in any ball (ours by 2.5 epsilon / steps);
does not clip its chains. As released, SADA-JEM's code cannot purify: its configuration has 0 Langevin steps, which is
plain PGD (Hill et al.: 1500), and with more it takes -E for E, of the first image of a batch only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import data
from lib.measures import attacks
from lib.parts import samplers
from lib.parts.energy import Energy

ATTACKS = ("pgd", "bpda", "eot")
CHUNK = 512  # states of a chain held in memory at once
LossGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Chain(TypedDict):
    """Of the defence and of the attacks on it; as in `purify`."""

    steps: int
    alpha: float
    noise: float
    chunk: int


# -------------------------------------------------------------------------------------------------- the defence
def purify(
    E: Energy,
    x: Tensor,
    *,
    steps: int,
    alpha: float,
    noise: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """The last state of the model's own SGLD chain from x: x <- x - alpha dE/dx + noise eps, `steps` times.

    Args:
        E: an energy E(x), no class given, its network in eval mode.   x: images (B, ...), attacked or not.
        steps: >= 0; 0 returns x.   alpha, noise: >= 0, in units of x (JEM: 1 and 0.01).
        clip: (low, high), the range of valid images; None: unbounded.   generator: on x's device.
    Raises: ValueError for negative numbers, an energy E(x, y) and a network in training mode.
    """
    _check(E, 1, steps, alpha, noise)
    if steps == 0:
        return x
    return samplers.last(samplers.SGLD(K=steps, alpha=alpha, noise=noise, clip=clip or False)(E, x, generator))


def defended_logits(
    E: Energy,
    x: Tensor,
    *,
    chains: int,
    steps: int,
    alpha: float,
    noise: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """What the defended classifier says: f averaged over independent purifications of each image.

    x (B, ...) -> (B, C), without a gradient. `chains` >= 1 per image; at most `chunk` states at once; else as `purify`.
    """
    _check(E, chains, steps, alpha, noise, chunk)
    with torch.no_grad():
        logits = [
            E.logits(purify(E, part, steps=steps, alpha=alpha, noise=noise, clip=clip, generator=generator))
            for part in x.repeat_interleave(chains, 0).split(chunk)
        ]
        return _average(torch.cat(logits), chains)


# -------------------------------------------------------------------------------------------------- the attacks
def bpda(
    E: Energy,
    *,
    chains: int,
    steps: int,
    alpha: float,
    noise: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> LossGradient:
    """BPDA + EOT, as Hill et al. and SADA-JEM attack: a `loss_gradient` for lib.measures.attacks.pgd.

    x (B, ...), y (B,) -> the cross-entropy (B,) of the logits averaged over `chains` purifications, and the sum over
    these of its gradient at each purified image, shape of x: right if the chain's derivative were the identity.
    Every call draws fresh noise from `generator`, on x's device. Arguments and errors as `defended_logits`.
    """
    _check(E, chains, steps, alpha, noise, chunk)

    def purifier(x: Tensor) -> tuple[Tensor, Tensor]:
        x = purify(E, x, steps=steps, alpha=alpha, noise=noise, clip=clip, generator=generator)
        x = x.detach().requires_grad_()
        return x, x

    return _loss_gradient(E, purifier, chains, max(1, chunk // chains))


def eot(
    E: Energy,
    *,
    chains: int,
    steps: int,
    alpha: float,
    noise: float,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> LossGradient:
    """EOT without BPDA: as `bpda`, but the gradient passes through the chain, whose derivative holds Hessians of E.

    Exact for the noise drawn, at four to five times the price, and every step stays in memory: `chunk` counts the
    states of all steps. A pixel loses its own gradient where a step clips it to the range, so that this attack can be
    weaker than `bpda` on images with much black or white.
    """
    _check(E, chains, steps, alpha, noise, chunk)

    def purifier(x: Tensor) -> tuple[Tensor, Tensor]:
        start = x = x.detach().requires_grad_()
        for _ in range(steps):  # SGLD, with a graph
            g = torch.autograd.grad(E(x).sum(), x, create_graph=True)[0]
            x = samplers.perturbed(samplers.clipped(x - alpha * g, clip), noise, clip, generator)
        return start, x

    return _loss_gradient(E, purifier, chains, max(1, chunk // (chains * max(steps, 1))))


def _loss_gradient(E: Energy, purifier, chains: int, images: int) -> LossGradient:
    """`purifier`: start images (n, ...) -> the images whose gradient is wanted, and the purified ones. All chains of
    an image share a loss, so that memory is bounded by taking `images` at a time."""

    def loss_gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for a, b in zip(x.split(images), y.split(images), strict=True):
            with torch.enable_grad():
                start, purified = purifier(a.repeat_interleave(chains, 0))
                loss = F.cross_entropy(_average(E.logits(purified), chains), b, reduction="none")
                g = torch.autograd.grad(loss.sum(), start)[0]
            losses.append(loss.detach())
            gradients.append(g.unflatten(0, (-1, chains)).sum(1))
        return torch.cat(losses), torch.cat(gradients)

    return loss_gradient


def purified_accuracy(
    E: Energy,
    x: Tensor,
    y: Tensor,
    epsilons,
    norm: str,
    *,
    attack: str = "bpda",
    steps: int,
    alpha: float,
    noise: float,
    attack_chains: int = 15,
    defend_chains: int = 150,
    attack_steps: int = 40,
    seed: int = 0,
    batch: int = 500,
    chunk: int = CHUNK,
    device="cpu",
) -> list[float]:
    """Accuracy of the defended classifier under attack, one number in [0, 1] per epsilon. Puts the model in eval mode.

    No kind of attack is the strongest on every model: report the lowest of their accuracies.

    PGD's last state is purified once more, with noise that the attacker did not see. Each epsilon and each kind of attack
    meets the same start in the ball and the same noise of the defence. With steps = 0 every kind is plain PGD: the
    accuracy is lib.measures.attacks.robust_accuracy's, by 'ours'.

    Args:
        x, y: uint8 images (n, C, H, W), labels (n,).   epsilons, norm: as in lib.measures.attacks, in units of [-1, 1].
        attack: 'bpda', 'eot', or 'pgd' on the classifier without its defence.
        steps, alpha, noise: the chain, as in `purify`.   attack_chains, defend_chains: the codes' 15 and 150.
        attack_steps: of PGD, each 2.5 epsilon / attack_steps long.   batch, chunk: images and chain states at once.
    Raises: ValueError as `purify` and lib.measures.attacks.pgd do, and for an unknown attack or no image.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r}: expected one of {', '.join(ATTACKS)}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected equally many, and at least one")
    E.model.eval()
    chain: Chain = {"steps": steps, "alpha": alpha, "noise": noise, "chunk": chunk}
    hits = [0] * len(epsilons)
    for i, (a, b) in enumerate(zip(x.split(batch), y.split(batch), strict=True)):
        a, b = data.to_range(a.to(device)), b.to(device)
        for j, epsilon in enumerate(epsilons):
            # three streams: mt19937 keeps 32 bits of its seed, so that they differ within these
            starts = torch.Generator().manual_seed(seed + i)
            theirs, ours = (torch.Generator(device).manual_seed(seed + i + k * 10**6) for k in (1, 2))
            if attack == "pgd":
                climbed = attacks.cross_entropy_gradient(E.logits)
            else:
                climbed = {"bpda": bpda, "eot": eot}[attack](E, chains=attack_chains, generator=theirs, **chain)
            x_adv = attacks.pgd(
                None, a, b, epsilon=epsilon, norm=norm, steps=attack_steps, generator=starts, loss_gradient=climbed
            )
            said = defended_logits(E, x_adv, chains=defend_chains, generator=ours, **chain).argmax(1)
            hits[j] += (said == b).sum().item()
    return [h / len(x) for h in hits]


def _average(logits: Tensor, chains: int) -> Tensor:
    return logits.unflatten(0, (-1, chains)).mean(1)  # (B chains, C) -> (B, C)


def _check(E: Energy, chains: int, steps: int, alpha: float, noise: float, chunk: int = 1) -> None:
    if chains < 1 or chunk < 1:
        raise ValueError(f"chains {chains}, chunk {chunk}: expected at least one of each")
    if not (steps >= 0 and 0 <= alpha < float("inf") and 0 <= noise < float("inf")):
        raise ValueError(f"steps {steps}, alpha {alpha}, noise {noise}: expected finite numbers >= 0")
    if getattr(E, "y", None) is not None:
        raise ValueError("an energy E(x, y): the defence knows no label; purify with lib.parts.energy.Energy(model)")
    if getattr(getattr(E, "model", None), "training", False):
        raise ValueError("the network is in training mode, where batch norm couples the images: call model.eval()")
