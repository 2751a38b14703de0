"""Measure a trained run:  python -m lib.evaluate jempp-m10 [--profile quick]

writes results/<profile>/metrics/<run>.json (kept in git), one entry per seed and their mean. The reference
classifier and the run are read from artifacts/; nothing is trained.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib import ROOT, data, files, params, train
from lib.measures import inception, metrics, uncertainty
from lib.parts import networks, samplers
from lib.parts.energy import Energy, log_p_y
from lib.training import checkpoint, distributed

SHARE = 0.1  # of the buffer, most confident per class: the JEM++ code's protocol (it offers 0.1 and 0.9)
BATCH = 250  # images moved at once
RESAMPLES = 30  # of FD-clf's bootstrap interval: its matrix square roots are slow
FRESH = 1000  # chains without the buffer: as many as the most confident share of 10,000
SOME = 5000  # of Inception's features of the data, kept for KID
KEPT = ("verdict", "iterations", "planned", "epochs", "divergences", "seconds", "seconds_per_epoch")  # of training's


@dataclass
class Trained:
    """A run as it came out of training: what notebooks and evaluation work with.

    model = load_run("jempp-m10")
    images = model.sample(16)                # uint8 (16, C, H, W)
    p, s = model.classify(images), model.score(images)      # p(y|x) (16, classes); log p(x) + log Z (16,)
    """

    run: params.Run
    seed: int
    model: networks.Network
    buffer: torch.Tensor | None  # uint8 (|B|, C, H, W)
    metrics: dict
    provenance: dict
    folder: Path
    shape: tuple[int, int, int] | None = None  # of its images, (C, H, W); None: not checked

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def energy(self, y=None) -> Energy:
        """Its energy, in fp32."""
        return Energy(self.model, y)

    def perturb(self, x: torch.Tensor, K: int, alpha: float, radius: float | None = None) -> torch.Tensor:
        """Images moved down the energy by K PGD steps of length alpha (in units of the run's range): how AT-EBM
        generates, translates and repairs. uint8 (n, C, H, W) -> uint8, evaluation mode."""
        low, moved = self.run.low, []
        for part in metrics.batches(x, BATCH):
            chain = samplers.pgd(
                self.energy(), data.to_range(part.to(self.device), low), K=K, alpha=alpha, radius=radius, clip=(low, 1.0)
            )
            moved.append(data.to_bytes(samplers.last(chain), low).cpu())
        return torch.cat(moved)

    def sample(self, n: int, generator: torch.Generator | None = None, fresh: bool = False) -> torch.Tensor:
        """n images that the model makes, uint8 (n, C, H, W).

        The JEM family: images of the replay buffer, none twice before all were drawn, after one more visit, as in training:
        the run's own step, batch norm by the batch's statistics. AT-EBM: p0 images after `generation.steps` steps.

        Args:
            generator: on the CPU, on every device; None: torch's global random numbers.
            fresh: start at p0 in place of the buffer, and move on for the 1 / reinit visits that a chain in the buffer has
                behind it on average: what the energy makes without its buffer.
        Raises: ValueError for a classifier, which has no chain, or n < 1; DataError where fresh starts lack their data.
        """
        run = self.run
        if run.step is None or n < 1:
            raise ValueError(
                f"{n} samples of {run.name}: "
                + (
                    "expected at least 1"
                    if run.step
                    else "a classifier has no chain; expected a run with a start and a step, such as jempp-m10"
                )
            )
        if run.generation:
            starts = data.to_bytes(self._fresh(n, generator), run.low)
            return self.perturb(starts, run.generation.steps, run.generation.alpha)
        m = max(n, run.update.batch)  # batch norm looks at the batch: no fewer chains than in training
        x0 = self._fresh(m, generator) if fresh else data.to_range(self.buffer[self._shuffled(m, generator)], run.low)
        noise = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        visits = round(1 / max(run.start.reinit, 0.01)) if fresh else 1
        with networks.batch_statistics(self.model):
            moved = [self._visit(part, visits, noise) for part in x0.tensor_split(-(-m // BATCH))]
        return torch.cat(moved)[:n]

    def _fresh(self, n: int, generator) -> torch.Tensor:
        """n draws from the run's p0, in its range."""
        split = data.load(self.run.profile, self.run.data)
        return train.start_of(self.run, split, "cpu").draw(n, generator)

    def _shuffled(self, n: int, generator) -> torch.Tensor:
        """n indices of the buffer: whole permutations, the last one cut off."""
        turns = range(-(-n // len(self.buffer)))
        return torch.cat([torch.randperm(len(self.buffer), generator=generator) for _ in turns])[:n]

    def _visit(self, x: torch.Tensor, visits: int, noise: torch.Generator) -> torch.Tensor:
        x = x.to(self.device)
        for _ in range(visits):
            x = samplers.last(samplers.sample(self.energy(), x, self.run.step, noise, self.run.low))
        return data.to_bytes(x, self.run.low).cpu()

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """p(y|x) of uint8 images (n, C, H, W): (n, classes), rows add up to 1. Evaluation mode; without the input noise
        under which accuracy is measured. Raises: ValueError for AT-EBM, which has no classes, and for other images."""
        if self.model.head.out_features == 1:
            raise ValueError(
                f"run {self.run.name} has one logit and no classes: use score, or a run with labels, such as jempp-m10"
            )
        return log_p_y(metrics.logits_of(self.model, self._checked(x), device=self.device, low=self.run.low)).exp()

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) + log Z in nats of uint8 images (n, C, H, W): (n,), higher is more like the training data; log Z is one
        unknown number, so scores compare within a model only. Raises: ValueError for other images."""
        return torch.from_numpy(uncertainty.scores(self.model, self._checked(x), "log_p_x", self.device, self.run.low))

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.uint8 or x.dim() != 4 or (self.shape and tuple(x.shape[1:]) != tuple(self.shape)):
            wanted = ", ".join(map(str, self.shape or ("C", "H", "W")))
            raise ValueError(
                f"images {x.dtype} of shape {tuple(x.shape)}: expected torch.uint8 (n, {wanted}), as "
                f"{self.run.name} was trained on; data.to_bytes and sources.resize make them"
            )
        return x


def load_run(name: str, profile: str | None = None, seed: int | None = None, device="cpu") -> Trained:
    """A trained run by name; its methods sample, classify and score (Trained). seed: None: the run's first.
    Raises: data.DataError where it has not been trained, where a file of it is missing, damaged, or another run's."""
    run = params.run(name, profile)
    seed = run.seeds[0] if seed is None else seed
    folder = ROOT / "artifacts" / run.profile / run.name / f"seed{seed}"
    remedy = f"train it with python -m lib.train {name} --profile {run.profile}, or run dvc repro"
    if not (folder / "weights.pt").exists():
        raise data.DataError(f"{folder} has no weights: {remedy}")
    about = files.read_json(folder / "provenance.json", remedy, ("run", "profile", "seed", "precision"))
    if (its := (about["run"], about["profile"], about["seed"])) != (run.name, run.profile, seed):
        raise data.DataError(
            f"{folder} holds {its[0]}, profile {its[1]}, seed {its[2]}; expected {run.name}, {run.profile}, {seed}: {remedy}"
        )
    numbers, split = files.read_json(folder / "metrics.json", remedy, KEPT), data.load(run.profile, run.data)
    model = networks.build(
        **run.network.model_dump(), classes=len(split.classes), channels=split.shape[0], size=split.shape[1]
    )
    _load_weights(model, folder, remedy)
    chains = run.start is not None and run.start.kind != "images"
    buffer = _buffer(folder, split.shape, remedy) if chains else None
    return Trained(run, seed, model.to(distributed.device(device)).eval(), buffer, numbers, about, folder, split.shape)


def _load_weights(model: torch.nn.Module, folder: Path, remedy: str) -> None:
    path = folder / "weights.pt"
    checkpoint.load_weights(model, files.read_tensors(path, remedy), path, remedy)


def _buffer(folder: Path, shape: tuple[int, ...], remedy: str) -> torch.Tensor:
    """The replay buffer, uint8 (|B|, *shape). Raises: DataError where it is missing, damaged or of another kind."""
    x = files.read_tensors(folder / "buffer.pt", remedy)
    if not isinstance(x, torch.Tensor) or x.dtype != torch.uint8 or tuple(x.shape[1:]) != tuple(shape) or not len(x):
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise data.DataError(
            f"{folder / 'buffer.pt'} holds {what}; expected torch.uint8 (n, {', '.join(map(str, shape))}): {remedy}"
        )
    return x


def _retrain(trained: Trained) -> str:
    return f"train it anew with python -m lib.train {trained.run.name} --profile {trained.run.profile}"


@dataclass
class Judge:
    """What images are measured by, against train + test images (the papers' reference): the reference classifier's
    features, and Inception's in the modes that the profile asks for."""

    reference: Trained
    real: metrics.Moments
    inception: dict[str, tuple[inception.Inception, metrics.Moments]]  # by mode
    device: str = "cpu"

    @classmethod
    def of(cls, reference: Trained, split: data.Split, modes=(), device="cpu") -> Judge:
        networks = {mode: inception.Inception(mode, device) for mode in modes}
        return cls(
            reference,
            moments_of_data(reference, split, device),
            {mode: (network, moments_of_data(network, split, device)) for mode, network in networks.items()},
            device,
        )

    def __call__(self, images: torch.Tensor, resamples: int = 0, along: bool = False) -> dict:
        """FD-clf and IS-clf of uint8 images, with `resamples` an interval too; under `inception`, mode -> FID, IS, KID.
        along: one of many measurements along training, by the first mode alone."""
        out = metrics.quality(images, self.reference.model, self.real, self.device, resamples)
        if modes := list(self.inception)[: 1 if along else None]:
            out["inception"] = {mode: metrics.inception_quality(images, *self.inception[mode]) for mode in modes}
        return out


def measure(trained: Trained, judge: Judge | None, split: data.Split, device="cpu") -> dict:
    """Test accuracy with its bootstrap interval; FD-clf and IS-clf of the buffer, by both protocols, and of
    fresh p0 draws, all against train + test images (the papers' reference). Where Inception measures too, chains that
    never saw the buffer are a fifth protocol, `fresh`. A classifier needs no judge."""
    if trained.run.generation:
        return generated(trained, judge)
    logits = metrics.logits_of(trained.model, split.x_test, trained.run.augment.noise, device=device)
    hits = (logits.argmax(1) == split.y_test).numpy()
    low, high = metrics.bootstrap(hits)
    out = {"accuracy": float(hits.mean()), "accuracy_low": low, "accuracy_high": high, "test_images": len(hits)}
    out["calibration"] = calibration(logits, split.y_test)
    if trained.buffer is None:
        return out
    out["buffer"] = judge(trained.buffer, RESAMPLES)
    own = log_p_y(metrics.logits_of(trained.model, trained.buffer, device=device)).exp().numpy()
    kept = metrics.most_confident(own.max(1), own.argmax(1), SHARE)
    if len(kept) >= 10:
        out["confident"] = {**judge(trained.buffer[kept]), "share": SHARE}
        # A Frechet distance grows as images get fewer: the fair comparison is as many images at random.
        some = torch.randperm(len(trained.buffer), generator=torch.Generator().manual_seed(0))[: len(kept)]
        out["matched"] = judge(trained.buffer[some])
    start = train.start_of(trained.run, split, "cpu")
    draws = data.to_bytes(start.draw(len(trained.buffer), torch.Generator().manual_seed(0)))
    out["start"] = judge(draws)
    if judge.inception:
        fresh = trained.sample(min(FRESH, len(trained.buffer)), torch.Generator().manual_seed(0), fresh=True)
        out["fresh"] = judge(fresh)
    if folders := sorted(trained.folder.glob("snapshots/*")):
        out["snapshots"] = [along(trained, f, judge, split) for f in folders]
    return out


def moments_of_data(extractor: Trained | inception.Inception, split: data.Split, device="cpu") -> metrics.Moments:
    """Moments of the features of training and test images together, by the reference classifier or by Inception. They
    are the same for every run measured by one extractor, so they are kept in scratch/, under a hash of all they depend
    on."""
    ours = isinstance(extractor, Trained)
    content = hashlib.sha256((extractor.folder / "weights.pt").read_bytes() if ours else extractor.key.encode())
    for part in (split.x_train, split.x_test):
        content.update(part.contiguous().numpy())
    path = ROOT / "scratch" / f"moments-{content.hexdigest()[:16]}.npz"
    if path.exists():
        try:
            with np.load(path) as f:
                return metrics.Moments(**f)
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            print(f"{path} is damaged ({type(e).__name__}): computed anew", file=sys.stderr)
    x = torch.cat([split.x_train, split.x_test])
    features = metrics.features_of(extractor.model, x, device)[0] if ours else extractor(x)[0]
    mean, covariance = metrics.moments(features)
    found = metrics.Moments(
        mean,
        covariance,
        None if ours else features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:SOME].numpy()],
    )
    content = io.BytesIO()
    np.savez(content, **{k: v for k, v in found._asdict().items() if v is not None})
    files.write_bytes(path, content.getvalue())
    return found


