"""The paper profile on generated files, in a copy of the project:

    python tests/paper_dry_run.py files published small notebooks register

files       small files of every published format under data/raw, read by the data stage; the reference classifiers
published   one run of each method with its network as published: trained and measured
small       every run, or those named, with a small network: trained, measured, applied
notebooks   all of them, or those named, two side by side
register    merge what they recorded; the model cards

`tests/test_paper_profile.py` makes the copy and calls this with the copy's lib and tests on PYTHONPATH. Inception is a
scripted stand-in, and generated files have other checksums than published ones: replaced in this process only.
"""

from __future__ import annotations

import copy
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from PIL import Image
from test_inception import checksum, write_network
from test_sources import write_cifar, write_imagenet32, write_svhn

from lib import ROOT, applications, book, cards, evaluate, params, sources, train, vision
from lib import files as files_
from lib.measures import inception
from lib.papers import register

RESULTS = ROOT / "results" / "paper"
PUBLISHED = ("softmax", "jem", "jempp-m10", "sada-k10", "at", "at-faces")  # one run a method
FOLDERS = {
    "celeba": (70, (178, 218)),
    "celeba_hq": (30, (256, 256)),
    "afhq_cat": (30, (300, 256)),
    "lsun_church": (30, (256, 340)),
    "imagenet": (60, (320, 256)),
}  # image files: how many, their size


# ----------------------------------------------------------------------------------------------- params.yaml, smaller
def shrink(whole: dict) -> dict:
    """params.yaml with the paper scale made small: few images, two updates, networks of depth 10 and width 8.

    What has 32 pixels gets 16: CIFAR-100's class Gaussians would take 3.8 GB. 256 pixels stay.
    """
    raw = copy.deepcopy(whole)
    scale = raw["scales"]["paper"]
    for d in scale["data"].values():
        d["size"] = 16 if d["size"] == 32 else d["size"]
        d.update({k: v for k, v in (("holdout", 20), ("train", 20), ("test", 6)) if k in d})
    scale["data"]["imagenet32"].update(train=100, test=20)
    scale["common"].update(
        network={"depth": 10, "widen": 1, "width": 8},
        seeds=[0],
        snapshots=2,
        checkpoint_every=1,
        log_every=1,
        validate_every=1,
        threads=1,
        compile=False,
    )
    scale["common"]["start"].update(buffer={"size": 40}, images=60)
    for name in {r["size"] for r in raw["runs"].values()}:
        size = scale[name]
        size["update"] = {**size.get("update", {}), "batch": 4, "epochs": None, "iterations": 2, "schedule": {"warmup": 1}}
        if name.startswith("at"):  # ResNet-50 comes in one size
            size["network"] = {"kind": "discriminator", "width": 8}
            size["start"] = {**size.get("start", {}), "images": 60}
            size["step"] = {"growth": {"hold": 1}}
            size["generation"] = {"steps": 2, "images": 12}
    scale["live"] = {"iterations": 60, "chains": 60, "repeats": 2}
    scale["applications"] = {
        "attacked": 4,
        "steps": 2,
        "linf": [0, 8],
        "l2": [0, 64],
        "ood": 12,
        "purified": {
            "images": 4,
            "attack_steps": 2,
            "attack_chains": 2,
            "defend_chains": 2,
            "steps": 2,
            "alpha": 1.0,
            "noise": 0.01,
            "linf": [0, 8],
            "l2": [0, 64],
        },
        "worst_case": {"images": 4, "steps": 2, "restarts": 1, "radius": 0.5},
    }
    raw["measures"].update(fresh=12, confident=0.5)  # of 40 images: a tenth would be too few to measure
    return raw


def as_published(whole: dict, small: dict) -> dict:
    """The small params with a run `<name>-published` more for each method, whose network is params.yaml's own."""
    raw = copy.deepcopy(small)
    for name in PUBLISHED:
        run = raw["runs"][f"{name}-published"] = copy.deepcopy(raw["runs"][name])
        size = raw["scales"]["paper"][f"{run['size']}-published"] = copy.deepcopy(raw["scales"]["paper"][run["size"]])
        run["size"] += "-published"
        size["network"] = {**whole["scales"]["paper"]["common"]["network"], **whole["runs"][name]["network"]}
        size["start"] = {**size.get("start", {}), "buffer": {"size": 20, "reinit": 0.5}}
        size["compile"] = name == "jempp-m10"  # one is enough: it takes a minute
        size["update"]["batch"], size["snapshots"] = 2, 0
    return raw


# ------------------------------------------------------------------------------------------------------------ commands
def files(patch) -> None:
    """Files of every format, where data/README.md wants them, and what the data stage makes of them."""
    raw, g = ROOT / "data" / "raw", np.random.default_rng(0)
    write_network(raw, patch)
    write_cifar(raw, patch, vision.datasets.CIFAR10, [i % 10 for i in range(40)], "labels")
    write_cifar(raw, patch, vision.datasets.CIFAR100, [i % 100 for i in range(400)], "fine_labels")
    write_svhn(raw, patch, [i % 10 + 1 for i in range(200)])
    write_imagenet32(raw / "imagenet32", 20)
    for name, (n, size) in FOLDERS.items():
        folder = raw / name / "some" / "folder"
        folder.mkdir(parents=True)
        for i in range(n):
            coarse = Image.fromarray(g.integers(0, 256, (8, 8, 3), np.uint8))
            coarse.resize(size).save(folder / f"{i:06d}.{'png' if i % 2 else 'jpg'}")
    sources.path_of("paper", "").parent.mkdir(parents=True)
    for role in params.scale("paper")["data"]:
        print(sources.stage("paper", role))
    for name in {params.run(n, "paper").reference for n in params.runs()}:
        do(name)


def do(name: str, apply: str = "") -> None:
    """What the stages train, evaluate and apply do for one run."""
    began = time.perf_counter()
    train.train(params.run(name, "paper"), "cpu")
    evaluate.write(RESULTS, name, evaluate.evaluate(name, "paper", "cpu"))
    if apply:
        files_.write_json(RESULTS / "applications" / f"{name}.json", applications.apply(name, apply.split(), "paper", "cpu"))
    print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)


def notebook(name: str) -> str | None:
    """Execute it; what went wrong, or None."""
    began = time.perf_counter()
    try:
        book.run_notebook(name, "paper")
    except Exception as e:  # the other notebooks first
        return f"{name}: {e}"
    print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)


def main(words: list[str]) -> None:
    small, whole = params.load(), yaml.safe_load((ROOT / "params.whole.yaml").read_text(encoding="utf-8"))
    apply = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["apply"]["foreach"]
    names = [n for n in params.runs() if n in words] or params.runs()
    with pytest.MonkeyPatch.context() as patch:
        if "files" in words:
            files(patch)
        patch.setattr(inception, "SHA256", checksum(ROOT / "data" / "raw" / inception.FILE))
        if "published" in words:
            with patch.context() as m:
                m.setattr(params, "load", lambda path=None: as_published(whole, small))
                for name in PUBLISHED:
                    do(f"{name}-published")
        if "small" in words:
            for name in names:
                do(name, apply.get(name, ""))
    if "notebooks" in words:
        stems = sorted(p.stem for p in book.NOTEBOOKS.glob("*.ipynb"))
        with ThreadPoolExecutor(2) as pool:
            wrong = list(filter(None, pool.map(notebook, [s for s in stems if s in words] or stems)))
        if wrong:
            sys.exit("\n\n".join(wrong))
    if "register" in words:
        register.merge("paper")
        cards.write("paper", params.main_runs())


if __name__ == "__main__":
    main(sys.argv[1:])
