"""Sharpness-aware minimisation: SAM (Foret et al. 2021; SADA-JEM Eq. 6, 7) and ASAM (Kwon et al. 2021; Eq. 8).

    theta <- theta - lr * grad L(theta + e),   e the worst step of length rho around theta, to first order.

SADA-JEM's text gives ASAM's step as e = rho T sign(grad L), which solves another problem (a ball in the maximum
norm); its code, and Kwon et al., take e = rho T^2 grad L / |T grad L|, which solves Eq. 8, with T = diag |theta|. So do we.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor


class SAM:
    """Any torch optimiser, stepping with the gradient at the worst point of a ball of radius rho around the weights.

    One closure computes loss and gradients and is called twice an update, on the same batch and the same negatives.
    The ball spans all parameter groups together. Only gradient directions enter e, so a scaled loss (torch.amp)
    changes nothing; with several processes, each climbs its own gradient, and `reduce` averages the second ones.

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
        second_pass: Callable = contextlib.nullcontext,
        reduce: Callable[[], None] | None = None,
    ):
        if not rho > 0:
            raise ValueError(f"rho {rho}: expected a radius > 0 (without SAM, use the optimiser itself)")
        self.base, self.rho, self.adaptive = base, rho, adaptive
        self.second_pass, self.reduce, self._before = second_pass, reduce, []

    @property
    def param_groups(self) -> list[dict]:
        return self.base.param_groups

    def zero_grad(self) -> None:
        self.base.zero_grad()

    def state_dict(self) -> dict:
        """The base optimiser's: SAM itself remembers nothing between updates."""
        return self.base.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.base.load_state_dict(state)

    @torch.no_grad()
    def ascend(self) -> Tensor:
        """theta <- theta + e from the gradients at theta; returns |grad L| (or |T grad L|), a scalar on the device."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        scaled = [p.abs() * p.grad if self.adaptive else p.grad for p in params]  # T grad L
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled)))
        self._before = [(p, p.clone()) for p in params]
        for p, g in zip(params, scaled):
            p.add_((p.abs() * g if self.adaptive else g) * (self.rho / (norm + 1e-12)))
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """theta as it was before `ascend`, to the bit; the gradients at theta + e stay."""
        for p, before in self._before:
            p.copy_(before)
        self._before = []

    def step(self, closure: Callable[[], object]):
        """One update. closure: computes the loss on fixed data, calls backward, returns anything. Returns what the
        first call returned: the loss at theta, not at the worst point."""
        self.zero_grad()
        found = closure()
        self.ascend()
        try:
            self.zero_grad()
            with self.second_pass():
                closure()
        finally:
            self.restore()
        if self.reduce:
            self.reduce()
        self.base.step()
        return found
