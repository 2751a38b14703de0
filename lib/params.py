"""params.yaml -> one validated, typed configuration per run.

A run is a method (`runs.<name>`, one key per column of the one-idea table) at a size
(`scales.<profile>`): the run is merged with the scale's `common` section and with the section that its
`size` names, the scale winning. Every number lives in params.yaml, with its reason.
"""

from __future__ import annotations

import difflib
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lib import ROOT, files

PROFILES = ("smoke", "quick", "gpu", "paper")
INCEPTION = ("clean", "legacy_tensorflow")  # clean-fid's modes, of one network: lib.measures.inception
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
PARTS = ("start", "step", "sam", "progress", "real", "generation")  # a size scales them, only a method has them
_WARNED: set[str] = set()


class ConfigError(ValueError):
    """A setting in params.yaml that cannot be: one line, naming the value, what was expected, the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
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
    holdout: Annotated[int, Field(ge=0)] = 0  # of the training images, kept for validation
    folder: str | None = None  # where the full data lie; None: data/raw
    gaussians: bool = True  # false: no chain starts from its class Gaussians, so fit none


class Network(Section):
    kind: Literal["wrn", "resnet50", "discriminator"] = "wrn"
    depth: Count = 10  # wrn
    widen: Count = 1  # wrn
    width: Count = 32  # discriminator: channels after the first layer
    norm: Literal["none", "batch"] = "batch"  # wrn
    logits: Count | None = None  # None: one per class; AT-EBM: one
    # colour images in [0, 1] by this set's mean and standard deviation, in front of the first layer; None: as they are
    normalise: Literal["cifar10", "imagenet"] | None = None


class Transform(Section):
    """How images are changed at random (lib.data.augmented)."""

    # crop_flip: pad, random crop, horizontal flip; autoaugment: the same, then AutoAugment's CIFAR-10 policy, then cutout;
    # resized_crop: a random part, scaled back to the size, and a horizontal flip
    kind: Literal["none", "crop_flip", "autoaugment", "resized_crop"] = "none"
    pad: Count = 4  # pixels
    fill: tuple[Byte, ...] | None = None  # the margin's colour, a byte per channel; None: reflected
    cutout: Annotated[int, Field(ge=0)] = 0  # autoaugment: side of the black square, in pixels
    share: Share = 1.0  # resized_crop: of the images, which are cut
    scale: tuple[Positive, Positive] = (0.08, 1.0)  # resized_crop: the part's area, from and to
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)  # resized_crop: the part's width over its height, from and to

    @model_validator(mode="after")
    def _in_order(self):
        for key, (a, b) in {"scale": self.scale, "ratio": self.ratio}.items():
            if a > b or (key == "scale" and b > 1):
                raise ValueError(
                    f"{key}: [{a:g}, {b:g}]; expected from and to in this order"
                    + ", of an image, whose area is 1" * (key == "scale")
                )
        return self


class Augment(Transform):
    noise: Weight = 0.03  # Gaussian input noise, at test time too (JEM's sigma)
    # shared: one batch for p(y|x) and p(x); classify: p(x) has a batch of its own, not augmented (SADA-JEM Eq. 11)
    branches: Literal["shared", "classify"] = "shared"


class Start(Section):
    kind: Literal["uniform", "gaussians", "images"]
    buffer: Count = 10_000  # |B|; images: no buffer, every chain is a fresh image
    reinit: Share = 0.05  # rho: share of chains started afresh
    of: dict[str, Share] | None = None  # images: source -> share; noise, leaves, discs, or a role
    images: Count = 8_000  # images: how many there are
    augment: Transform | None = None  # images: each batch of them; None: as they are

    @model_validator(mode="after")
    def _consistent(self):
        if self.augment and self.kind != "images":
            raise ValueError(
                f"start.augment of kind {self.augment.kind!r} for start kind {self.kind!r}: images alone are "
                "augmented; leave it out"
            )
        if (self.kind == "images") != (self.of is not None):
            raise ValueError(f"start kind {self.kind!r} of {self.of!r}: kind images, and no other, says what p0 is made of")
        if self.of and abs(sum(self.of.values()) - 1) > 1e-6:
            raise ValueError(f"start.of: the shares {self.of} add up to {sum(self.of.values()):g}; expected 1")
        return self


class Progress(Section):
    """How AT-EBM's K grows to step.K. linear: from 0, the same number of iterations for each K (Algorithm 2); auc: from
    `first`, when the mean AUC of the last `window` iterations passes `threshold`, or after `hold` iterations (the code)."""

    kind: Literal["linear", "auc"]
    threshold: Share = 0.8
    window: Count = 100
    hold: Count | None = None
    first: Annotated[int, Field(ge=0)] = 0  # auc: K at the beginning (the code's --startstep)

    @model_validator(mode="after")
    def _consistent(self):
        if self.first and self.kind == "linear":
            raise ValueError(f"first: {self.first} for kind linear, which begins at 0: use auc, or leave it out")
        return self


class Downhill(Section):
    """AT-EBM's code also moves the real images, against f: a few steps, within an L2 ball."""

    steps: Count
    radius: Positive | None = None