def generated(trained: Trained, judge: Judge) -> dict:
    """AT-EBM: FD-clf and IS-clf of p0 images after `generation.steps` steps, of the same images before, and of the
    weights kept along the way; the binary task at the end of training; the time of an image."""
    how = trained.run.generation
    p0, g = data.p0(trained.run), torch.Generator().manual_seed(0)
    sources = p0[torch.randint(len(p0), (how.images,), generator=g)]
    began = time.perf_counter()
    samples = trained.perturb(sources, how.steps, how.alpha)
    seconds = (time.perf_counter() - began) / len(samples)
    out = {"samples": judge(samples, RESAMPLES), "start": judge(sources), "seconds_per_image": seconds}
    if folders := sorted(trained.folder.glob("snapshots/*")):
        out["snapshots"], model = [], copy.deepcopy(trained.model)
        for f in folders:
            _load_weights(model, f, _retrain(trained))
            few = replace(trained, model=model).perturb(sources[:500], how.steps, how.alpha)
            out["snapshots"].append({"iteration": int(f.name), **judge(few, along=True)})
    return out


def calibration(logits: torch.Tensor, y: torch.Tensor) -> dict:
    """ECE with 20 bins and its bootstrap interval, and the reliability diagram (null where a bin is empty)."""
    sure, hit = log_p_y(logits).exp().amax(1).clamp(0, 1).numpy(), (logits.argmax(1) == y).numpy()
    low, high = uncertainty.bootstrap_statistic(uncertainty.ece, sure, hit, paired=True)
    r = uncertainty.reliability(sure, hit)
    nones = {k: [None if v != v else float(v) for v in getattr(r, k)] for k in ("confidence", "accuracy")}
    return {"ece": uncertainty.ece(sure, hit), "ece_low": low, "ece_high": high, "count": r.count.tolist(), **nones}


