"""How a chain steps: each cell is a sampler, a generator that yields x^1, x^2, ...; `last` runs it to the end.

    chain = Proximal(K=10, alpha=1.0, epsilon=1.0)(E, x0, generator)

Every sampler descends E.  `alpha` multiplies the gradient as it stands: the texts' SGLD (JEM++ Eq. 3)
writes alpha/2, the official codes alpha; we follow the codes, and notebook 04 shows the difference.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from lib.parts.cell import Cell, Count, Positive, Weight
from lib.parts.energy import Energy, EnergyFunction, gradient
from lib.parts.schedules import Average, Growth, Length

Box = tuple[float, float]  # (low, high), of every pixel
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last(chain: Iterable[Tensor]) -> Tensor:
    """Run a chain to its end and return the last state, detached. Raises: ValueError for a chain of no steps."""
    end = deque(chain, maxlen=1)
    if not end:
        raise ValueError("the chain has no steps: expected K (or M) >= 1")
    return end[0].detach()


def _box(clip: object) -> object:
    if isinstance(clip, bool):
        return clip
    numbers = isinstance(clip, tuple) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in clip)
    if not (isinstance(clip, tuple) and numbers and len(clip) == 2 and -math.inf < clip[0] < clip[1] < math.inf):
        raise ValueError("expected true, false, or a range [low, high] with low < high")
    return clip


class _Step(Cell):
    """What all samplers share. Each is called with

    E: energy (B, ...) -> (B,).   x: chain starts (B, ...).   generator: on x's device.
    low: of the range [low, 1] of images, to which `clip: true` keeps every state.
    K: the number of steps of this chain; None: the cell's own.
    """

    counts: ClassVar[str] = "K"  # the setting that says how many steps
    alpha: Positive
    clip: Annotated[bool | Box, BeforeValidator(_box)] = (
        True  # true: to the range of images; false: unbounded; or a range (low, high)
    )
    growth: Growth | None = None  # how the number of steps grows while training; None: it is fixed

    @property
    def passes(self) -> int:
        """Full forward and backward passes per chain."""
        return self.steps

    def uphill(self, E: EnergyFunction, x: Tensor, low: float = -1.0) -> Tensor:
        """What becomes of real images x before the loss sees them: nothing, but for PGD's `real`."""
        return x

    def box(self, low: float) -> Box | None:
        """Where every state stays, for images in [low, 1]; None: it may be anywhere."""
        if isinstance(self.clip, tuple):
            return self.clip
        return (low, 1.0) if self.clip else None

    def length(self, total: int, average: Average | None = None) -> Length:
        """The number of steps at each of `total` updates. average: of several processes (lib.training.distributed)."""
        return self.growth.build(self.steps, total, average) if self.growth else Length(self.steps)

    @property
    def steps(self) -> int:
        """K, or PYLD's M."""
        return getattr(self, self.counts)

    def of_length(self, K: int) -> Self:
        """The same sampler with K steps."""
        return self.model_copy(update={self.counts: K})

    @model_validator(mode="after")
    def _begins_below_the_end(self) -> Self:
        if (first := getattr(self.growth, "first", 0)) > self.steps:
            raise ValueError(f"growth.first: {first} is beyond K: {self.steps}; expected at most K")
        return self


class SGLD(_Step):
    """Stochastic gradient Langevin dynamics: x <- x - alpha dE/dx + noise eps  (JEM++ Eq. 3).

    Exact Langevin dynamics, whose stationary density tends to exp(-E)/Z as the step tends to zero, has
    noise = sqrt(2 alpha). JEM uses alpha = 1 and noise = 0.01: nearly plain descent.
    """

    kind: Literal["sgld"] = "sgld"
    K: Count
    noise: Weight = 0.0

    def __call__(
        self, E: EnergyFunction, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0, K: int | None = None
    ) -> Iterator[Tensor]:
        for _ in range(self.K if K is None else K):
            x = clipped(x - self.alpha * gradient(E, x), self.box(low))
            yield (x := perturbed(x, self.noise, self.box(low), generator))


class Proximal(_Step):
    """Proximal SGLD (JEM++ Eq. 10): the gradient is clamped to [-epsilon, epsilon], so that no step
    moves a pixel by more than alpha * epsilon."""

    kind: Literal["proximal"] = "proximal"
    K: Count
    epsilon: Annotated[float, Field(gt=0)]  # .inf: no constraint
    noise: Weight = 0.0

    def __call__(
        self, E: EnergyFunction, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0, K: int | None = None
    ) -> Iterator[Tensor]:
        for _ in range(self.K if K is None else K):
            g = gradient(E, x).clamp_(-self.epsilon, self.epsilon)
            x = clipped(x - self.alpha * g, self.box(low))
            yield (x := perturbed(x, self.noise, self.box(low), generator))


