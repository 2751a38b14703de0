"""What a trained model is good for beyond its accuracy:  python -m lib.applications jempp-m10 robustness ood

Robustness to PGD in two norms, out-of-distribution detection by two scores (JEM++ supplement Sec. 3, SADA-JEM Sec. 4.3
and 4.4), robustness with Langevin purification (`purified`), detection of outliers that were attacked (`worst_case`,
AT-EBM Sec. 5.2), written to results/<profile>/applications/<run>.json. Sizes: `scales.<profile>.applications`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from lib import ROOT, data, evaluate, files, params
from lib.data import outliers
from lib.measures import attacks, metrics, purification, uncertainty
from lib.measures.worst_case import log_p_x, max_p_y, worst_case_scores
from lib.parts.energy import Energy, resolve_precision
from lib.training import distributed

MEASURES = ("robustness", "ood", "purified", "worst_case")
LABELLED = ("robustness", "purified")  # those that need classes


def ood_sets(profile: str, role: str, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Name -> uint8 images (<= n, C, H, W) of another kind than the data of `role`.

    Test images of the profile's other roles where their shape fits, then three sets that need no data: interpolated
    test images, dead leaves, uniform noise.
    """
    split, g = data.load(profile, role), torch.Generator().manual_seed(seed)
    found = {}
    for other in params.scale(profile)["data"]:
        p = params.data(profile, other)
        if other == role or p is None or p.name == split.name:  # one class of the data is not another data set
            continue
        images = data.load(profile, other)
        if images.shape == split.shape:
            found[data.TITLES[images.name]] = images.x_test[torch.randperm(len(images.x_test), generator=g)[:n]]
    found["Interpolated"] = outliers.interpolated(split.x_test, g)[:n]
    found["Dead leaves"] = outliers.dead_leaves(n, split.shape, g)
    found["Uniform noise"] = outliers.uniform_noise(n, split.shape, g)
    return found


def detection(trained: evaluate.Trained, inside: Tensor, outside: dict[str, Tensor], device="cpu") -> dict:
    """AUROC of each score against each set, with bootstrap intervals, and histograms of log p(x) + log Z (nats)."""
    model, low, how = trained.model, trained.run.low, params.measures()
    own = {s: uncertainty.scores(model, inside, s, device, low) for s in scores_of(trained)}
    theirs = {name: {s: uncertainty.scores(model, x, s, device, low) for s in own} for name, x in outside.items()}
    auroc: dict[str, dict[str, dict[str, float]]] = {name: {} for name in theirs}
    for name, scores in theirs.items():
        for s in own:
            bounds = uncertainty.bootstrap_statistic(uncertainty.auroc, own[s], scores[s], resamples=how.resamples_auroc)
            auroc[name][s] = {"value": uncertainty.auroc(own[s], scores[s]), "low": bounds[0], "high": bounds[1]}
    every = np.concatenate([own["log_p_x"], *(t["log_p_x"] for t in theirs.values())])
    first, last = np.quantile(every, [0.005, 0.995])
    edges = np.linspace(first, last, how.histogram + 1)
    count = {
        name: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist()
        for name, v in [("inside", own["log_p_x"]), *((k, t["log_p_x"]) for k, t in theirs.items())]
    }
    images = {"inside": len(inside), **{k: len(v) for k, v in outside.items()}}
    return {"auroc": auroc, "images": images, "histogram": {"edges": edges.tolist(), "count": count}}


def scores_of(trained: evaluate.Trained) -> tuple[str, ...]:
    """Classifiers have two scores, AT-EBM's one logit has only log p(x)."""
    return uncertainty.SCORES if trained.model.head.out_features > 1 else uncertainty.SCORES[:1]


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