def along(trained: Trained, folder: Path, judge: Judge, split: data.Split) -> dict:
    """Accuracy and sample quality of a snapshot taken during training (JEM++ Figure 6)."""
    model = copy.deepcopy(trained.model)
    _load_weights(model, folder, _retrain(trained))
    logits = metrics.logits_of(model, split.x_test, trained.run.augment.noise, device=judge.device)
    found = {"iteration": int(folder.name), "accuracy": metrics.accuracy(logits, split.y_test)}
    if trained.buffer is not None:
        found |= judge(_buffer(folder, split.shape, _retrain(trained)), along=True)
    return found


def evaluate(name: str, profile: str | None = None, device: str | None = None) -> dict:
    """Measure every seed of a run and summarise: mean and standard deviation over seeds of each number."""
    run = params.run(name, profile)
    skipped = ROOT / "artifacts" / run.profile / name / "skipped.json"
    if skipped.exists():
        return files.read_json(skipped, f"run python -m lib.train {name} --profile {run.profile}", ("skipped",))
    device = distributed.device(device)
    if run.threads:
        torch.set_num_threads(run.threads)
    split = data.load(run.profile, run.data)
    reference = load_run(run.reference, run.profile, device=device)
    judge = Judge.of(reference, split, params.inception(run.profile), device) if run.step else None
    seeds = []
    for seed in run.seeds:
        trained = load_run(name, run.profile, seed, device)
        seeds.append({"seed": seed, **{k: trained.metrics[k] for k in KEPT}, **measure(trained, judge, split, device)})
    weights = (reference.folder / "weights.pt").read_bytes()
    out = {
        "run": name,
        "title": run.title,
        "data": split.title,
        "seeds": seeds,
        "mean": _over(seeds, np.mean),
        "sd": _over(seeds, lambda v: np.std(v, ddof=1) if len(v) > 1 else 0.0),
        "feature_extractor": hashlib.sha256(weights).hexdigest()[:16],
        "precision": trained.provenance["precision"],
    }
    return {**out, "inception": inception.SHA256} if judge and judge.inception else out


def _over(dicts: list[dict], how) -> dict:
    out = {}
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
    path = ROOT / "results" / profile / "metrics" / f"{args.run}.json"
    files.writable(path.parent, ROOT / "scratch")
    result = evaluate(args.run, profile)
    files.write_json(path, result)
    print(json.dumps(result.get("mean", result), indent=1))


if __name__ == "__main__":
    main()
