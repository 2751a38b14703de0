"""What a trained classifier is good for beyond its accuracy:  python -m lib.applications jempp-m10 [--profile quick]

Robustness to PGD in two norms and out-of-distribution detection by two scores (JEM++ supplement Sec. 3, SADA-JEM
Sec. 4.3 and 4.4), written to results/<profile>/applications/<run>.json. Sizes: `scales.<profile>.applications`.
"""
from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch
from torch import Tensor

from lib import ROOT, attacks, data, evaluate, metrics, params, uncertainty

BINS = 40       # of the histograms of log p(x)


def ood_sets(profile: str, role: str, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Name -> uint8 images (<= n, C, H, W) of another kind than the data of `role`.

    Test images of the profile's other roles where their shape fits, then three sets that need no data: interpolated
    test images, dead leaves, uniform noise.
    """
    split, g = data.load(profile, role), torch.Generator().manual_seed(seed)
    found = {}
    for other in params.scale(profile)["data"]:
        p = params.data(profile, other)
        if other == role or p is None:
            continue
        images = data.load(profile, other)
        if images.shape == split.shape:
            found[data.TITLES[images.name]] = images.x_test[torch.randperm(len(images.x_test), generator=g)[:n]]
    found["Interpolated"] = uncertainty.interpolated(split.x_test, g)[:n]
    found["Dead leaves"] = uncertainty.dead_leaves(n, split.shape, g)
    found["Uniform noise"] = uncertainty.uniform_noise(n, split.shape, g)
    return found


def detection(model, inside: Tensor, outside: dict[str, Tensor], device="cpu") -> dict:
    """AUROC of both scores against each set, with bootstrap intervals, and histograms of log p(x) + log Z (nats)."""
    own = {s: uncertainty.scores(model, inside, s, device) for s in uncertainty.SCORES}
    theirs = {name: {s: uncertainty.scores(model, x, s, device) for s in own} for name, x in outside.items()}
    out = {"auroc": {}, "images": {"inside": len(inside), **{k: len(v) for k, v in outside.items()}}}
    for name, scores in theirs.items():
        out["auroc"][name] = {}
        for s in own:
            low, high = uncertainty.bootstrap_statistic(uncertainty.auroc, own[s], scores[s], resamples=100)
            out["auroc"][name][s] = {"value": uncertainty.auroc(own[s], scores[s]), "low": low, "high": high}
    every = np.concatenate([own["log_p_x"], *(t["log_p_x"] for t in theirs.values())])
    edges = np.linspace(*np.quantile(every, [0.005, 0.995]), BINS + 1)
    count = {name: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist()
             for name, v in [("inside", own["log_p_x"]), *((k, t["log_p_x"]) for k, t in theirs.items())]}
    return {**out, "histogram": {"edges": edges.tolist(), "count": count}}


def robustness(model, x: Tensor, y: Tensor, sizes: dict, device="cpu") -> dict:
    """Accuracy under PGD over a range of radii: norm -> radii (255ths of the [0, 1] range, as the papers plot them),
    accuracy and its bootstrap interval at each."""
    out = {"images": len(x), "steps": sizes["steps"]}
    for norm in attacks.NORMS:
        radii = sizes[norm]
        shares = attacks.robust_accuracy(model, x, y, [2 * r / 255 for r in radii], norm, sizes["steps"], device=device)
        bounds = [metrics.bootstrap(np.arange(len(x)) < round(s * len(x))) for s in shares]
        out[norm] = {"radii": radii, "accuracy": shares, "low": [b[0] for b in bounds], "high": [b[1] for b in bounds]}
    return out


def apply(name: str, profile: str | None = None, device: str | None = None) -> dict:
    """All of it for the first seed of a run."""
    run = params.run(name, profile)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if run.threads:
        torch.set_num_threads(run.threads)
    sizes, split = params.scale(run.profile)["applications"], data.load(run.profile, run.data)
    trained = evaluate.load_run(name, run.profile, device=device)
    n = min(sizes["attacked"], len(split.x_test))
    return {"run": name, "title": run.title, "data": split.title, "seed": trained.seed,
            "robustness": robustness(trained.model, split.x_test[:n], split.y_test[:n], sizes, device),
            "ood": detection(trained.model, split.x_test, ood_sets(run.profile, run.data, sizes["ood"]), device)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Robustness and out-of-distribution detection of a trained run.")
    parser.add_argument("run")
    parser.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    try:
        profile = params.profile(args.profile)
        result = apply(args.run, profile)
    except (params.ConfigError, data.DataError) as e:
        sys.exit(f"error: {e}")
    path = ROOT / "results" / profile / "applications" / f"{args.run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print({k: round(v["log_p_x"]["value"], 3) for k, v in result["ood"]["auroc"].items()},
          {n: [round(a, 3) for a in result["robustness"][n]["accuracy"]] for n in attacks.NORMS})


if __name__ == "__main__":
    main()