def purified_robustness(trained: evaluate.Trained, split: data.Split, sizes: dict, device="cpu") -> dict:
    """Accuracy of the defended classifier, purified by the model's own chain, under PGD, EOT and BPDA (SADA-JEM Sec. 4.4):
    norm -> radii (255ths) and attack -> accuracies; 'undefended' is plain PGD on the bare classifier."""
    s = sizes["purified"]
    n, precision = min(s["images"], len(split.x_test)), resolve_precision("auto", torch.device(device))
    energy = Energy(trained.model, precision=precision)
    x, y, out = split.x_test[:n], split.y_test[:n], {"images": n, "sizes": s, "precision": precision}
    for norm in attacks.NORMS:
        radii = [2 * r / 255 for r in s[norm]]
        out[norm] = {
            "radii": s[norm],
            "undefended": attacks.robust_accuracy(
                trained.model, x, y, radii, norm, s["attack_steps"], by="ours", device=device
            ),
        }
        for attack in purification.ATTACKS:
            out[norm][attack] = purification.purified_accuracy(
                energy,
                x,
                y,
                radii,
                norm,
                attack=attack,
                steps=s["steps"],
                alpha=s["alpha"],
                noise=s["noise"],
                attack_steps=s["attack_steps"],
                attack_chains=s["attack_chains"],
                defend_chains=s["defend_chains"],
                device=device,
            )
    return out


def worst_case(trained: evaluate.Trained, inside: Tensor, outside: dict[str, Tensor], sizes: dict, device="cpu") -> dict:
    """AUROC against outliers as they are and after an adaptive PGD on the detection score (AT-EBM Table 4). The radius
    is in units of the [0, 1] range, whichever the model works in. AT-EBM has one score, log p(x); classifiers have two."""
    s, low = sizes["worst_case"], trained.run.low
    out: dict[str, dict[str, dict]] = {}
    radius = s["radius"] * (1 - low)
    for name in scores_of(trained):
        score = {"log_p_x": log_p_x, "max_p_y": max_p_y}[name](trained.model)
        own = worst_case_scores(score, inside, epsilon=0, low=low, device=device)
        out[name] = {}
        for kind, x in outside.items():
            x = x[: s["images"]]
            clean = worst_case_scores(score, x, epsilon=0, low=low, device=device)
            worst = worst_case_scores(
                score, x, epsilon=radius, steps=s["steps"], restarts=s["restarts"], low=low, device=device
            )
            out[name][kind] = {
                "standard": uncertainty.auroc(own, clean),
                "worst": uncertainty.auroc(own, worst),
                "images": len(x),
            }
    return {"radius": s["radius"], "steps": s["steps"], "restarts": s["restarts"], "auroc": out}


def apply(name: str, what: list[str], profile: str | None = None, device: str | None = None) -> dict:
    """The measurements named in `what` (of MEASURES), for the first seed of a run. Raises: ConfigError for an unknown one,
    and for one that needs classes where the run has none; DataError."""
    if unknown := set(what) - set(MEASURES):
        raise params.ConfigError(f"measure {sorted(unknown)}: expected some of {', '.join(MEASURES)}")
    run = params.run(name, profile)
    if run.network.logits == 1 and (labelled := [w for w in what if w in LABELLED]):
        raise params.ConfigError(
            f"measure {labelled} of {name}: it has one logit and no classes; expected some of "
            f"{', '.join(w for w in MEASURES if w not in LABELLED)}"
        )
    place = distributed.device(device)
    if run.threads:
        torch.set_num_threads(run.threads)
    sizes, split = params.scale(run.profile)["applications"], data.load(run.profile, run.data)
    trained = evaluate.load_run(name, run.profile, device=place)
    n = min(sizes["attacked"], len(split.x_test))
    outside = ood_sets(run.profile, run.data, sizes["ood"])
    measure = {
        "robustness": lambda: robustness(trained.model, split.x_test[:n], split.y_test[:n], sizes, place),
        "ood": lambda: detection(trained, split.x_test, outside, place),
        "purified": lambda: purified_robustness(trained, split, sizes, place),
        "worst_case": lambda: worst_case(trained, split.x_test, outside, sizes, place),
    }
    return {"run": name, "title": run.title, "data": split.title, "seed": trained.seed, **{w: measure[w]() for w in what}}


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Robustness and out-of-distribution detection of a trained run.")
    parser.add_argument("run")
    parser.add_argument("what", nargs="+", help=f"some of {', '.join(MEASURES)}")
    parser.add_argument("--profile", choices=params.PROFILES)
    args = parser.parse_args()
    profile = params.profile(args.profile)
    path = ROOT / "results" / profile / "applications" / f"{args.run}.json"
    files.writable(path.parent)
    files.write_json(path, apply(args.run, args.what, profile))
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
