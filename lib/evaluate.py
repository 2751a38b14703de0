"""Measure a trained run:  python -m lib.evaluate jempp-m10 [--profile quick]

writes results/<profile>/metrics/<run>.json (kept in git), one entry per seed and their mean. The reference
classifier and the run are read from artifacts/; nothing is trained.
"""
from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib import ROOT, data, metrics, networks, params, samplers, train, uncertainty
from lib.energy import Energy, log_p_y

SHARE = 0.1         # of the buffer, most confident per class: the JEM++ code's protocol (it offers 0.1 and 0.9)
BATCH = 250         # images moved at once
RESAMPLES = 30      # of FD-clf's bootstrap interval: its matrix square roots are slow


@dataclass
class Trained:
    """A run as it came out of training: what notebooks and evaluation work with."""
    run: params.Run
    seed: int
    model: networks.Network
    buffer: torch.Tensor | None          # uint8 (|B|, C, H, W)
    metrics: dict
    provenance: dict
    folder: Path

    def energy(self, y=None) -> Energy:
        """Its energy, in fp32."""
        return Energy(self.model, y)

    def perturb(self, x: torch.Tensor, K: int, alpha: float, radius: float | None = None) -> torch.Tensor:
        """Images moved down the energy by K PGD steps of length alpha (in units of the run's range): how AT-EBM
        generates, translates and repairs. uint8 (n, C, H, W) -> uint8, evaluation mode."""
        low, device = self.run.low, next(self.model.parameters()).device
        moved = []
        for part in x.split(BATCH):
            chain = samplers.pgd(self.energy(), data.to_range(part.to(device), low), K=K, alpha=alpha, radius=radius,
                                 clip=(low, 1.0))
            moved.append(data.to_bytes(samplers.last(chain), low).cpu())
        return torch.cat(moved)


def load_run(name: str, profile: str | None = None, seed: int | None = None, device="cpu") -> Trained:
    """A trained run by name. Raises: data.DataError where it has not been trained."""
    run = params.run(name, profile)
    seed = run.seeds[0] if seed is None else seed
    folder = ROOT / "artifacts" / run.profile / run.name / f"seed{seed}"
    if not (folder / "weights.pt").exists():
        raise data.DataError(f"{folder} has no weights: train it with python -m lib.train {name} --profile "
                             f"{run.profile}, or run dvc repro")
    split = data.load(run.profile, run.data)
    model = networks.build(**run.network.model_dump(), classes=len(split.classes), channels=split.shape[0],
                           size=split.shape[1])
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    buffer = folder / "buffer.pt"
    return Trained(run, seed, model.to(device).eval(), torch.load(buffer, weights_only=True) if buffer.exists() else None,
                   json.loads((folder / "metrics.json").read_text()),
                   json.loads((folder / "provenance.json").read_text()), folder)


def measure(trained: Trained, reference: Trained, split: data.Split, device="cpu") -> dict:
    """Test accuracy with its bootstrap interval; FD-clf and IS-clf of the buffer, by both protocols, and of
    fresh p0 draws, all against train + test images (the papers' reference)."""
    if trained.run.generation:
        return generated(trained, reference, split, device)
    logits = metrics.logits_of(trained.model, split.x_test, trained.run.augment.noise, device=device)
    hits = (logits.argmax(1) == split.y_test).numpy()
    low, high = metrics.bootstrap(hits)
    out = {"accuracy": float(hits.mean()), "accuracy_low": low, "accuracy_high": high, "test_images": len(hits)}
    out["calibration"] = calibration(logits, split.y_test)
    if trained.buffer is None:
        return out
    real = moments_of_data(reference, split, device)
    out["buffer"] = metrics.quality(trained.buffer, reference.model, real, device, RESAMPLES)
    own = log_p_y(metrics.logits_of(trained.model, trained.buffer, device=device)).exp().numpy()
    kept = metrics.most_confident(own.max(1), own.argmax(1), SHARE)
    if len(kept) >= 10:
        out["confident"] = {**metrics.quality(trained.buffer[kept], reference.model, real, device), "share": SHARE}
        # A Frechet distance grows as images get fewer: the fair comparison is as many images at random.
        some = torch.randperm(len(trained.buffer), generator=torch.Generator().manual_seed(0))[:len(kept)]
        out["matched"] = metrics.quality(trained.buffer[some], reference.model, real, device)
    start = train.start_of(trained.run, split, "cpu")
    draws = data.to_bytes(start.draw(len(trained.buffer), torch.Generator().manual_seed(0)))
    out["start"] = metrics.quality(draws, reference.model, real, device)
    if folders := sorted(trained.folder.glob("snapshots/*")):
        out["snapshots"] = [along(trained, f, reference, split, real, device) for f in folders]
    return out


