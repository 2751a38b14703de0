"""What a classifier's confidence and an energy's level are worth: calibration, and detection of other data.

Calibration (JEM++ supplement Eq. 2): of the images predicted with confidence 0.8, are 80 % right?
Detection: does a score s(x), log p(x) or max_y p(y|x), rank test images above images of another kind?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import params
from lib.measures import metrics
from lib.parts.energy import energy, log_p_y

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


def reliability(confidence, correct, bins: int | None = None, one_apart: bool = False) -> Reliability:
    """Accuracy by confidence, in equally wide bins over [0, 1].

    A bin holds its lower edge but not its upper one, as in torchmetrics; the last one holds 1, too. With `one_apart`
    confidences of exactly 1 are a bin of their own, number bins + 1, of no width: torchmetrics does so.

    Args:
        confidence: max_y p(y|x), (n,) in [0, 1].   correct: (n,) booleans (or 0 and 1).
        bins: None: params.yaml's measures.
    Raises: ValueError for unequal lengths, no image, no bin or a confidence outside [0, 1].
    """
    bins = params.measures().bins if bins is None else bins
    p, hit = torch.as_tensor(confidence).detach().cpu(), torch.as_tensor(correct).detach().cpu().double()
    if p.dim() != 1 or p.shape != hit.shape or not len(p) or bins < 1:
        raise ValueError(
            f"confidence {tuple(p.shape)}, correct {tuple(hit.shape)}, {bins} bins: expected two "
            "vectors of one length, at least 1, and at least one bin"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidences from {p.min():.4g} to {p.max():.4g}: expected probabilities in [0, 1]")
    p = p if p.dtype in (torch.float32, torch.float64) else p.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=p.dtype)  # in p's precision: 0.15 is not one number in both
    bars = bins + one_apart
    m = (torch.bucketize(p, edges, right=True) - 1).clamp_max(bars - 1).numpy()
    count = np.bincount(m, minlength=bars)
    with np.errstate(invalid="ignore"):  # 0 / 0: an empty bin
        means = [np.bincount(m, v, minlength=bars) / count for v in (p.double().numpy(), hit.numpy())]
    borders = np.append(edges.numpy(), 1.0) if one_apart else edges.numpy()
    return Reliability(borders.astype(float), count, *means)


def ece(confidence, correct, bins: int | None = None) -> float:
    """Expected calibration error in [0, 1], equal to torchmetrics' (L1 norm, n_bins=bins). See `reliability`.

    A saturated classifier has many confidences of exactly 1. As torchmetrics keeps them apart, this can exceed
    `reliability(...).ece`, where overconfidence at 1 may cancel against underconfidence in [0.95, 1).
    """
    return reliability(confidence, correct, bins, one_apart=True).ece


# --------------------------------------------------------------------------------------------------- detection
def scores(model, x: Tensor, which: str, device="cpu", low: float = -1.0) -> np.ndarray:
    """How much of an inlier each image is: (n,), higher is more so. x: uint8 (n, C, H, W).

    which: 'log_p_x', -E(x) = log p(x) + log Z in nats (log Z is one number: ranks do not need it), or 'max_p_y', the
    confidence max_y p(y|x), which ties at exactly 1 in single precision. Evaluation mode, no gradient; the model sees
    images in [low, 1].
    """
    if which not in SCORES:
        raise ValueError(f"score {which!r}: expected one of {', '.join(SCORES)}")
    logits = metrics.logits_of(model, x, device=device, low=low)
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
            raise ValueError(
                f"auroc: {(~np.isfinite(s)).sum()} of {len(s)} scores in {name} are not finite: has the model diverged?"
            )
    from sklearn.metrics import roc_auc_score  # half a second to import

    return float(roc_auc_score(np.repeat([1, 0], [len(a), len(b)]), np.concatenate([a, b])))


def bootstrap_statistic(
    statistic: Callable[..., float],
    *arrays,
    level: float | None = None,
    resamples: int | None = None,
    seed: int = 0,
    paired: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of statistic(*arrays). For a mean, metrics.bootstrap is faster.

    Args:
        arrays: each (n_i, ...), resampled along its first axis: on its own (AUROC: images inside and outside), or
            with `paired` all by the same indices (ECE: confidence and correctness of one image).
        level, resamples: None: params.yaml's measures, as many as of a calibration error.
    Raises: ValueError for no array, one of fewer than two entries, or unequal lengths where paired.
    """
    samples = [np.asarray(a) for a in arrays]
    sizes = [a.shape[0] if a.ndim else 0 for a in samples]
    if not samples or min(sizes) < 2 or (paired and len(set(sizes)) > 1):
        raise ValueError(
            f"bootstrap_statistic: lengths {sizes}, paired={paired}; expected at least two entries "
            "each, equally many where paired"
        )
    rng, resamples = np.random.default_rng(seed), resamples or params.measures().resamples_ece
    values = []
    for _ in range(resamples):
        picks = [rng.integers(n, size=n) for n in (sizes[:1] if paired else sizes)]
        values.append(statistic(*(a[i] for a, i in zip(samples, picks * len(samples) if paired else picks, strict=True))))
    low, high = np.quantile(values, metrics.ends(level))
    return float(low), float(high)
