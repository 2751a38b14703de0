"""What is measured on a trained run: accuracy and its interval, and the distance of samples to the data.

Inception features mean little on small grey images. There, the Frechet distance and the Inception Score are
computed on a fixed classifier of this pipeline (run `reference`) and carry other names, FD-clf and IS-clf:
never compare them with a paper's FID and IS. FID and IS themselves, and KID, are of `lib.measures.inception`'s features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib import data, params
from lib.parts.energy import log_p_y

BATCH = 500  # images at once; fewer where they are larger than 32 x 32


class Moments(NamedTuple):
    """Of features of real images: mean (F,), covariance (F, F), and for KID some of the features themselves (n, F)."""

    mean: np.ndarray
    covariance: np.ndarray
    some: np.ndarray | None = None


@torch.no_grad()
def logits_of(model, x: Tensor, noise: float = 0.0, seed: int = 0, device="cpu", low: float = -1.0) -> Tensor:
    """Logits (n, C) of uint8 images (n, C, H, W), which the model sees in [low, 1]; evaluation mode, fp32; input noise
    as in training (the JEM codes classify noisy test images), from a fixed seed."""
    model.eval()
    g = torch.Generator(device).manual_seed(seed)
    return torch.cat([model(data.with_noise(data.to_range(b.to(device), low), noise, g)).cpu() for b in batches(x)])


def batches(x: Tensor, most: int = BATCH) -> tuple[Tensor, ...]:
    """Images (n, C, H, W) in parts of at most `most`, fewer above 32x32: activations grow with pixels."""
    return x.split(max(1, most * 32**2 // max(32**2, x.shape[-1] * x.shape[-2])))


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of correct predictions, in [0, 1]. logits (n, C), y (n,)."""
    return (logits.argmax(1) == y).float().mean().item()


def bootstrap(
    values: np.ndarray, level: float | None = None, resamples: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over test images. values (n,), one per image. None: params.yaml's measures.

    It says how far another test set of this size might move the number; it is not the spread over seeds.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"bootstrap: values of shape {values.shape}; expected at least two numbers in one dimension")
    resamples = resamples or params.measures().resamples
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(1), ends(level))
    return float(low), float(high)


def ends(level: float | None = None) -> tuple[float, float]:
    """The quantiles between which the middle `level` of a distribution lies. None: params.yaml's measures."""
    level = level or params.measures().level
    return (1 - level) / 2, (1 + level) / 2


# ---------------------------------------------------------------------------- sample quality on our features
@torch.no_grad()
def features_of(reference, x: Tensor, device="cpu") -> tuple[np.ndarray, np.ndarray]:
    """Features (n, F) and class probabilities (n, C) of uint8 images under the reference classifier."""
    reference.eval()
    feats, probs = [], []
    for b in batches(x):
        h = reference.features(data.to_range(b.to(device)))
        feats.append(h.cpu())
        probs.append(log_p_y(reference.head(h)).exp().cpu())
    return torch.cat(feats).double().numpy(), torch.cat(probs).double().numpy()


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and covariance (F, F) of features (n, F). Raises: ValueError where n < 2."""
    if len(features) < 2:
        raise ValueError(f"moments of {len(features)} feature vectors: at least 2 are needed")
    return features.mean(0), np.cov(features, rowvar=False)


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), by clean-fid, of two (mean, covariance) pairs.

    With fewer images than feature dimensions a covariance is rank-deficient: clean-fid then adds a small ridge.
    """
    from lib import vision  # noqa: F401  # isort: skip  (clean-fid imports torchvision: see lib/vision.py)
    from cleanfid.fid import frechet_distance

    return float(max(0.0, frechet_distance(a[0], a[1], b[0], b[1])))


