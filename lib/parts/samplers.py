"""How a chain steps: each sampler is a generator that yields x^1, x^2, ...; `last` runs it to the end.

Every sampler descends E.  `alpha` multiplies the gradient as it stands: the texts' SGLD (JEM++ Eq. 3)
writes alpha/2, the official codes alpha; we follow the codes, and notebook 04 shows the difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from lib.parts.energy import Energy, gradient

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last(chain: Iterable[Tensor]) -> Tensor:
    """Run a chain to its end and return the last state, detached."""
    x = None
    for x in chain:
        pass
    if x is None:
        raise ValueError("the chain has no steps: expected K (or M) >= 1")
    return x.detach()


def sgld(
    E,
    x: Tensor,
    *,
    K: int,
    alpha: float,
    noise: float = 0.0,
    clip: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Stochastic gradient Langevin dynamics: x <- x - alpha dE/dx + noise eps  (JEM++ Eq. 3).

    Exact Langevin dynamics, whose stationary density tends to exp(-E)/Z as the step tends to zero, has
    noise = sqrt(2 alpha). JEM uses alpha = 1 and noise = 0.01: nearly plain descent.

    Args:
        E: energy (B, ...) -> (B,).   x: chain starts (B, ...).   K: number of steps.
        clip: (low, high), the range of valid images; None: unbounded.
    """
    yield from _descend(E, x, K, alpha, None, noise, clip, generator)


