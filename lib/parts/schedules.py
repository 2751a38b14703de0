"""What changes while a run trains: the learning rate, and the length of the chains. A cell per rule.

rate(lr, i, total) -> the learning rate of update i, counted from 0, of `total`
length.build(K, total) -> Length: `length(i)` is the number of steps of update i's chains, at most K
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lib.parts.cell import Cell, Count, Index, Positive, Share


# ------------------------------------------------------------------------------------------------- learning rates
class _Warmed(Cell):
    warmup: Index = 0  # updates of linear warm-up

    def __call__(self, lr: float, i: int, total: int) -> float:
        """The rate of update i, counted from 0, of `total`; lr: the highest."""
        return lr * (min(1.0, (i + 1) / self.warmup) if self.warmup else 1.0)


class Constant(_Warmed):
    """The same rate throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"


class Steps(_Warmed):
    """A drop by `decay` at each milestone."""

    kind: Literal["step"] = "step"
    milestones: tuple[Share, ...]  # shares of the training
    decay: Positive

    def __call__(self, lr: float, i: int, total: int) -> float:
        return super().__call__(lr, i, total) * self.decay ** sum(i >= m * total for m in self.milestones)


class Cosine(_Warmed):
    """Half a cosine, down to zero (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, lr: float, i: int, total: int) -> float:
        return super().__call__(lr, i, total) * 0.5 * (1 + math.cos(math.pi * i / total))


Rate = Annotated[Constant | Steps | Cosine, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------- lengths of chains
Average = Callable[[list[Tensor]], None]  # each tensor becomes its mean over the processes, in place


class Length:
    """The number of steps of a chain; `record` is told how well E tells data from samples (AUC) after each update."""

    def __init__(self, K: int):
        self.K = K

    def __call__(self, i: int) -> int:
        """At update i, counted from 0."""
        return self.K

    def record(self, i: int, auc: Tensor) -> None:
        """What update i found: a scalar on the device."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class Linear(Cell):
    """From 0 to K, the same number of updates for each length (AT-EBM Algorithm 2)."""

    kind: Literal["linear"] = "linear"

    def build(self, K: int, total: int, average: Average | None = None) -> Length:
        return _Linear(K, total)


class _Linear(Length):
    def __init__(self, K: int, total: int):
        super().__init__(K)
        self.total = total

    def __call__(self, i: int) -> int:
        return i * (self.K + 1) // self.total


class ByAUC(Cell):
    """One step more when the mean AUC of the last `window` updates passes `threshold`, or after `hold` updates (AT-EBM's
    code)."""

    kind: Literal["auc"] = "auc"
    threshold: Share
    window: Count
    hold: Count | None = None
    first: Index = 0  # K at the beginning (the code's --startstep)

    def build(self, K: int, total: int, average: Average | None = None) -> Length:
        return _ByAUC(self, K, average)


class _ByAUC(Length):
    """It looks once in ten updates, so as to wait for the device no more often. Several processes `average` their AUCs, and
    so have one K."""

    def __init__(self, rule: ByAUC, K: int, average: Average | None = None):
        super().__init__(K)
        self.rule, self.average = rule, average or (lambda tensors: None)
        self.k, self.since = rule.first, 0  # since: the update at which the length became k
        self.aucs: list[Tensor] = []  # of the last `window` updates at this length

    def __call__(self, i: int) -> int:
        return self.k

    def record(self, i: int, auc: Tensor) -> None:
        if self.k == self.K:
            return
        self.aucs = [*self.aucs, auc.detach()][-self.rule.window :]
        held = i + 1 - self.since
        passed = held >= self.rule.window and held % 10 == 0 and self.mean_auc() > self.rule.threshold
        if passed or held == self.rule.hold:
            self.k, self.since, self.aucs = self.k + 1, i + 1, []

    def mean_auc(self) -> float:
        """Over the window and the processes; waits for the device."""
        auc = torch.stack(self.aucs).mean()
        self.average([auc])
        return auc.item()

    def state_dict(self) -> dict:
        return {"k": self.k, "since": self.since, "aucs": torch.stack(self.aucs).cpu() if self.aucs else torch.empty(0)}

    def load_state_dict(self, state: dict) -> None:
        self.k, self.since, self.aucs = state["k"], state["since"], list(state["aucs"])


Growth = Annotated[Linear | ByAUC, Field(discriminator="kind")]
