"""The one sign rule: logits -> E(x), E(x, y), p(y|x).  Low energy is likely; every sampler descends E.

JEM++ Eq. 4, SADA-JEM Eq. 4:  E(x) = -LSE_y f(x)[y].   AT-EBM Sec. 3.1:  E(x) = -f(x).
The second is the first with a single logit, because the log-sum-exp of one number is that number: one
formula serves all three papers, and nothing else in this project flips a sign.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lib.parts.networks import Network

EnergyFunction = Callable[[Tensor], Tensor]  # E(x): (B, ...) -> (B,); an `Energy`, or a formula


def energy(logits: Tensor) -> Tensor:
    """E(x) = -log sum_y exp f(x)[y].  logits (B, C) -> (B,), in nats, up to the constant log Z."""
    return -torch.logsumexp(logits.float(), dim=1)


def joint_energy(logits: Tensor, y: Tensor) -> Tensor:
    """E(x, y) = -f(x)[y].  logits (B, C), y (B,) class indices -> (B,)."""
    return -logits.float().gather(1, y[:, None]).squeeze(1)


def log_p_y(logits: Tensor) -> Tensor:
    """log p(y|x) = E(x) - E(x, y): the softmax classifier.  (B, C) -> (B, C), <= 0."""
    return torch.log_softmax(logits.float(), dim=1)


class Energy:
    """A network seen as an energy: `E(x)` is (B,), `E.gradient(x)` has the shape of x.

    The split E = tail . first (first layer; all the rest) is what PYLD takes apart (JEM++ Eq. 11).

    Args:
        model: a network with `first`, `rest` and `forward = rest . first`, giving logits (B, C).
        y: class indices (B,); given, the energy is E(x, y) instead of E(x).
        precision: 'fp32' or 'bf16' (autocast; the log-sum-exp and the result stay in fp32).
        forward: what computes the logits in the model's place: lib.parts.networks.Compiled(model). None: the model.
    """

    def __init__(
        self,
        model: Network,
        y: Tensor | None = None,
        precision: str = "fp32",
        forward: Callable[[Tensor], Tensor] | None = None,
    ):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {precision!r}: expected 'fp32' or 'bf16'")
        self.model, self.y, self.precision, self.forward = model, y, precision, forward or model

    def autocast(self, x: Tensor) -> torch.autocast:
        """The precision's context for tensors on x's device. It caches no casts: a forward pass needs each weight once,
        and a CUDA graph would keep a stale one."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def logits(self, x: Tensor) -> Tensor:
        """f(x): (B, C) in fp32."""
        with self.autocast(x):
            return self.forward(x).float()

    def first(self, x: Tensor) -> Tensor:
        """f0(x), the first layer's output: what PYLD's slack variable p belongs to."""
        with self.autocast(x):
            return self.model.first(x)

    def tail(self, h: Tensor) -> Tensor:
        """E as a function of the first layer's output h: (B, ...) -> (B,)."""
        with self.autocast(h):
            logits = self.model.rest(h)
        return self._reduce(logits)

    def __call__(self, x: Tensor) -> Tensor:
        return self._reduce(self.logits(x))

    def _reduce(self, logits: Tensor) -> Tensor:
        return energy(logits) if self.y is None else joint_energy(logits, self.y)

    def gradient(self, x: Tensor) -> Tensor:
        """dE/dx, shape of x. Only the input's gradient is computed: no weight gradients while sampling."""
        return gradient(self, x)


def gradient(E: EnergyFunction, x: Tensor) -> Tensor:
    """dE/dx of any callable energy, shape of x. Samples do not interact, so summing is exact
    (but for batch norm in training mode, which couples a batch: the papers sample so, and we do too)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(E(x).sum(), x)[0]


def resolve_precision(wanted: str, device: torch.device) -> str:
    """'auto' -> 'bf16' where the hardware multiplies in bf16 itself, else 'fp32'. Any other `wanted` stays."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    private = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch, which may drop them
    native = any(has() for name in private if (has := getattr(torch.cpu, name, None)))
    # torch may be told to do without (ATEN_CPU_CAPABILITY=avx2): bf16 would be emulated then, 8 to 12 times as slow as fp32
    return "bf16" if native and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2") else "fp32"
