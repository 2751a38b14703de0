"""What a classifier's confidence and an energy's level are worth: calibration, and telling other data apart.

Calibration (JEM++ supplement Eq. 2): of the images predicted with confidence 0.8, are 80 % right?
Detection: does a score s(x), log p(x) or max_y p(y|x), rank test images above images of another kind?
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import metrics
from lib.energy import energy, log_p_y

SCORES = ("log_p_x", "max_p_y")


# ------------------------------------------------------------------------------------------------- calibration
@dataclass
class Reliability:
    """A reliability diagram. edges (bins + 1,); count, confidence and accuracy (bins,): NaN where a bin is empty."""
    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """sum_m |B_m| / n |acc(B_m) - conf(B_m)|  (JEM++ supplement Eq. 2)."""
        gap = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.count * gap).sum() / self.count.sum())


def reliability(confidence, correct, bins: int = 20, one_apart: bool = False) -> Reliability:
    """Accuracy by confidence, in equally wide bins over [0, 1].

    A bin holds its lower edge but not its upper one, as in torchmetrics; the last one holds 1, too. With `one_apart`
    confidences of exactly 1 are a bin of their own, number bins + 1, of no width: torchmetrics does so.

    Args:
        confidence: max_y p(y|x), (n,) in [0, 1].   correct: (n,) booleans (or 0 and 1).
    Raises: ValueError for unequal lengths, no image, no bin or a confidence outside [0, 1].
    """
    p, hit = torch.as_tensor(confidence).detach().cpu(), torch.as_tensor(correct).detach().cpu().double()
    if p.dim() != 1 or p.shape != hit.shape or not len(p) or bins < 1:
        raise ValueError(f"confidence {tuple(p.shape)}, correct {tuple(hit.shape)}, {bins} bins: expected two "
                         "vectors of one length, at least 1, and at least one bin")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidences from {p.min():.4g} to {p.max():.4g}: expected probabilities in [0, 1]")
    p = p if p.dtype in (torch.float32, torch.float64) else p.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=p.dtype)       # in p's precision: 0.15 is not one number in both
    m = torch.bucketize(p, edges, right=True) - 1
    bars = bins + one_apart
    m, hit, p = m.clamp_max(bars - 1).numpy(), hit.numpy(), p.double().numpy()
    count = np.bincount(m, minlength=bars)
    with np.errstate(invalid="ignore"):                         # 0 / 0: an empty bin
        means = [np.bincount(m, v, minlength=bars) / count for v in (p, hit)]
    edges = np.append(edges, 1.0) if one_apart else edges.numpy()
    return Reliability(edges.astype(float), count, *means)


def ece(confidence, correct, bins: int = 20) -> float:
    """Expected calibration error in [0, 1], equal to torchmetrics' (L1 norm, n_bins=bins). See `reliability`.

    A saturated classifier has many confidences of exactly 1. As torchmetrics keeps them apart, this can exceed
    `reliability(...).ece`, where overconfidence at 1 may cancel against underconfidence in [0.95, 1).
    """
    return reliability(confidence, correct, bins, one_apart=True).ece


# --------------------------------------------------------------------------------------------------- detection
def scores(model, x: Tensor, which: str, device="cpu") -> np.ndarray:
    """How much of an inlier each image is: (n,), higher is more so. x: uint8 (n, C, H, W).

    which: 'log_p_x', -E(x) = log p(x) + log Z in nats (log Z is one number: ranks do not need it), or 'max_p_y', the
    confidence max_y p(y|x), which ties at exactly 1 in single precision. Evaluation mode, no gradient.
    """
    if which not in SCORES:
        raise ValueError(f"score {which!r}: expected one of {', '.join(SCORES)}")
    logits = metrics.logits_of(model, x, device=device)
    return (-energy(logits) if which == "log_p_x" else log_p_y(logits).exp().amax(1)).numpy()


def auroc(inside, outside) -> float:
    """P(s(inlier) > s(outlier)), ties counting half: the area under the ROC curve; 0.5 for a blind score.

    inside (n,), outside (m,): scores, higher for inliers. Raises: ValueError for an empty set or a score that is
    not finite.
    """
    a, b = np.asarray(inside, float), np.asarray(outside, float)
    for name, s in (("inside", a), ("outside", b)):
        if s.ndim != 1 or not len(s):
            raise ValueError(f"auroc: {name} has shape {s.shape}; expected at least one score in one dimension")
        if not np.isfinite(s).all():
            raise ValueError(f"auroc: {(~np.isfinite(s)).sum()} of {len(s)} scores in {name} are not finite: has the "
                             "model diverged?")
    from sklearn.metrics import roc_auc_score                   # half a second to import
    return float(roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b])))


def bootstrap_statistic(statistic: Callable[..., float], *arrays, level: float = 0.95, resamples: int = 200,
                        seed: int = 0, paired: bool = False) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of statistic(*arrays). For a mean, metrics.bootstrap is faster.

    Args:
        arrays: each (n_i, ...), resampled along its first axis: on its own (AUROC: images inside and outside), or
            with `paired` all by the same indices (ECE: confidence and correctness of one image).
    Raises: ValueError for no array, one of fewer than two entries, or unequal lengths where paired.
    """
    arrays = [np.asarray(a) for a in arrays]
    sizes = [a.shape[0] if a.ndim else 0 for a in arrays]
    if not arrays or min(sizes) < 2 or (paired and len(set(sizes)) > 1):
        raise ValueError(f"bootstrap_statistic: lengths {sizes}, paired={paired}; expected at least two entries "
                         "each, equally many where paired")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        picks = [rng.integers(n, size=n) for n in (sizes[:1] if paired else sizes)]
        values.append(statistic(*(a[i] for a, i in zip(arrays, picks * len(arrays) if paired else picks))))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ------------------------------------------------------------------------------ images of another kind, all uint8
