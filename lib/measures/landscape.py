"""A scalar around the weights theta: lines, planes and sharpness numbers (SADA-JEM Fig. 1, Sec. 3.1, appendix C).

Lines and planes follow Li, Xu, Taylor, Studer, Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets", Sec. 4.
Random directions miss the few sharp ones: hence the numbers at the end, which depend on the weights' scale (Dinh 2017).
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.parts.energy import Energy

Direction = list[Tensor]  # one tensor per parameter, shaped like it
Loss = Callable[[], Tensor] | Sequence[Callable[[], Tensor]]  # () -> scalar of theta, or parts that sum to it


# ------------------------------------------------------------------------------------------- lines and planes
def directions(model: nn.Module, n: int, generator: torch.Generator) -> list[Direction]:
    """n random directions, each filter (slice of the first axis) as long as the model's own (Li et al. Sec. 4).

    Biases and batch-norm parameters (1-D) get zero, as there. generator: on the CPU. The same seed draws the same
    numbers for all models of one architecture, up to those norms. a = 1 moves every filter by its own length.
    """

    def like(p: Tensor) -> Tensor:
        if p.ndim <= 1:
            return torch.zeros_like(p)
        raw, axes = torch.randn(p.shape, generator=generator).to(p), tuple(range(1, p.ndim))
        length, own = (torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (raw, p.detach()))
        return raw / length * own

    return [[like(p) for p in model.parameters()] for _ in range(n)]


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a copy of parameters and buffers; afterwards they are what they were, to the bit."""
    live = [*model.parameters(), *model.buffers()]
    saved = [t.detach().clone() for t in live]
    try:
        yield saved  # parameters first
    finally:
        with torch.no_grad():
            for t, before in zip(live, saved, strict=True):
                t.copy_(before)


@torch.no_grad()
def line(model: nn.Module, value: Callable[[], float | Tensor], direction: Direction, at) -> Tensor:
    """value() at theta + a d for each a of `at` (K,): (K,) in double, inf and NaN kept. No gradients meanwhile."""
    have, want = [tuple(d.shape) for d in direction], [tuple(p.shape) for p in model.parameters()]
    if have != want:
        raise ValueError(
            f"a direction of {len(have)} tensors {have[:3]}...: expected {len(want)}, shaped as the "
            f"model's parameters {want[:3]}...; draw it with directions(model, ...)"
        )
    out = []
    with restored(model) as start:
        for a in at:
            for p, w, d in zip(model.parameters(), start, direction, strict=False):  # then, in start, the buffers
                p.copy_(w + float(a) * d)
            out.append(torch.as_tensor(value(), dtype=torch.float64, device="cpu"))
    return torch.stack(out)


def plane(model: nn.Module, value: Callable[[], float | Tensor], d1: Direction, d2: Direction, at1, at2) -> Tensor:
    """[i, j] = value() at theta + at1[i] d1 + at2[j] d2: (len(at1), len(at2)) in double. A line of lines."""
    return line(model, lambda: line(model, value, d2, at2), d1, at1)


def parts(f: Callable[..., Tensor], *tensors: Tensor, batch: int) -> list[Callable[[], Tensor]]:
    """The mean of f over n rows as scalars that sum to it, `batch` rows each: one graph at a time is in memory.

    f: rows of the tensors (b, ...) -> (b,), e.g. lambda x, y: F.cross_entropy(model(x), y, reduction='none').
    Exact where rows do not interact: call model.eval().
    """
    n = len(tensors[0])
    if n < 1 or batch < 1 or any(len(t) != n for t in tensors):
        raise ValueError(f"rows {[len(t) for t in tensors]}, batch {batch}: expected equally many rows, and both >= 1")

    def part(i: int) -> Tensor:
        return f(*(t[i : i + batch] for t in tensors)).double().sum() / n

    return [functools.partial(part, i) for i in range(0, n, batch)]


def _total(values: Iterable[Tensor]) -> Tensor:
    """Their sum, in their order."""
    return functools.reduce(operator.add, values)


def mean_energy(energy: Energy, x: Tensor, batch: int = 250) -> Callable[[], Tensor]:
    """() -> mean over the images of E_theta(x), in nats, as a function of theta to look at (no gradients).

    SADA-JEM appendix C sums over 10 % of the training images; the scale of our mean does not depend on how many.
    Eval mode makes it one well-defined function of theta; by the batch's own statistics it would depend on how images
    are grouped. The running statistics stay those at theta: a moved network is not normalised anew.
    Args: x (n, C, H, W) float32 in [-1, 1], on the model's device.   batch: images at a time, bounds the memory only.
    """
    if not x.is_floating_point() or energy.y is not None:
        raise ValueError(
            f"x of {x.dtype}, labels {energy.y}: expected floats in [-1, 1] and the energy E(x) without "
            "labels; use lib.data.to_range(x) and Energy(model)"
        )
    terms = parts(energy, x, batch=batch)

    @torch.no_grad()
    def value() -> Tensor:
        if any(m.training for m in energy.model.modules()):
            raise ValueError("model in training mode: expected eval mode; call model.eval()")
        return _total(term() for term in terms)

    return value