class Step(Section):
    """One cell of the `step` column; K for SGLD, proximal SGLD and PGD, M and N for PYLD-M-N."""

    kind: Literal["sgld", "proximal", "pyld", "pgd"]
    K: Count | None = None
    M: Count | None = None
    N: Count | None = None
    alpha: Positive
    epsilon: Positive | None = None  # proximity constraint
    noise: Weight = 0.0
    clip: bool = True  # keep every state in the image range
    closed_form: bool = True  # PYLD with a linear first layer: one long step
    radius: Positive | None = None  # PGD: of the L2 ball around the start; None: unbounded
    progress: Progress | None = None  # PGD: None: K from the beginning
    real: Downhill | None = None  # PGD: None: real images stay as they are

    @model_validator(mode="after")
    def _consistent(self):
        needs = {"sgld": {"K"}, "proximal": {"K", "epsilon"}, "pyld": {"M", "N"}, "pgd": {"K"}}[self.kind]
        allowed = needs | {"pyld": {"epsilon"}, "pgd": {"radius", "progress", "real"}}.get(self.kind, set())
        given = {k for k in ("K", "M", "N", "epsilon", "radius", "progress", "real") if getattr(self, k) is not None}
        if not needs <= given:
            raise ValueError(f"step kind {self.kind!r} needs {sorted(needs - given)}")
        if not given <= allowed:
            raise ValueError(f"step kind {self.kind!r} takes no {sorted(given - allowed)}")
        if self.progress and self.progress.first > self.K:
            raise ValueError(f"progress.first: {self.progress.first} is beyond K: {self.K}; expected at most K")
        return self

    @property
    def passes(self) -> int:
        """Full forward and backward passes per chain."""
        return self.M if self.kind == "pyld" else self.K

    def arguments(self, low: float = -1.0) -> dict:
        """Keyword arguments for this kind's function in lib.parts.samplers; images are in [low, 1]."""
        if self.kind == "pgd":
            return {"K": self.K, "alpha": self.alpha, "radius": self.radius, "clip": (low, 1.0) if self.clip else None}
        own = {"alpha": self.alpha, "noise": self.noise, "clip": (low, 1.0) if self.clip else None}
        if self.kind == "pyld":
            own |= {
                "M": self.M,
                "N": self.N,
                "closed_form": self.closed_form,
                "epsilon": float("inf") if self.epsilon is None else self.epsilon,
            }
        else:
            own |= {"K": self.K} | ({"epsilon": self.epsilon} if self.kind == "proximal" else {})
        return own


class Adversary(Section):
    """Adversarial training (Madry et al. 2018): the classifier sees PGD images in place of clean ones."""

    norm: Literal["linf", "l2"] = "linf"
    radius: Positive  # 255ths of the [0, 1] range, as the papers count
    steps: Count


class Loss(Section):
    classify: Weight = 1.0  # weight of -log p(y|x)
    generate: Weight = 1.0  # weight of -log p(x)
    l2: Weight = 0.0  # weight of the energies' squares
    discriminate: Weight = 0.0  # weight of the real-vs-perturbed BCE (AT-EBM)
    r1: Weight = 0.0  # weight of the R1 gradient penalty on real images


