"""params.yaml -> one validated, typed configuration per run.

A run is a method (`runs.<name>`, one key per column of the one-idea table) at a size
(`scales.<profile>`): the run is merged with the scale's `common` section and with the section that its
`size` names, the scale winning. Every number lives in params.yaml, with its reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lib import ROOT, files
from lib.parts.augmentations import Augmentation
from lib.parts.cell import (
    Cell,
    ConfigError,
    Count,
    Index,
    Positive,
    Several,
    Weight,
    built,
    classes_of,
    immutable,
    kind_of,
    may_be_none,
    nearest,
    section_of,
    tag_of,
    type_of,
)
from lib.parts.losses import Loss
from lib.parts.networks import Networks
from lib.parts.samplers import PGD, Step
from lib.parts.starts import Buffer, Starts
from lib.parts.updates import Update

PROFILES = ("smoke", "quick", "gpu", "paper")
INCEPTION = ("clean", "legacy_tensorflow")  # clean-fid's modes, of one network: lib.measures.inception
NO_CHAIN = "a classifier has no chain; expected a run with a start and a step, such as jempp-m10"
_WARNED: set[str] = set()


def different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("expected different numbers")
    return seeds


class Data(Cell):
    """One data set at one size. Images are square."""

    name: Literal[
        "fashion_mnist",
        "mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "celeba",
        "imagenet32",
        "celeba_hq",
        "afhq_cat",
        "lsun_church",
        "imagenet",
    ]
    source: Literal["embedded", "full", "folder"] = "embedded"  # folder: image files under `folder`
    size: Annotated[int, Field(ge=8)]  # pixels a side
    classes: tuple[int, ...] = ()  # only images of these classes, labelled 0, 1, ...; (): all
    train: Count | None = None  # images to train on; None: all
    test: Count | None = None
    holdout: Index = 0  # of the training images, kept for validation
    folder: str | None = None  # where the full data lie; None: data/raw
    gaussians: bool = True  # false: no chain starts from its class Gaussians, so fit none


class Generation(Cell):
    """How a model without a replay buffer makes samples: PGD from p0 images (AT-EBM)."""

    steps: Count
    alpha: Positive
    images: Several

    @property
    def chain(self) -> PGD:
        """The sampler that makes them."""
        return PGD(K=self.steps, alpha=self.alpha)


class Run(Cell):
    """Everything that decides a training run's result, with the data and the seed: a cell of each column, and how it is
    run."""

    name: str
    profile: str
    title: str
    size: str
    data: str  # role: primary, second, third, faces, cats, church
    range: Literal["symmetric", "unit"] = "symmetric"  # of images: [-1, 1] (JEM family) or [0, 1] (AT-EBM)
    network: Networks
    initial: Annotated[str, Field(min_length=1)] | None = (
        None  # a weights.pt to begin from: absolute, or from the project's root
    )
    augment: Augmentation
    input_noise: Weight  # sigma of the Gaussian noise on images, at training and at test time
    # shared: one batch for p(y|x) and p(x); classify: p(x) has a batch of its own, not augmented (SADA-JEM Eq. 11)
    branches: Literal["shared", "classify"] = "shared"
    start: Starts | None = None
    step: Step | None = None
    loss: Loss
    update: Update
    reference: str  # the run whose features measure this one's samples
    seeds: Annotated[tuple[Index, ...], Field(min_length=1), AfterValidator(different)] = (0,)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    threads: Count | None = None  # CPU threads of one run; None: torch's own choice
    compile: bool = False  # torch.compile: batch norm and activation fused
    graph: bool = False  # CUDA: the whole chain as one graph, launched at once
    log_every: Count = 10  # iterations
    validate_every: Count = 100
    checkpoint_every: Count = 200
    rollbacks: Index = 0  # after a divergence, back to the last checkpoint
    snapshots: Index = 0  # times the buffer and the weights are kept for study
    generation: Generation | None = None

    @property
    def low(self) -> float:
        """The darkest pixel's value; the brightest is 1. The one place that knows the ranges."""
        return {"symmetric": -1.0, "unit": 0.0}[self.range]

    @property
    def chain(self) -> Step:
        """How its chains step. Raises: ConfigError for a classifier, which has none."""
        if self.step is None:
            raise ConfigError(f"run {self.name}: {NO_CHAIN}")
        return self.step

    @property
    def origin(self) -> Starts:
        """Where its chains start. Raises: ConfigError for a classifier, which has none."""
        if self.start is None:
            raise ConfigError(f"run {self.name}: {NO_CHAIN}")
        return self.start

    @property
    def replay(self) -> Buffer | None:
        """Its replay buffer's settings; None for a run without a buffer, or without a chain."""
        return self.start.buffer if self.start else None

    @property
    def labelled(self) -> bool:
        """Whether the network has one logit per class, and learns them."""
        return bool(self.loss.needs & {"labels", "attacked"})

    @model_validator(mode="after")
    def _cells_fit(self) -> Self:
        for refusal in self._refusals():
            raise ValueError(refusal)
        batch_norm = getattr(self.network, "norm", None) == "batch"
        if self.start and self.start.kind == "uniform" and batch_norm and self.name not in _WARNED:
            _WARNED.add(self.name)
            # once per process, and with no path of the reader's machine: saved notebooks show it
            warnings.warn_explicit(
                f"run {self.name}: batch norm with a uniform start. JEM++ (Table 5) found that this "
                "fails: noise and real images have different statistics.",
                UserWarning,
                "params.yaml",
                0,
            )
        return self

    def _refusals(self) -> Iterator[str]:
        """Why these cells do not fit together: all the ways there are; every other combination trains."""
        terms, needs = ", ".join(self.loss.terms) or "no term", self.loss.needs
        if (self.start is None) != (self.step is None):
            yield f"start {self.start}, step {self.step}: a chain needs both; a classifier has neither"
        if not any(t.drives for t in self.loss.terms.values()):
            yield (
                f"loss: {terms} leaves nothing to learn from; expected cross_entropy, contrastive, bce or "
                "adversarial_cross_entropy"
            )
        if self.step is None and "samples" in needs:
            yield f"loss: {terms} needs samples, and there is no chain: give start and step, or leave those terms out"
        if self.step and "samples" not in needs:
            yield (
                f"step {self.step.kind} makes samples that loss ({terms}) never sees: add contrastive or bce, or leave "
                "start and step out"
            )
        if self.labelled and self.network.logits is not None:
            yield f"network.logits: {self.network.logits} with loss {terms}, which needs one logit per class; set it to null"
        if self.branches == "classify" and not (self.step and "labels" in needs):
            yield f"branches: classify sets p(x) apart from p(y|x), and loss ({terms}) does not have both: use shared"
        if self.network.normalise and self.range != "unit":
            yield (
                f"network.normalise: {self.network.normalise} with range {self.range}: its mean and deviation are of "
                "images in [0, 1]; set range: unit, or normalise: null"
            )
        if self.graph and self.step and self.step.growth:
            yield "graph: true with step.growth: a CUDA graph is of one length; set graph: false, or leave growth out"
        if self.generation and (self.start is None or self.start.buffer):
            yield "generation: it is how a run with a start and without a buffer makes samples; leave it out"
        elif self.generation and self.start and self.start.kind != "images":
            yield f"generation: it begins at images of another kind; expected start kind images, not {self.start.kind}"