def proximal_sgld(
    E,
    x: Tensor,
    *,
    K: int,
    alpha: float,
    epsilon: float = 1.0,
    noise: float = 0.0,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Proximal SGLD (JEM++ Eq. 10): the gradient is clamped to [-epsilon, epsilon], so that no step
    moves a pixel by more than alpha * epsilon."""
    yield from _descend(E, x, K, alpha, epsilon, noise, clip, generator)


def _descend(E, x, K, alpha, epsilon, noise, clip, generator):
    for _ in range(K):
        g = gradient(E, x)
        if epsilon is not None:
            g = g.clamp_(-epsilon, epsilon)
        yield (x := _perturb(_clip(x - alpha * g, clip), noise, clip, generator))


def pyld(
    E: Energy,
    x: Tensor,
    *,
    M: int,
    N: int,
    alpha: float,
    epsilon: float = 1.0,
    noise: float = 0.0,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    closed_form: bool = True,
) -> Iterator[Tensor]:
    """PYLD-M-N sampling (JEM++ Algorithm 1): M full passes, N cheap inner steps after each.

    The slack variable p = dE/df0(x) is frozen during the inner steps, whose gradient is
    gamma = p . df0/dx. Where f0 is linear, gamma does not depend on x: it equals dE/dx at the outer
    state, the N clamped and clipped steps compose to one step N times as long, and
    PYLD-M-N(alpha) is proximal SGLD with K = M and step N * alpha. That closed form is used where it
    holds (`closed_form=True`); the loop is kept for a nonlinear first block, where PYLD is a sampler of
    its own, and for comparison. Yields x after each of the M outer steps.
    """
    if closed_form and isinstance(E.model.first, LINEAR) and (clip is None or _inside(x, clip)):
        yield from _descend(E, x, M, N * alpha, epsilon, noise, clip, generator)
        return
    for _ in range(M):
        with torch.enable_grad():
            h = E.first(x).detach().requires_grad_()
            p = torch.autograd.grad(E.tail(h).sum(), h)[0]  # the slack variable, Eq. 13
        for _ in range(N):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                gamma = torch.autograd.grad(E.first(x), x, grad_outputs=p)[0]
            x = _clip(x.detach() - alpha * gamma.clamp(-epsilon, epsilon), clip)
        yield (x := _perturb(x, noise, clip, generator))


def pgd(
    E,
    x: Tensor,
    *,
    K: int,
    alpha: float,
    radius: float | None = None,
    clip: tuple[float, float] | None = (0.0, 1.0),
    climb: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """PGD sampling (AT-EBM Eq. 7, 8): x <- P(x - alpha g / |g|_2), g = dE/dx; with E = -f this is the paper's ascent on f.

    Every step has length alpha whatever the energy's scale, so K steps move an image by at most K alpha; there is no
    noise, hence the need for diverse starts. Yields x after each step.

    Args:
        E: energy (B, ...) -> (B,).   x: chain starts (B, ...).   alpha: step length, L2, in units of x.
        radius: of the L2 ball around the start on which P projects; None: unbounded.
        clip: (low, high), the range of valid images; None: unbounded.
        climb: go up E instead, as the code perturbs real images.   generator: unused, PGD is deterministic.
    """
    start = x
    for _ in range(K):
        g = gradient(E, x)
        direction = g / _norm(g).clamp_min(1e-12)
        x = x + alpha * direction if climb else x - alpha * direction
        if radius is not None:
            moved = x - start
            x = start + moved * (radius / _norm(moved).clamp_min(1e-12)).clamp_max(1)
        yield (x := _clip(x, clip))


def _norm(x: Tensor) -> Tensor:
    """L2 norm of each image, (B, 1, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


def sample(
    E: Energy, x: Tensor, step, generator: torch.Generator | None = None, low: float = -1.0, **changes
) -> Iterator[Tensor]:
    """The chain that a run's `step` configuration describes (lib.params.Step): one cell of the table. Images are in
    [low, 1]; `changes` replace arguments of the sampler (K, while it grows)."""
    own = step.arguments(low) | changes
    return SAMPLERS[step.kind](E, x, generator=generator, **own)


class Graph:
    """A chain as one CUDA graph: captured at the first call, then launched at once in place of kernel by kernel, where a
    small network's GPU waits for Python. Not yet run on a GPU: tested with a stand-in for torch.cuda.

    The graph reads weights where they lie (optimisers and load_state_dict write in place) and takes images of one shape.
    Where a capture fails, one warning, and the chain runs as it is.

    Args:
        chain: x0 (B, ...) -> x^K, which waits for nothing on the device.   state: tensors that it changes in place
        (running statistics).   generator: the device's, from which it draws noise.
    """

    def __init__(self, chain: Callable[[Tensor], Tensor], state: Iterable[Tensor] = (), generator=None):
        self.chain, self.state, self.generator = chain, list(state), generator
        self.graph = None  # None: not yet captured; False: cannot be

    def __call__(self, x: Tensor) -> Tensor:
        if self.graph is None:
            try:
                self.graph = self._capture(x)
            except RuntimeError as e:
                self.graph = False
                warnings.warn(f"no CUDA graph ({str(e).splitlines()[0]}): the chain runs step by step", stacklevel=2)
        if self.graph is False:
            return self.chain(x)
        self.start.copy_(x)
        self.graph.replay()
        return self.end.clone()  # the next launch overwrites it

    def _capture(self, x: Tensor):
        before, drawn = [t.clone() for t in self.state], self.generator and self.generator.get_state()
        self.start, side = x.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):  # warm-up: libraries allocate and choose algorithms
                for _ in range(2):
                    self.chain(self.start)
            torch.cuda.current_stream().wait_stream(side)
        finally:  # which must leave no trace
            for t, value in zip(self.state, before):
                t.copy_(value)
            if self.generator:
                self.generator.set_state(drawn)
        graph = torch.cuda.CUDAGraph()
        if self.generator:
            graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.end = self.chain(self.start)
        return graph


SAMPLERS = {"sgld": sgld, "proximal": proximal_sgld, "pyld": pyld, "pgd": pgd}


def _inside(x: Tensor, clip: tuple[float, float]) -> bool:
    # Clipping N small steps equals clipping one long one only for a start inside the box. On a GPU the
    # test would wait for the device, and every start of this project is inside by construction.
    return x.is_cuda or bool((x >= clip[0]).all() & (x <= clip[1]).all())


def _clip(x: Tensor, clip) -> Tensor:
    return x if clip is None else x.clamp(*clip)


def _perturb(x: Tensor, noise: float, clip, generator) -> Tensor:
    """The chain's noise; clipped again, so that every state is a valid image."""
    if not noise:
        return x
    eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return _clip(x + noise * eps, clip)
