"""How weights are updated: SGD or Adam, at the gradient of the loss or, sharpness-aware, at the worst gradient nearby.

    optimizer = update.build(model);   found, norm = optimizer.step(closure)

SAM (Foret et al. 2021; SADA-JEM Eq. 6, 7) and ASAM (Kwon et al. 2021; Eq. 8):

    theta <- theta - lr * grad L(theta + e),   e the worst step of length rho around theta, to first order.

SADA-JEM's text gives ASAM's step as e = rho T sign(grad L), which solves another problem (a ball in the maximum
norm); its code, and Kwon et al., take e = rho T^2 grad L / |T grad L|, which solves Eq. 8, with T = diag |theta|. So do we.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lib.parts.cell import Cell, Count, Positive, Share, Weight
from lib.parts.networks import batch_statistics
from lib.parts.schedules import Rate

Found = TypeVar("Found")


class Descent:
    """Any torch optimiser, at the gradients of one loss.

    Args:
        base: the optimiser that makes the step.
        reduce: called between gradients and step: several processes average theirs.
    """

    def __init__(self, base: torch.optim.Optimizer, reduce: Callable[[], None] | None = None):
        self.base, self.reduce = base, reduce or (lambda: None)

    @property
    def param_groups(self) -> list[dict]:
        return self.base.param_groups

    def zero_grad(self) -> None:
        self.base.zero_grad()

    def state_dict(self) -> dict:
        return self.base.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.base.load_state_dict(state)

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """(parameter, gradient) of all that have one."""
        return [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """|grad L|, a scalar on the device."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g for _, g in self._gradients()])))

    def step(self, closure: Callable[[], Found]) -> tuple[Found, Tensor]:
        """One update. closure: computes the loss on fixed data, calls backward, returns anything. Returns what it returned,
        and |grad L|, both at the weights before the step."""
        self.zero_grad()
        found = closure()
        self.reduce()
        norm = self.gradient_norm()
        self.base.step()
        return found, norm


class SAM(Descent):
    """Any torch optimiser, stepping with the gradient at the worst point of a ball of radius rho around the weights.

    One closure computes loss and gradients and is called twice an update, on the same batch and the same negatives.
    The ball spans all parameter groups together. Only gradient directions enter e, so a scaled loss (torch.amp)
    changes nothing; with several processes, each climbs its own gradient, and `reduce` averages the second ones.
    SAM itself remembers nothing between updates: its state is the base optimiser's.

    Args:
        base: the optimiser that makes the step.   rho: the ball's radius, > 0.   adaptive: ASAM.
        second_pass: a context manager around the second call, e.g. one that leaves running statistics alone.
        reduce: called after the second pass, before the step.
    Raises: ValueError for rho <= 0.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        second_pass: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        reduce: Callable[[], None] | None = None,
    ):
        if not rho > 0:
            raise ValueError(f"rho {rho}: expected a radius > 0 (without SAM, use the optimiser itself)")
        super().__init__(base, reduce)
        self.rho, self.adaptive, self.second_pass = rho, adaptive, second_pass
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def ascend(self) -> Tensor:
        """theta <- theta + e from the gradients at theta; returns |grad L| (or |T grad L|), a scalar on the device."""
        scaled = [(p, p.abs() * g if self.adaptive else g) for p, g in self._gradients()]  # T grad L
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g for _, g in scaled])))
        self._before = [(p, p.clone()) for p, _ in scaled]
        for p, g in scaled:
            p.add_((p.abs() * g if self.adaptive else g) * (self.rho / (norm + 1e-12)))
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """theta as it was before `ascend`, to the bit; the gradients at theta + e stay."""
        for p, before in self._before:
            p.copy_(before)
        self._before = []

    def step(self, closure: Callable[[], Found]) -> tuple[Found, Tensor]:
        """One update, as `Descent.step`: what it returns is of the first call, at theta, not at the worst point."""
        self.zero_grad()
        found = closure()
        norm = self.gradient_norm()
        self.ascend()
        try:
            self.zero_grad()
            with self.second_pass():
                closure()
        finally:
            self.restore()
        self.reduce()
        self.base.step()
        return found, norm


# ------------------------------------------------------------------------------------------------------ settings
class Sharpness(Cell):
    """SAM's, or ASAM's, settings."""

    rho: Positive  # radius of the ball in weight space
    adaptive: bool = False  # ASAM


class _Cell(Cell):
    lr: Positive
    schedule: Rate
    weight_decay: Weight = 0.0
    batch: Count
    iterations: Count | None = None  # either iterations ...
    epochs: Positive | None = None  # ... or epochs of the training set
    sam: Sharpness | None = None  # sharpness-aware: two passes an update

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError(f"iterations: {self.iterations} and epochs: {self.epochs}; expected exactly one of them")
        return self

    def base(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """torch's optimiser, without SAM."""
        raise NotImplementedError

    def build(self, model: nn.Module, reduce: Callable[[], None] | None = None) -> Descent:
        """The optimiser of a model's weights; SAM's second pass leaves batch norm's running statistics alone."""
        base = self.base(model.parameters())
        if self.sam is None:
            return Descent(base, reduce)
        return SAM(base, self.sam.rho, self.sam.adaptive, second_pass=lambda: batch_statistics(model), reduce=reduce)


class SGD(_Cell):
    optimizer: Literal["sgd"] = "sgd"
    momentum: Share
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true with momentum 0; expected some momentum, or leave nesterov out")
        return self

    def base(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)


Beta = Annotated[float, Field(ge=0, lt=1)]  # of a running mean


class Adam(_Cell):
    optimizer: Literal["adam"] = "adam"
    betas: tuple[Beta, Beta]

    def base(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, self.betas, weight_decay=self.weight_decay)


Update = Annotated[SGD | Adam, Field(discriminator="optimizer")]