class Measures(Cell):
    """How runs are measured, at every scale: params.yaml says why."""

    level: Annotated[float, Field(gt=0, lt=1)]  # of every interval
    resamples: Count  # bootstrap samples: of a mean, a calibration error, an AUROC, FD-clf
    resamples_ece: Count
    resamples_auroc: Count
    resamples_fd: Count
    bins: Count  # of calibration
    splits: Count  # of IS
    histogram: Count  # bars
    confident: Annotated[float, Field(gt=0, le=1)]  # share of the buffer, per class
    fresh: Several  # chains
    snapshot: Several  # images
    kid: Several  # features
    few: Count  # images


@lru_cache
def _read(path: str, mtime: float) -> dict:
    return files.read_yaml(Path(path), "save it as UTF-8, or git checkout params.yaml")


@lru_cache
def _one_clone(working: Path) -> None:
    """Raises: ConfigError where we work in one clone of the project with another one's lib: a notebook of B would show
    A's results, and write A's figures."""
    for folder in (working, *working.parents):
        if all((folder / name).exists() for name in ("params.yaml", "dvc.yaml", "lib/params.py")):
            if (folder / "lib").resolve() != Path(__file__).resolve().parent:
                raise ConfigError(
                    f"this is the project in {folder}, but lib is imported from {ROOT}: give each clone an "
                    f"environment of its own (make, or python -m lib.environment, in {folder}), or make this "
                    f"one that clone's: pip install --no-deps -e {folder}"
                )
            return


def load(path: Path | None = None) -> dict:
    """The whole of params.yaml. Raises: ConfigError where it is missing, not UTF-8 or no YAML, or where lib is another
    clone's than the one we work in."""
    _one_clone(Path.cwd())
    path = Path(path or ROOT / "params.yaml")
    try:
        found = _read(str(path), path.stat().st_mtime)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: restore it (git checkout params.yaml)") from None
    except files.DataError as e:
        raise ConfigError(str(e)) from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} holds {'nothing' if found is None else type(found).__name__}: expected the sections "
            "profile, scales and runs; restore it (git checkout params.yaml)"
        )
    return found


def profile(name: str | None = None, params: dict | None = None) -> str:
    """The profile to work on: `name`, else $EBM_PROFILE, else params.yaml's `profile`.

    Raises: ConfigError where it is none, or where lib is another clone's than the one we work in."""
    _one_clone(Path.cwd())  # before anybody makes the profile's folders
    name = name or os.environ.get("EBM_PROFILE") or (params or load()).get("profile")
    if name not in PROFILES:
        raise ConfigError(f"profile: {name!r} is not a profile; expected one of {', '.join(PROFILES)}")
    return name


def scale(profile_name: str, params: dict | None = None) -> dict:
    """The section `scales.<profile>`."""
    return section_of(_pick((params or load()).get("scales"), profile_name, "scales"), f"scales.{profile_name}")