class PYLD(_Step):
    """PYLD-M-N sampling (JEM++ Algorithm 1): M full passes, N cheap inner steps after each.

    The slack variable p = dE/df0(x) is frozen during the inner steps, whose gradient is
    gamma = p . df0/dx. Where f0 is linear, gamma does not depend on x: it equals dE/dx at the outer
    state, the N clamped and clipped steps compose to one step N times as long, and
    PYLD-M-N(alpha) is proximal SGLD with K = M and step N * alpha. That closed form is used where it
    holds (`closed_form: true`); the loop is kept for a nonlinear first block, where PYLD is a sampler of
    its own, and for comparison. Yields x after each of the M outer steps.
    """

    counts = "M"
    kind: Literal["pyld"] = "pyld"
    M: Count
    N: Count
    epsilon: Positive | None = None  # None: no proximity constraint
    noise: Weight = 0.0
    closed_form: bool = True

    def __call__(
        self, E: Energy, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0, K: int | None = None
    ) -> Iterator[Tensor]:
        M, N, clip = self.M if K is None else K, self.N, self.box(low)
        epsilon = math.inf if self.epsilon is None else self.epsilon
        if self.closed_form and isinstance(E.model.first, LINEAR) and (clip is None or _inside(x, clip)):
            once = Proximal(K=self.M, alpha=N * self.alpha, epsilon=epsilon, noise=self.noise, clip=clip or False)
            yield from once(E, x, generator, K=M)
            return
        for _ in range(M):
            with torch.enable_grad():
                h = E.first(x).detach().requires_grad_()
                p = torch.autograd.grad(E.tail(h).sum(), h)[0]  # the slack variable, Eq. 13
            for _ in range(N):
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    gamma = torch.autograd.grad(E.first(x), x, grad_outputs=p)[0]
                x = clipped(x.detach() - self.alpha * gamma.clamp(-epsilon, epsilon), clip)
            yield (x := perturbed(x, self.noise, clip, generator))


class Uphill(Cell):
    """What AT-EBM's code does to real images, too: it moves them up E, a few steps, before the loss sees them."""

    steps: Count
    radius: Positive | None = None  # of the L2 ball around the image; None: unbounded


class PGD(_Step):
    """PGD sampling (AT-EBM Eq. 7, 8): x <- P(x - alpha g / |g|_2), g = dE/dx; with E = -f this is the paper's ascent on f.

    Every step has length alpha whatever the energy's scale, so K steps move an image by at most K alpha; there is no
    noise, hence the need for diverse starts. Yields x after each step.
    """

    kind: Literal["pgd"] = "pgd"
    K: Count
    radius: Positive | None = None  # of the L2 ball around the start on which P projects; None: unbounded
    real: Uphill | None = None  # None: real images stay as they are

    def __call__(
        self, E: EnergyFunction, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0, K: int | None = None
    ) -> Iterator[Tensor]:
        start = x
        for _ in range(self.K if K is None else K):
            g = gradient(E, x)
            x = x - self.alpha * (g / _norm(g).clamp_min(1e-12))
            if self.radius is not None:
                moved = x - start
                x = start + moved * (self.radius / _norm(moved).clamp_min(1e-12)).clamp_max(1)
            yield (x := clipped(x, self.box(low)))

    def uphill(self, E: EnergyFunction, x: Tensor, low: float = -1.0) -> Tensor:
        """Real images x moved up E by `real.steps` steps: the same sampler, down -E."""
        if self.real is None:
            return x
        against = PGD(K=self.real.steps, alpha=self.alpha, radius=self.real.radius, clip=self.clip)
        return last(against(lambda v: -E(v), x, low=low))


class HMC(_Step):
    """Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011): K proposals of L leapfrog steps of size alpha, each accepted
    with probability min(1, exp(H - H')), H = E(x) + |v|^2 / 2, so that chains have the stationary density exp(-E)/Z at any
    alpha. Yields x after each proposal.

    Within a range, trajectories bounce off its walls (Neal 2011, Sec. 5.1).
    """

    kind: Literal["hmc"] = "hmc"
    K: Count
    L: Count

    @property
    def passes(self) -> int:
        return self.K * (self.L + 1)

    def __call__(
        self, E: EnergyFunction, x: Tensor, generator: torch.Generator | None = None, low: float = -1.0, K: int | None = None
    ) -> Iterator[Tensor]:
        a, box = self.alpha, self.box(low)
        x = clipped(x, box)
        for _ in range(self.K if K is None else K):
            v = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            q, p = x, v - a / 2 * gradient(E, x)
            for i in range(self.L):
                q, p = _bounced(q + a * p, p, box)
                p = p - (a if i < self.L - 1 else a / 2) * gradient(E, q)
            with torch.no_grad():
                gain = E(x) - E(q) + (_sum(v.square()) - _sum(p.square())) / 2  # H - H' (B,)
                u = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
                accepted = u.log() < gain
            yield (x := torch.where(accepted.view(-1, *[1] * (x.dim() - 1)), q, x))