class Sam(Section):
    rho: Positive  # radius of the ball in weight space
    adaptive: bool = False  # ASAM (Kwon et al. 2021)


class Generation(Section):
    """How a model without a replay buffer makes samples: PGD from p0 images (AT-EBM)."""

    steps: Count
    alpha: Positive
    images: Count = 2000


class Update(Section):
    optimizer: Literal["sgd", "adam"]
    lr: Positive
    betas: tuple[float, float] = (0.9, 0.999)  # Adam
    momentum: Share = 0.9  # SGD
    nesterov: bool = False  # SGD
    weight_decay: Weight = 0.0
    batch: Count = 64
    iterations: Count | None = None  # either iterations ...
    epochs: Positive | None = None  # ... or epochs of the training set
    warmup: Annotated[int, Field(ge=0)] = 0  # iterations of linear warm-up
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[Share, ...] = ()  # step: shares of the training at which lr *= decay
    decay: Positive = 0.2
    sam: Sam | None = None  # sharpness-aware: two passes an update

    @model_validator(mode="after")
    def _one_length(self):
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("update needs exactly one of iterations and epochs")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError(
                f"nesterov for {self.optimizer} with momentum {self.momentum:g}: expected sgd with some "
                "momentum; or leave nesterov out"
            )
        return self


class Run(Section):
    """Everything that decides a training run's result, with the data and the seed."""

    name: str
    profile: str
    title: str
    size: str
    data: str  # role: primary, second, third, faces, cats, church
    range: Literal["symmetric", "unit"] = "symmetric"  # of images: [-1, 1] (JEM family) or [0, 1] (AT-EBM)
    network: Network = Network()
    initial: str | None = None  # a weights.pt to begin from: absolute, or from the project's root
    augment: Augment = Augment()
    start: Start | None = None
    step: Step | None = None
    loss: Loss = Loss()
    adversary: Adversary | None = None
    update: Update
    reference: str = "reference"  # the run whose features measure this one's samples
    seeds: tuple[int, ...] = (0,)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    threads: Count | None = None  # CPU threads of one run; None: torch's own choice
    compile: bool = False  # torch.compile: batch norm and activation fused
    graph: bool = False  # CUDA: the whole chain as one graph, launched at once
    log_every: Count = 10  # iterations
    validate_every: Count = 100
    checkpoint_every: Count = 200
    rollbacks: Annotated[int, Field(ge=0)] = 0  # after a divergence, back to the last checkpoint
    snapshots: Annotated[int, Field(ge=0)] = 0  # times the buffer and the weights are kept for study
    generation: Generation | None = None

    @property
    def low(self) -> float:
        """The darkest pixel's value; the brightest is 1. The one place that knows the ranges."""
        return {"symmetric": -1.0, "unit": 0.0}[self.range]

    @model_validator(mode="after")
    def _consistent(self):
        if (self.start is None) != (self.step is None):
            raise ValueError("a chain needs both a start and a step; a classifier has neither")
        if self.adversary and self.step:
            raise ValueError("adversary is for classifiers: an energy-based run makes its own negative images")
        if self.step is None and (self.loss.generate or self.loss.discriminate):
            raise ValueError("loss.generate or loss.discriminate > 0 needs samples: give start and step, or set it to 0")
        if self.step and (self.step.kind == "pgd") != (self.start.kind == "images"):
            raise ValueError(
                f"step kind {self.step.kind!r} from start kind {self.start.kind!r}: PGD moves images, the "
                "others a replay buffer"
            )
        if not self.loss.classify and (self.step is None or self.step.kind != "pgd"):
            raise ValueError(
                "loss.classify: 0 leaves nothing that needs labels, which only AT-EBM's runs (step kind pgd) do "
                "without: give it a weight"
            )
        if self.augment.branches == "classify" and not self.step:
            raise ValueError("augment.branches: classify sets p(x) apart, and a classifier has none: use shared")
        if self.network.normalise and self.range != "unit":
            raise ValueError(
                f"network.normalise: {self.network.normalise} with range {self.range}: its mean and deviation "
                "are of images in [0, 1]; set range: unit, or normalise: null"
            )
        if self.start and self.start.kind == "uniform" and self.network.norm == "batch" and self.name not in _WARNED:
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