# ------------------------------------------------------------------------------------------- sharpness numbers
class Eigenvalue(NamedTuple):
    """v.Hv with |v| = 1; H has an eigenvalue within the residual of it."""

    value: float
    residual: float  # |Hv - value v|
    steps: int  # products Hv


def _grad(out: Tensor, ps: Sequence[Tensor], graph: bool = False) -> Tensor:
    """d out / d theta as one vector (P,); zero for parameters that out does not depend on."""
    if not (ps and out.requires_grad):
        raise ValueError(
            f"loss {float(out):.4g} without a graph, {len(ps)} trainable parameters: expected both; call "
            "model.requires_grad_(True), and give parts(...) instead of mean_energy(...)"
        )
    return torch.cat([g.flatten() for g in torch.autograd.grad(out, ps, create_graph=graph, materialize_grads=True)])


def largest_eigenvalue(
    model: nn.Module,
    loss: Loss,
    steps: int = 100,
    generator: torch.Generator | None = None,
    tol: float = 1e-2,
    which: str = "max",
) -> Eigenvalue:
    """An extreme eigenvalue of the loss's Hessian, by power iteration on products Hv from a random v (CPU generator).

    which: 'max', the largest: the sharpest way up. 'magnitude', the largest in magnitude, with its sign: what plain
    iteration finds (a tie of c and -c does not settle: see the residual). Where that is negative or has not settled,
    'max' goes on with H + |Hv| I (from a new v, if negative) and takes the greater v.Hv, which never exceeds the true one.
    Args: loss () -> scalar with a graph, or parts(...).   steps: at most, per iteration.   tol: on residual / |value|.
    """
    if which not in ("max", "magnitude") or steps < 1:
        raise ValueError(f"which {which!r}, steps {steps}: expected 'max' or 'magnitude', and at least one step")
    ps, terms = [p for p in model.parameters() if p.requires_grad], [loss] if callable(loss) else loss
    generator, like = generator or torch.Generator().manual_seed(0), next(model.parameters())
    size = sum(p.numel() for p in ps)

    def product(term: Callable[[], Tensor], v: Tensor) -> Tensor:
        slope = _grad(term(), ps, graph=True) @ v
        return _grad(slope, ps) if slope.requires_grad else torch.zeros_like(v)  # linear: no Hessian

    def iterate(v: Tensor, shift: float = 0.0) -> tuple[Eigenvalue, Tensor, float]:
        for k in range(1, steps + 1):
            v /= v.norm()
            hv = _total(product(term, v) for term in terms)
            value = float(v @ hv)
            if not abs(value) < float("inf"):
                raise ValueError(f"v.Hv = {value} in step {k}: expected a finite one; look at the weights and loss()")
            residual = float((hv - value * v).norm())
            if residual <= tol * abs(value):
                break
            v = hv + shift * v
        return Eigenvalue(value, residual, k), v, float(hv.norm())

    first, v, c = iterate(torch.randn(size, generator=generator).to(like))
    if which == "magnitude" or first.residual <= tol * first.value:  # settled, and not negative
        return first
    second, *_ = iterate(v if first.value > 0 else torch.randn(size, generator=generator).to(like), c)
    return max(first, second)._replace(steps=first.steps + second.steps)


def sharpness(model: nn.Module, loss: Loss, rho: float) -> float:
    """L(theta + rho g / |g|) - L(theta), g = dL/dtheta: to first order SAM's sharpness, the largest rise in a ball of radius
    rho, in units of the weights (SADA-JEM Eq. 7, which trains with 0.2). loss: () -> scalar with a graph, or parts(...)."""
    ps, terms = [p for p in model.parameters() if p.requires_grad], [loss] if callable(loss) else loss
    g = _total(_grad(term(), ps) for term in terms)
    if not (rho > 0 and 0 < g.norm() < float("inf")):
        raise ValueError(f"rho {rho}, |g| {float(g.norm())}: expected both finite and > 0; else use largest_eigenvalue")
    with restored(model), torch.no_grad():
        before = sum(float(term()) for term in terms)
        for p, e in zip(ps, (rho * g / g.norm()).split([p.numel() for p in ps]), strict=True):
            p.add_(e.view_as(p))
        return sum(float(term()) for term in terms) - before