def data(profile_name: str, role: str, params: dict | None = None) -> Data | None:
    """The data set that plays `role` at this scale; None where the scale has none (with `null`)."""
    section = _pick(scale(profile_name, params).get("data"), role, f"scales.{profile_name}.data")
    where = f"scales.{profile_name}.data.{role}"
    return None if section is None else built(Data, immutable(section), where)


def inception(profile_name: str, params: dict | None = None) -> tuple[str, ...]:
    """The modes in which a profile measures FID and IS by Inception, the first also along training; (): in none.
    Raises: ConfigError for another mode."""
    modes = scale(profile_name, params).get("inception") or []
    if not isinstance(modes, list) or not all(m in INCEPTION for m in modes):
        raise ConfigError(
            f"params.yaml, scales.{profile_name}.inception: {modes!r}; expected a list of some of "
            f"{', '.join(INCEPTION)}, or no such key: then only FD-clf and IS-clf are measured"
        )
    return tuple(modes)


def measures(params: dict | None = None) -> Measures:
    """The section `measures`. Raises: ConfigError for one that is missing, or cannot be."""
    return built(Measures, (params or load()).get("measures"), "measures")


def main_runs() -> list[str]:
    """The runs that notebook 14 puts into one table: `main`. Raises: ConfigError for no list of runs."""
    found, known = load().get("main"), runs()
    if not isinstance(found, list) or (unknown := [name for name in found if name not in known]):
        what = f"{unknown[0]!r} is no run" if isinstance(found, list) else f"{found!r} is no list"
        raise ConfigError(f"params.yaml, main: {what}; expected names of `runs`, such as [softmax, jempp-m10]")
    return found


def run(name: str, profile_name: str | None = None, params: dict | None = None) -> Run:
    """The configuration of run `name`: method merged with the profile's sizes, validated.

    Raises: ConfigError, one line, for an unknown run or key, a wrong type, an impossible combination.
    """
    params = params or load()
    profile_name = profile(profile_name, params)
    method, where = section_of(_pick(params.get("runs"), name, "runs"), f"runs.{name}"), f"scales.{profile_name}"
    sizes = scale(profile_name, params)
    size = section_of(sizes.get("common") or {}, f"{where}.common")
    if "size" in method:
        size = _over(size, section_of(_pick(sizes, method["size"], where) or {}, f"{where}.{method['size']}"))
    resized = _resized(Run, method, size)
    for key in {"name", "profile"} & resized.keys():
        raise ConfigError(f"params.yaml, runs.{name}.{key}: {resized[key]!r}; a run's {key} is not set here: leave it out")
    found = built(Run, immutable({**resized, "name": name, "profile": profile_name}), f"runs.{name}")
    if found.reference not in params["runs"]:
        near = nearest(found.reference, params["runs"])
        raise ConfigError(f"params.yaml, runs.{name}.reference: no run {found.reference!r}{near}; expected a classifier")
    return found


def runs(params: dict | None = None) -> list[str]:
    """All run names, in the order of params.yaml."""
    return list(section_of((params or load()).get("runs"), "runs"))


def _pick(section: object, key: object, where: str):
    section = section_of({} if section is None else section, where)
    if not isinstance(key, str) or key not in section:
        raise ConfigError(f"{where}: no {key!r}{nearest(key, section)}; it has {', '.join(map(str, section)) or 'nothing'}")
    return section[key]


# ------------------------------------------------------------------------------------------- a method at a size
def _over(low: dict, high: dict) -> dict:
    """`high` over `low`, section by section."""
    both = {
        k: _over(low[k], high[k]) for k in low.keys() & high.keys() if isinstance(low[k], dict) and isinstance(high[k], dict)
    }
    return {**low, **high, **both}


def _resized(annotation: object, method: dict, size: dict) -> dict:
    """A method's section at a size, which wins. A size speaks to many runs. So what it says of a part that this method lacks
    is passed over (softmax has no start), unless it names the part's kind, which gives it one; and so is what other kinds
    of this part have (a buffer's size, where chains start afresh). Any other key stays, to be refused by its name."""
    cells, tag = classes_of(annotation), tag_of(annotation)
    kind = size.get(tag, method.get(tag))
    chosen = next((c for c in cells if not tag or kind_of(c, tag) == kind), None)
    if chosen is None:
        return {**method, **size}  # of no kind that there is: refused by its name
    before = next((c for c in cells if tag and kind_of(c, tag) == method.get(tag)), chosen)
    out = {k: v for k, v in method.items() if k in chosen.model_fields or k not in before.model_fields}
    for key, value in size.items():
        if key not in chosen.model_fields:
            if not any(key in c.model_fields for c in cells):
                out[key] = value
            continue
        own = type_of(chosen, key)
        if isinstance(value, dict) and classes_of(own):
            part = out.get(key)
            if isinstance(part, dict) or tag_of(own) in value or not may_be_none(own):
                out[key] = _resized(own, part if isinstance(part, dict) else {}, value)
        else:
            out[key] = value
    return out