def moments_of_data(reference: Trained, split: data.Split, device="cpu") -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the reference's features of training and test images together. They are the same for
    every run measured by one reference, so they are kept in scratch/, under a hash of all that they depend on."""
    x = torch.cat([split.x_train, split.x_test])
    content = hashlib.sha256((reference.folder / "weights.pt").read_bytes() + x.numpy().tobytes()).hexdigest()[:16]
    path = ROOT / "scratch" / f"moments-{content}.npz"
    if path.exists():
        with np.load(path) as f:
            return f["mean"], f["covariance"]
    mean, covariance = metrics.moments(metrics.features_of(reference.model, x, device)[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{os.getpid()}-{path.name}")       # another stage may be at the same work
    np.savez(unfinished, mean=mean, covariance=covariance)
    os.replace(unfinished, path)
    return mean, covariance


def generated(trained: Trained, reference: Trained, split: data.Split, device="cpu") -> dict:
    """AT-EBM: FD-clf and IS-clf of p0 images after `generation.steps` steps, of the same images before, and of the
    weights kept along the way; the binary task at the end of training; the time of an image."""
    how = trained.run.generation
    real = moments_of_data(reference, split, device)
    p0, g = data.p0(trained.run), torch.Generator().manual_seed(0)
    sources = p0[torch.randint(len(p0), (how.images,), generator=g)]
    began = time.perf_counter()
    samples = trained.perturb(sources, how.steps, how.alpha)
    seconds = (time.perf_counter() - began) / len(samples)
    out = {"samples": metrics.quality(samples, reference.model, real, device, RESAMPLES),
           "start": metrics.quality(sources, reference.model, real, device), "seconds_per_image": seconds}
    if folders := sorted(trained.folder.glob("snapshots/*")):
        out["snapshots"], model = [], copy.deepcopy(trained.model)
        for f in folders:
            model.load_state_dict(torch.load(f / "weights.pt", weights_only=True))
            few = replace(trained, model=model).perturb(sources[:500], how.steps, how.alpha)
            out["snapshots"].append({"iteration": int(f.name), **metrics.quality(few, reference.model, real, device)})
    return out


def calibration(logits: torch.Tensor, y: torch.Tensor) -> dict:
    """ECE with 20 bins and its bootstrap interval, and the reliability diagram (null where a bin is empty)."""
    sure, hit = log_p_y(logits).exp().amax(1).clamp(0, 1).numpy(), (logits.argmax(1) == y).numpy()
    low, high = uncertainty.bootstrap_statistic(uncertainty.ece, sure, hit, paired=True)
    r = uncertainty.reliability(sure, hit)
    nones = {k: [None if v != v else float(v) for v in getattr(r, k)] for k in ("confidence", "accuracy")}
    return {"ece": uncertainty.ece(sure, hit), "ece_low": low, "ece_high": high, "count": r.count.tolist(), **nones}


def along(trained: Trained, folder: Path, reference: Trained, split: data.Split, real, device) -> dict:
    """Accuracy and sample quality of a snapshot taken during training (JEM++ Figure 6)."""
    model = copy.deepcopy(trained.model)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    logits = metrics.logits_of(model, split.x_test, trained.run.augment.noise, device=device)
    found = {"iteration": int(folder.name), "accuracy": metrics.accuracy(logits, split.y_test)}
    if (folder / "buffer.pt").exists():
        found |= metrics.quality(torch.load(folder / "buffer.pt", weights_only=True), reference.model, real, device)
    return found


def evaluate(name: str, profile: str | None = None, device: str | None = None) -> dict:
    """Measure every seed of a run and summarise: mean and standard deviation over seeds of each number."""
    run = params.run(name, profile)
    skipped = ROOT / "artifacts" / run.profile / name / "skipped.json"
    if skipped.exists():
        return json.loads(skipped.read_text())
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if run.threads:
        torch.set_num_threads(run.threads)
    split = data.load(run.profile, run.data)
    reference = load_run(run.reference, run.profile, device=device)
    seeds = []
    for seed in run.seeds:
        trained = load_run(name, run.profile, seed, device)
        seeds.append({"seed": seed, **{k: trained.metrics[k] for k in ("verdict", "iterations", "planned", "epochs",
                                                                      "divergences", "seconds", "seconds_per_epoch")},
                      **measure(trained, reference, split, device)})
    weights = (reference.folder / "weights.pt").read_bytes()
    return {"run": name, "title": run.title, "data": split.title, "seeds": seeds, "mean": _over(seeds, np.mean),
            "sd": _over(seeds, lambda v: np.std(v, ddof=1) if len(v) > 1 else 0.0),
            "feature_extractor": hashlib.sha256(weights).hexdigest()[:16], "precision": trained.provenance["precision"]}


def _over(dicts: list[dict], how) -> dict:
    out = {}
    for key, value in dicts[0].items():
        if isinstance(value, dict):
            out[key] = _over([d[key] for d in dicts], how)
        elif isinstance(value, (int, float)) and key != "seed":
            out[key] = float(how([d[key] for d in dicts]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained run.")
    parser.add_argument("run")
    parser.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    try:
        profile = params.profile(args.profile)
        result = evaluate(args.run, profile)
    except (params.ConfigError, data.DataError) as e:
        sys.exit(f"error: {e}")
    path = ROOT / "results" / profile / "metrics" / f"{args.run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("mean", result), indent=1))


if __name__ == "__main__":
    main()