def interpolated(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The papers' "Interp": means of two random images. x uint8 (n, C, H, W) with n >= 2 -> the same shape.

    Each image serves twice, never with itself.
    """
    if len(x) < 2:
        raise ValueError(f"interpolated: {len(x)} images; expected at least two")
    order = torch.randperm(len(x), generator=generator)
    a, b = x[order], x[order.roll(1)]
    return ((a.float() + b.float()) / 2).round().to(torch.uint8)            # half to even: no drift to bright or dark


def uniform_noise(n: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """n images of independent uniform bytes: uint8 (n, *shape), shape (C, H, W)."""
    return torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)


def dead_leaves(n: int, shape: tuple[int, int, int], generator: torch.Generator | None = None, *, leaves: int = 100,
                smallest: float = 1 / 16, largest: float = 1 / 2) -> Tensor:
    """n dead-leaves images: discs of random place and colour, each covering those before it; uint8 (n, *shape).

    Radii have density ~ r^-3, which gives natural images' scale invariance and spectrum (Baradad et al. 2021,
    "Learning to see by looking at noise"; Lee, Mumford and Huang 2001).

    Args:
        shape: (C, H, W).   smallest, largest: radii as shares of the longer side.
        leaves: discs an image; 100 leave some 2 % of the background, itself of a random colour, to be seen.
    """
    C, H, W = shape
    u = torch.rand(3, n, leaves, generator=generator)
    cy, cx = u[0] * H, u[1] * W                                                     # (n, leaves)
    # r^2, r from the inverse of the power law's distribution function
    r2 = max(H, W) ** 2 / (smallest ** -2 - u[2] * (smallest ** -2 - largest ** -2))
    colours = torch.randint(256, (n, leaves + 1, C), generator=generator, dtype=torch.uint8)
    dy2 = (torch.arange(H) + 0.5 - cy[..., None]) ** 2                              # (n, leaves, H)
    dx2 = (torch.arange(W) + 0.5 - cx[..., None]) ** 2                              # (n, leaves, W)
    top = torch.zeros(n, H, W, dtype=torch.long)                                    # which leaf is seen; 0: none
    for part in torch.arange(n).split(250):                                         # small enough for the cache
        seen = top[part[0]:part[-1] + 1]
        for k in range(leaves):
            inside = dy2[part, k, :, None] + dx2[part, k, None, :] < r2[part, k, None, None]
            seen.masked_fill_(inside, k + 1)
    b = torch.arange(n)[:, None, None]
    return colours[b, top].permute(0, 3, 1, 2).contiguous()