@lru_cache
def _read(path: str, mtime: float) -> dict:
    return yaml.safe_load(files.read_text(Path(path), "save it as UTF-8, or git checkout params.yaml"))


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
    except yaml.YAMLError as e:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(e).split())}") from None
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
    return _pick((params or load()).get("scales") or {}, profile_name, "scales")


def data(profile_name: str, role: str, params: dict | None = None) -> Data | None:
    """The data set that plays `role` at this scale; None where the scale has none (with `null`)."""
    section = _pick(scale(profile_name, params).get("data") or {}, role, f"scales.{profile_name}.data")
    where = f"scales.{profile_name}.data.{role}"
    return None if section is None else _build(Data, _tuples(section), where)


def inception(profile_name: str, params: dict | None = None) -> tuple[str, ...]:
    """The modes in which a profile measures FID and IS by Inception, the first also along training; (): in none.
    Raises: ConfigError for another mode."""
    modes = scale(profile_name, params).get("inception") or []
    if not isinstance(modes, list) or not all(m in INCEPTION for m in modes):
        raise ConfigError(
            f"params.yaml, scales.{profile_name}.inception: {modes!r}; expected a list of some of "
            f"{', '.join(INCEPTION)}, or no such key: then FD-clf and IS-clf alone are measured"
        )
    return tuple(modes)


def run(name: str, profile_name: str | None = None, params: dict | None = None) -> Run:
    """The configuration of run `name`: method merged with the profile's sizes, validated.

    Raises: ConfigError, one line, for an unknown run or key, a wrong type, an impossible combination.
    """
    params = params or load()
    profile_name = profile(profile_name, params)
    method = _pick(params.get("runs") or {}, name, "runs")
    sizes = scale(profile_name, params)
    merged = _merge(method, sizes.get("common") or {})
    if isinstance(method, dict) and "size" in method:
        merged = _merge(merged, _pick(sizes, method["size"], f"scales.{profile_name}") or {})
    return _build(Run, _tuples({**merged, "name": name, "profile": profile_name}), f"runs.{name}")


def runs(params: dict | None = None) -> list[str]:
    """All run names, in the order of params.yaml."""
    return list((params or load())["runs"])


def _pick(section: dict, key: str, where: str):
    if key not in section:
        raise ConfigError(f"{where}: no {key!r}{_nearest(key, section)}; it has {', '.join(map(str, section))}")
    return section[key]


def _merge(low: dict, high: dict) -> dict:
    """`high` over `low`, section by section; null in either switches a section off or on."""
    out = dict(low)
    for key, value in high.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merge(out[key], value)
        elif isinstance(value, dict) and key in out and out[key] is None:
            pass  # the method has no such part (softmax: no start, no step)
        elif isinstance(value, dict) and key in PARTS and key not in out:
            pass
        else:
            out[key] = value
    return out


def _tuples(value):
    """YAML has lists only; the typed sections are immutable."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _nearest(key, among) -> str:
    near = difflib.get_close_matches(str(key), [str(a) for a in among], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _build(kind, section, where: str):
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: {section!r} is no section; expected keys and values")
    try:
        return kind(**section)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, (where, *first["loc"])))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            owner = kind
            for part in first["loc"][:-1]:
                owner = next((a for a in _sections(owner.model_fields[part].annotation)), owner)
            message = "unknown key" + _nearest(first["loc"][-1], owner.model_fields)
        elif first["type"] == "missing":
            message = "missing; add it"
        else:
            message = f"{message}; got {first['input']!r}" if first["loc"] else message
        raise ConfigError(f"params.yaml, {place}: {message}") from None


def _sections(annotation):
    options = getattr(annotation, "__args__", (annotation,))
    return [a for a in options if isinstance(a, type) and issubclass(a, Section)]