def _bounced(q: Tensor, p: Tensor, box: Box | None) -> tuple[Tensor, Tensor]:
    """Position and momentum after as many reflections at the walls as it takes."""
    if box is None:
        return q, p
    width = box[1] - box[0]
    way = torch.remainder(q - box[0], 2 * width)  # from the lower wall to the upper one, and back
    forth = way <= width
    return box[0] + torch.where(forth, way, 2 * width - way), torch.where(forth, p, -p)


Step = Annotated[SGLD | Proximal | PYLD | PGD | HMC, Field(discriminator="kind")]


class Captured(NamedTuple):
    """A chain on the device: copy to `start`, replay, read `end`."""

    launch: torch.cuda.CUDAGraph
    start: Tensor  # x0 (B, ...)
    end: Tensor  # x^K (B, ...)


class Graph:
    """A chain as one CUDA graph: captured at the first call, then launched at once instead of kernel by kernel, where a
    small network's GPU waits for Python. Not yet run on a GPU: tested with a stand-in for torch.cuda.

    The graph reads weights where they lie (optimisers and load_state_dict write in place) and takes images of one shape.
    Where a capture fails, one warning, and the chain runs as it is.

    Args:
        chain: x0 (B, ...) -> x^K, which waits for nothing on the device.   state: tensors that it changes in place
        (running statistics).   generator: the device's, from which it draws noise; None: it draws none.
    """

    def __init__(
        self, chain: Callable[[Tensor], Tensor], state: Iterable[Tensor] = (), generator: torch.Generator | None = None
    ):
        self.chain, self.state, self.generator = chain, list(state), generator
        self.captured: Captured | None = None
        self.refused = False  # a capture failed

    def __call__(self, x: Tensor) -> Tensor:
        """x0 (B, ...) -> x^K."""
        if self.captured is None and not self.refused:
            try:
                self.captured = self._capture(x)
            except RuntimeError as e:
                self.refused = True
                warnings.warn(f"no CUDA graph ({str(e).splitlines()[0]}): the chain runs step by step", stacklevel=2)
        if self.captured is None:
            return self.chain(x)
        self.captured.start.copy_(x)
        self.captured.launch.replay()
        return self.captured.end.clone()  # the next launch overwrites it

    def _capture(self, x: Tensor) -> Captured:
        self._warm_up(start := x.clone())
        graph = torch.cuda.CUDAGraph()
        if self.generator:
            graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            end = self.chain(start)
        return Captured(graph, start, end)

    def _warm_up(self, x: Tensor) -> None:
        """Let libraries allocate and choose algorithms; the state and the generator are afterwards as before."""
        before, drawn = [t.clone() for t in self.state], self.generator.get_state() if self.generator else None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.chain(x)
            torch.cuda.current_stream().wait_stream(side)
        finally:
            for t, value in zip(self.state, before, strict=True):
                t.copy_(value)
            if self.generator and drawn is not None:
                self.generator.set_state(drawn)


def _sum(x: Tensor) -> Tensor:
    """Of each image, (B,)."""
    return x.flatten(1).sum(1)


def _norm(x: Tensor) -> Tensor:
    """L2 norm of each image, (B, 1, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


def _inside(x: Tensor, clip: Box) -> bool:
    # Clipping N small steps equals clipping one long one only for a start inside the box. On a GPU the
    # test would wait for the device, and every start of this project is inside by construction.
    return x.is_cuda or bool((x >= clip[0]).all() & (x <= clip[1]).all())


def clipped(x: Tensor, clip: Box | None) -> Tensor:
    """x in the box; None: x as it is."""
    return x if clip is None else x.clamp(*clip)


def perturbed(x: Tensor, noise: float, clip: Box | None, generator: torch.Generator | None) -> Tensor:
    """x + noise * eps, eps standard normal; clipped again, so that every state is a valid image."""
    if not noise:
        return x
    eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return clipped(x + noise * eps, clip)