def inception_score(probabilities: np.ndarray, splits: int | None = None) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)), mean and standard deviation over splits. probabilities (n, C), rows sum to 1.
    splits: None: params.yaml's measures.

    Between 1 and C. Raises: ValueError where there are fewer images than splits.
    """
    splits = splits or params.measures().splits
    if len(probabilities) < splits:
        raise ValueError(f"{len(probabilities)} images for {splits} splits: expected at least one image each")
    p = np.clip(probabilities, 1e-12, 1)
    scores = [np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def most_confident(confidence: np.ndarray, predicted: np.ndarray, share: float) -> np.ndarray:
    """Indices of the `share` most confident images of each predicted class: which part of the buffer the JEM++
    and SADA-JEM codes measure IS and FID on.

    confidence (n,) in [0, 1], predicted (n,) class indices, share in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share}: expected a number in (0, 1]")
    kept = []
    for c in np.unique(predicted):
        own = np.flatnonzero(predicted == c)
        kept.append(own[np.argsort(-confidence[own], kind="stable")][: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


def frechet_interval(
    features: np.ndarray,
    real: tuple[np.ndarray, np.ndarray],
    value: float,
    resamples: int | None = None,
    level: float | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Basic bootstrap interval over the images of a Frechet distance, `value`, to fixed moments `real`. None: params.yaml's
    measures.

    A Frechet distance is biased upwards in small sets, and more so in resampled ones: the basic interval,
    2 value - quantiles, turns that shift around, where a percentile interval could miss the value itself.
    """
    rng, resamples = np.random.default_rng(seed), resamples or params.measures().resamples_fd
    found = [frechet(moments(features[rng.integers(len(features), size=len(features))]), real) for _ in range(resamples)]
    low, high = np.quantile(found, ends(level))
    return float(max(0.0, 2 * value - high)), float(2 * value - low)


def quality(images: Tensor, reference, real: tuple[np.ndarray, np.ndarray], device="cpu", resamples: int = 0) -> dict:
    """FD-clf to the moments `real`, and IS-clf, of uint8 images, with how many there were; with `resamples`, FD-clf's
    bootstrap interval over images."""
    feats, probs = features_of(reference, images, device)
    score, spread = inception_score(probs, _splits(images))
    out = {"fd_clf": frechet(moments(feats), real), "is_clf": score, "is_clf_sd": spread, "images": len(images)}
    if resamples:
        out["fd_low"], out["fd_high"] = frechet_interval(feats, real, out["fd_clf"], resamples)
    return out


def _splits(images: Tensor) -> int:
    """How many of IS: params.yaml's measures, or fewer, so that each has two images."""
    return min(params.measures().splits, max(1, len(images) // 2))


# --------------------------------------------------------------------------- sample quality on Inception's features
def fid(features: np.ndarray, real: Moments) -> float:
    """Frechet distance of features (n, F) to those of real images, by clean-fid where the covariance has full rank.

    With n <= F its matrix square root may fail, or get a ridge. There S_a = A^T A, A (n, F) the centred features over
    sqrt(n - 1), so S_a S_b has the eigenvalues of A S_b A^T, (n, n) and symmetric, whose roots add up to tr (S_a S_b)^1/2.
    """
    n, dimensions = features.shape
    if n > dimensions:
        return frechet(moments(features), real[:2])
    if n < 2:
        raise ValueError(f"FID of {n} images: at least 2 are needed")
    features = features.astype(np.float64)
    a = (features - features.mean(0)) / np.sqrt(n - 1)
    root = np.sqrt(np.linalg.eigvalsh(a @ real.covariance @ a.T).clip(0)).sum()
    apart = ((features.mean(0) - real.mean) ** 2).sum()
    return float(max(0.0, apart + (a**2).sum() + np.trace(real.covariance) - 2 * root))


def kid(features: np.ndarray, real: np.ndarray, seed: int = 0) -> float:
    """Kernel Inception Distance by clean-fid (Binkowski et al. 2018): the unbiased squared MMD, cubic kernel, mean over
    100 random subsets of at most 1,000 features; may be negative. features (n, F), real (m, F), n and m >= 2."""
    from lib import vision  # noqa: F401  # isort: skip  (clean-fid imports torchvision: see lib/vision.py)
    from cleanfid.fid import kernel_distance

    before = np.random.get_state()  # it draws its subsets from numpy's global numbers
    try:
        np.random.seed(seed)
        return kernel_distance(features.astype(np.float64), real.astype(np.float64))
    finally:
        np.random.set_state(before)


def inception_quality(images: Tensor, network, real: Moments) -> dict:
    """FID and IS of uint8 images by an `inception.Inception`, to the moments `real` of the same mode; KID beside them where
    images are few. Raises: ValueError where it is needed and `real` has no features for it."""
    features, probabilities = network(images)
    score, spread = inception_score(probabilities, _splits(images))
    out = {"fid": fid(features, real), "is": score, "is_sd": spread}
    if len(images) >= params.measures().few:
        return out
    if real.some is None:
        raise ValueError(f"moments without features: expected some (Moments.some) for the KID of {len(images)} images")
    return {**out, "kid": kid(features, real.some)}
