"""Measure a trained run:  python -m lib.evaluate jempp-m10 [--profile quick]

writes results/<profile>/details/<run>.json, one entry per seed and their mean, and some ten of these numbers for `dvc
metrics show` to results/<profile>/metrics/<run>.json; both are kept in git. The reference classifier and the run are read
from artifacts/; nothing is trained. How runs are measured: params.yaml's `measures`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib import ROOT, data, files, params
from lib.measures import inception, metrics, uncertainty
from lib.models import KEPT, Trained, load_run, load_weights, read_buffer
from lib.parts.cell import given
from lib.parts.energy import log_p_y
from lib.training import distributed


@dataclass
class Quality:
    """Distances of images from train + test images (the papers' reference): by the reference classifier's features, and by
    Inception's in the modes that the profile asks for."""

    reference: Trained
    real: metrics.Moments
    inception: dict[str, tuple[inception.Inception, metrics.Moments]]  # by mode
    device: str | torch.device = "cpu"

    @classmethod
    def of(
        cls, reference: Trained, split: data.Split, modes: Sequence[str] = (), device: str | torch.device = "cpu"
    ) -> Quality:
        """The distances from a data set, with Inception's networks for `modes`.
        Raises: ConfigError for a reference that is no classifier of images in [-1, 1]."""
        if not reference.run.labelled or reference.run.range != "symmetric":
            raise params.ConfigError(
                f"reference {reference.run.name}: loss {', '.join(reference.run.loss.terms)}, range {reference.run.range}; "
                "expected a classifier of images in [-1, 1], such as reference"
            )
        networks = {mode: inception.Inception(mode, device) for mode in modes}
        moments = {mode: (network, moments_of_data(network, split, device)) for mode, network in networks.items()}
        return cls(reference, moments_of_data(reference, split, device), moments, device)

    def __call__(self, images: torch.Tensor, resamples: int = 0, brief: bool = False) -> dict:
        """FD-clf and IS-clf of uint8 images, with `resamples` an interval too; under `inception`, mode -> FID, IS, KID.
        brief: one of many measurements along training, by the first mode only."""
        out = metrics.quality(images, self.reference.model, self.real[:2], self.device, resamples)
        if modes := list(self.inception)[: 1 if brief else None]:
            out["inception"] = {mode: metrics.inception_quality(images, *self.inception[mode]) for mode in modes}
        return out


Device = str | torch.device


def measure(trained: Trained, quality: Quality | None, split: data.Split, device: Device = "cpu") -> dict:
    """What a run's cells make measurable: accuracy and calibration where it has labels; where it has chains, the distances
    of its samples and of their starts from train + test images.
    Raises: ConfigError for a run with chains without `quality`, which a classifier does not need."""
    run = trained.run
    out = classified(trained, split, device) if run.labelled else {}
    if run.step is None:
        return out
    quality = given(quality, f"run {run.name} makes samples: expected a Quality to measure them by, not None")
    if run.generation:
        return out | generated(trained, quality)
    out |= of_samples(trained, quality) if trained.buffer is None else of_buffer(trained, quality, device)
    n = params.measures().fresh if trained.buffer is None else len(trained.buffer)
    out["start"] = quality(data.to_bytes(trained.p0(split).sample(n, seeded()), run.low))
    if quality.inception and trained.buffer is not None:  # chains that never saw the buffer
        out["fresh"] = quality(trained.sample(min(params.measures().fresh, n), seeded(), fresh=True))
    if folders := sorted(trained.folder.glob("snapshots/*")):
        out["snapshots"] = [snapshot(earlier(trained, f), quality, split) for f in folders]
    return out


def earlier(trained: Trained, folder: Path) -> Trained:
    """A run as it was at a snapshot, `folder`: its weights then, and its buffer."""
    again = f"train it anew with python -m lib.train {trained.run.name} --profile {trained.run.profile}"
    model = copy.deepcopy(trained.model)
    load_weights(model, folder, again)
    buffer = trained.buffer if trained.buffer is None else read_buffer(folder, tuple(trained.buffer.shape[1:]), again)
    return replace(trained, model=model, buffer=buffer, folder=folder)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def classified(trained: Trained, split: data.Split, device: Device = "cpu") -> dict:
    """Test accuracy with its bootstrap interval, and calibration."""
    logits = test_logits(trained, split, device)
    hits = (logits.argmax(1) == split.y_test).numpy()
    low, high = metrics.bootstrap(hits)
    out = {"accuracy": float(hits.mean()), "accuracy_low": low, "accuracy_high": high, "test_images": len(hits)}
    return {**out, "calibration": calibration(logits, split.y_test)}


def test_logits(trained: Trained, split: data.Split, device: Device) -> torch.Tensor:
    """Logits (n, C) of the test images."""
    run = trained.run
    return metrics.logits_of(trained.model, split.x_test, run.input_noise, device=device, low=run.low)


def of_samples(trained: Trained, quality: Quality) -> dict:
    """Samples of a run without a replay buffer."""
    how = params.measures()
    return {"samples": quality(trained.sample(how.fresh, seeded()), how.resamples_fd)}


def of_buffer(trained: Trained, quality: Quality, device: Device = "cpu") -> dict:
    """The replay buffer; where there are classes, also its most confident images of each, and as many at random: a Frechet
    distance grows as images get fewer, so these are the fair comparison."""
    buffer, how = given(trained.buffer, f"run {trained.run.name} has no replay buffer"), params.measures()
    out = {"buffer": quality(buffer, how.resamples_fd)}
    if not trained.run.labelled:
        return out
    p = log_p_y(metrics.logits_of(trained.model, buffer, device=device, low=trained.run.low)).exp().numpy()
    kept = metrics.most_confident(p.max(1), p.argmax(1), how.confident)
    if len(kept) >= 10:
        out["confident"] = {**quality(buffer[kept]), "share": how.confident}
        out["matched"] = quality(buffer[torch.randperm(len(buffer), generator=seeded())[: len(kept)]])
    return out


def moments_of_data(extractor: Trained | inception.Inception, split: data.Split, device: Device = "cpu") -> metrics.Moments:
    """Moments of the features of training and test images together, by the reference classifier or by Inception. They
    are the same for every run measured by one extractor, so they are kept in scratch/, under a hash of all they depend
    on."""
    kept = params.measures().kid  # features, for KID, by Inception alone
    if isinstance(extractor, Trained):
        which = (extractor.folder / "weights.pt").read_bytes()
    else:
        which = f"{extractor.key} {kept}".encode()
    depends = hashlib.sha256(which)
    for part in (split.x_train, split.x_test):
        depends.update(part.reshape(-1).numpy().data)
    path = ROOT / "scratch" / f"moments-{depends.hexdigest()[:16]}.npz"
    if (known := _read_moments(path)) is not None:
        return known
    x = torch.cat([split.x_train, split.x_test])
    if isinstance(extractor, Trained):
        found = metrics.Moments(*metrics.moments(metrics.features_of(extractor.model, x, device)[0]))
    else:
        features, _ = extractor(x)
        some = torch.randperm(len(features), generator=seeded())[:kept].numpy()
        found = metrics.Moments(*metrics.moments(features), features[some])
    content = io.BytesIO()
    np.savez(content, **{k: v for k, v in found._asdict().items() if v is not None})
    files.write_bytes(path, content.getvalue())
    return found


def _read_moments(path: Path) -> metrics.Moments | None:
    """None where there are none, or where they are damaged, which is said."""
    if not path.exists():
        return None
    try:
        with np.load(path) as f:
            return metrics.Moments(**f)
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        print(f"{path} is damaged ({type(e).__name__}): computed anew", file=sys.stderr)
        return None


def generated(trained: Trained, quality: Quality) -> dict:
    """p0 images after `generation.steps` steps, the same images before, and by the weights kept along the way: AT-EBM's way;
    and the time of an image."""
    how = given(trained.run.generation, f"run {trained.run.name} has no `generation`: how many steps is not known")
    p0, g = data.p0(trained.run), seeded()
    sources = p0[torch.randint(len(p0), (how.images,), generator=g)]
    began = time.perf_counter()
    samples = trained.perturb(sources, how.steps, how.alpha)
    seconds = (time.perf_counter() - began) / len(samples)
    out = {
        "samples": quality(samples, params.measures().resamples_fd),
        "start": quality(sources),
        "seconds_per_image": seconds,
    }
    if folders := sorted(trained.folder.glob("snapshots/*")):
        few = sources[: params.measures().snapshot]
        moved = ((f, earlier(trained, f).perturb(few, how.steps, how.alpha)) for f in folders)
        out["snapshots"] = [{"iteration": int(f.name), **quality(x, brief=True)} for f, x in moved]
    return out


def calibration(logits: torch.Tensor, y: torch.Tensor) -> dict:
    """ECE and its bootstrap interval, and the reliability diagram (null where a bin is empty)."""
    sure, hit = log_p_y(logits).exp().amax(1).clamp(0, 1).numpy(), (logits.argmax(1) == y).numpy()
    low, high = uncertainty.bootstrap_statistic(uncertainty.ece, sure, hit, paired=True)
    r = uncertainty.reliability(sure, hit)
    nones = {k: [None if v != v else float(v) for v in getattr(r, k)] for k in ("confidence", "accuracy")}
    return {"ece": uncertainty.ece(sure, hit), "ece_low": low, "ece_high": high, "count": r.count.tolist(), **nones}


def snapshot(trained: Trained, quality: Quality, split: data.Split) -> dict:
    """Accuracy and sample quality of a run as it was at a snapshot (JEM++ Figure 6)."""
    found: dict[str, object] = {"iteration": int(trained.folder.name)}
    if trained.run.labelled:
        found["accuracy"] = metrics.accuracy(test_logits(trained, split, quality.device), split.y_test)
    if trained.buffer is not None:
        found |= quality(trained.buffer, brief=True)
    return found


def evaluate(name: str, profile: str | None = None, device: str | None = None) -> dict:
    """Measure every seed of a run and summarise: mean and standard deviation over seeds of each number."""
    run = params.run(name, profile)
    skipped = ROOT / "artifacts" / run.profile / name / "skipped.json"
    if skipped.exists():
        return files.read_json(skipped, f"run python -m lib.train {name} --profile {run.profile}", ("skipped",))
    place = distributed.device(device)
    if run.threads:
        torch.set_num_threads(run.threads)
    split = data.load(run.profile, run.data)
    reference = load_run(run.reference, run.profile, device=place)
    quality = Quality.of(reference, split, params.inception(run.profile), place) if run.step else None
    seeds = []
    for seed in run.seeds:
        trained = load_run(name, run.profile, seed, place)
        seeds.append({"seed": seed, **{k: trained.metrics[k] for k in KEPT}, **measure(trained, quality, split, place)})
    weights = (reference.folder / "weights.pt").read_bytes()
    out = {
        "run": name,
        "title": run.title,
        "data": split.title,
        "seeds": seeds,
        "mean": _over(seeds, np.mean),
        "sd": _over(seeds, lambda v: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0),
        "feature_extractor": hashlib.sha256(weights).hexdigest()[:16],
        "precision": trained.provenance["precision"],
    }
    return {**out, "inception": inception.SHA256} if quality and quality.inception else out


def summary(measured: dict) -> dict:
    """Some ten numbers of a run, for which a terminal has room (`dvc metrics show`): means over seeds, to four digits, and
    with more than one seed their standard deviation. acc: test accuracy; fd_clf, is_clf: of the replay buffer, or of
    AT-EBM's samples; low and high: their intervals; seconds: of training."""
    if "skipped" in measured:
        return {"verdict": "skipped"}
    m, sd, seeds = measured["mean"], measured["sd"], measured["seeds"]
    images = "samples" if "samples" in m else "buffer"
    found = {
        "acc": m.get("accuracy"),
        "acc_low": m.get("accuracy_low"),
        "acc_high": m.get("accuracy_high"),
        "ece": m.get("calibration", {}).get("ece"),
        **{key: m.get(images, {}).get(key) for key in ("fd_clf", "fd_low", "fd_high", "is_clf")},
        "seconds": m["seconds"],
    }
    if len(seeds) > 1:
        found |= {"acc_sd": sd.get("accuracy"), "fd_sd": sd.get(images, {}).get("fd_clf")}
    ends = Counter(s["verdict"].replace("at iteration", "at") for s in seeds)  # 'finished', 'diverged at 413'
    verdict = next(iter(ends)) if len(ends) == 1 else ", ".join(f"{n} {end}" for end, n in ends.items())
    return {k: _four(v) for k, v in found.items() if v is not None} | {"verdict": verdict}


def _four(v: float) -> float:
    """Four digits, at most four of them decimals: rounded once."""
    return round(v, max(0, min(4, 3 - math.floor(math.log10(abs(v)))))) if v else 0.0


def _over(dicts: list[dict], how: Callable[[list[float]], float]) -> dict:
    """`how` of each number that the dicts hold, section by section."""
    out: dict[str, object] = {}
    for key, value in dicts[0].items():
        if isinstance(value, dict):
            out[key] = _over([d[key] for d in dicts], how)
        elif isinstance(value, (int, float)) and key != "seed":
            out[key] = float(how([d[key] for d in dicts]))
    return out


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained run.")
    parser.add_argument("run")
    parser.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    profile = params.profile(args.profile)
    folder = ROOT / "results" / profile
    files.writable(folder / "details", folder / "metrics", ROOT / "scratch")
    write(folder, args.run, result := evaluate(args.run, profile))
    print(json.dumps(result.get("mean", result), indent=1))


def write(folder: Path, name: str, measured: dict) -> None:
    """What was measured of a run into results/<profile>/: everything to details/, then its summary to metrics/."""
    files.write_json(folder / "details" / f"{name}.json", measured)
    files.write_json(folder / "metrics" / f"{name}.json", summary(measured))


if __name__ == "__main__":
    main()
