"""Prepared data: splits, batches, p0. Where the images come from: `lib.sources`; their range: `lib.parts.pixels`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib import ROOT, files, params
from lib.data import outliers
from lib.files import DataError
from lib.parts import starts
from lib.parts.augmentations import Augmentation
from lib.parts.pixels import to_bytes, to_range, with_noise

CLASSES = {
    "fashion_mnist": ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
    "mnist": tuple("0123456789"),
    "svhn": tuple("0123456789"),
    "cifar10": ("Plane", "Car", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Ship", "Truck"),
    "cifar100": tuple(
        name.replace("_", " ").capitalize()
        for name in [
            "apple",
            "aquarium_fish",
            "baby",
            "bear",
            "beaver",
            "bed",
            "bee",
            "beetle",
            "bicycle",
            "bottle",
            "bowl",
            "boy",
            "bridge",
            "bus",
            "butterfly",
            "camel",
            "can",
            "castle",
            "caterpillar",
            "cattle",
            "chair",
            "chimpanzee",
            "clock",
            "cloud",
            "cockroach",
            "couch",
            "crab",
            "crocodile",
            "cup",
            "dinosaur",
            "dolphin",
            "elephant",
            "flatfish",
            "forest",
            "fox",
            "girl",
            "hamster",
            "house",
            "kangaroo",
            "keyboard",
            "lamp",
            "lawn_mower",
            "leopard",
            "lion",
            "lizard",
            "lobster",
            "man",
            "maple_tree",
            "motorcycle",
            "mountain",
            "mouse",
            "mushroom",
            "oak_tree",
            "orange",
            "orchid",
            "otter",
            "palm_tree",
            "pear",
            "pickup_truck",
            "pine_tree",
            "plain",
            "plate",
            "poppy",
            "porcupine",
            "possum",
            "rabbit",
            "raccoon",
            "ray",
            "road",
            "rocket",
            "rose",
            "sea",
            "seal",
            "shark",
            "shrew",
            "skunk",
            "skyscraper",
            "snail",
            "snake",
            "spider",
            "squirrel",
            "streetcar",
            "sunflower",
            "sweet_pepper",
            "table",
            "tank",
            "telephone",
            "television",
            "tiger",
            "tractor",
            "train",
            "trout",
            "tulip",
            "turtle",
            "wardrobe",
            "whale",
            "willow_tree",
            "wolf",
            "woman",
            "worm",
        ]
    ),
    "imagenet32": tuple(str(i) for i in range(1000)),
    "celeba": ("face",),
    "celeba_hq": ("face",),
    "afhq_cat": ("cat",),
    "lsun_church": ("church",),  # unlabelled
    "imagenet": ("image",),
}
TITLES = {
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet32": "ImageNet-32",
    "celeba": "CelebA",
    "celeba_hq": "CelebA-HQ",
    "afhq_cat": "AFHQ-CAT",
    "lsun_church": "LSUN Church",
    "imagenet": "ImageNet",
}


@dataclass
class Split:
    """One data set, ready to train on. Images uint8 (n, C, H, W), labels int64 (n,)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_hold: Tensor
    y_hold: Tensor
    x_test: Tensor
    y_test: Tensor
    gaussians: starts.ClassGaussians | None  # None: images too large to fit any, or not asked for
    only: tuple[int, ...] = ()  # the classes kept; (): all

    @property
    def classes(self) -> tuple[str, ...]:
        names = CLASSES[self.name]
        return tuple(names[i] for i in self.only) if self.only else names

    @property
    def title(self) -> str:
        """Name and size as tables print it, e.g. 'Fashion-MNIST 16x16 (9,500)'."""
        which = f" {', '.join(self.classes)}" if self.only else ""
        return f"{TITLES[self.name]}{which} {self.shape[1]}x{self.shape[2]} ({len(self.x_train):,} training images)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (C, H, W)."""
        _, C, H, W = self.x_train.shape
        return C, H, W

    @property
    def parts(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """(images, labels) of each."""
        return (self.x_train, self.y_train), (self.x_hold, self.y_hold), (self.x_test, self.y_test)


class Stream:
    """Endless batches of training images, on the device. Batch i depends only on (seed, i), so a resumed
    run continues with the batch it would have seen.

    Args:
        x, y: uint8 (n, C, H, W), int64 (n,).   batch: size; the last partial batch of an epoch is left out.
        augment: None: images as they are.   noise: input noise's sigma.   low: of the range [low, 1].
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch: int,
        augment: Augmentation | None = None,
        seed: int = 0,
        low: float = -1.0,
        noise: float = 0.0,
    ):
        if batch > len(x):
            raise DataError(f"batch {batch} is larger than the {len(x)} training images: lower update.batch")
        self.x, self.y, self.batch, self.augment, self.seed = x, y, batch, augment, seed
        self.per_epoch, self.low, self.noise = len(x) // batch, low, noise
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)  # of the images in that epoch

    def __call__(self, i: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Batch i: images float (batch, C, H, W) in [low, 1] plus noise, labels (batch,)."""
        epoch, position = divmod(i, self.per_epoch)
        if epoch != self._epoch:
            g = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.x), generator=g).to(self.x.device)
        index = self._order[position * self.batch : (position + 1) * self.batch]
        x = to_range(self.x[index], self.low)
        x = self.augment(x, generator, self.low) if self.augment else x
        return with_noise(x, self.noise, generator), self.y[index]


# ------------------------------------------------------------------------------------------ prepared artefacts
def path_of(profile: str, role: str) -> Path:
    return ROOT / "artifacts" / profile / "data" / f"{role}.pt"


def save(split: Split, path: Path) -> None:
    state = {k: v for k, v in vars(split).items() if k != "gaussians"}
    with files.whole(path) as part:
        torch.save({**state, "gaussians": split.gaussians and split.gaussians.state_dict()}, part)


def load(profile: str, role: str = "primary") -> Split:
    """The prepared data of a profile. Raises: DataError where the data stage has not run as params.yaml says today, or its
    file is damaged."""
    path, remedy = path_of(profile, role), f"run `dvc repro data` (or python -m lib.sources --profile {profile})"
    state = files.read_tensors(path, remedy)
    try:
        fitted = state["gaussians"]
        split = Split(**{**state, "gaussians": fitted and starts.ClassGaussians.from_state(fitted)})
        right = all(x.dtype == torch.uint8 and x.dim() == 4 and len(x) == len(y) for x, y in split.parts)
    except (KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise DataError(f"{path} holds no prepared data of this version: {remedy}")
    p = params.data(profile, role)
    if p and (split.name, split.shape[1], split.only) != (p.name, p.size, p.classes):
        raise DataError(
            f"{path} holds {split.title}; params.yaml has {p.name} at {p.size} pixels"
            + f", classes {list(p.classes)}" * bool(p.classes)
            + f": {remedy}"
        )
    return split


# ------------------------------------------------------------------------------ p0: where AT-EBM's chains start
MADE = {"noise": outliers.uniform_noise, "leaves": outliers.dead_leaves, "discs": outliers.discs}


def p0(run: params.Run, seed: int = 0) -> Tensor:
    """The p0 images of a run, uint8 (start.images, C, H, W), shuffled: made ones, and training images of other roles.

    Raises: DataError for a run whose chains start elsewhere, for a source that is the data themselves, is no role of this
        profile, or has another shape.
    """
    if not isinstance(start := run.origin, starts.OtherImages):
        raise DataError(
            f"run {run.name} starts from {start.kind}: expected a run whose chains start from images, such as at"
        )
    shape, g, parts = load(run.profile, run.data).shape, torch.Generator().manual_seed(seed), list[Tensor]()
    ours = params.data(run.profile, run.data)
    for source, share in start.of.items():
        n = round(share * start.images)
        if not n:
            continue
        if source in MADE:
            parts.append(MADE[source](n, shape, g))
            continue
        where = f"runs.{run.name}.start.of.{source}"
        p = params.data(run.profile, source)
        if p is None or (ours and p.name == ours.name):
            raise DataError(
                f"{where}: {'no data set of this profile' if p is None else 'the data themselves'}; expected "
                f"one of {', '.join(MADE)}, or a role that holds other data"
            )
        x = load(run.profile, source).x_train
        if tuple(x.shape[1:]) != shape:
            raise DataError(f"{where}: images of shape {tuple(x.shape[1:])}; expected {shape}, as {run.data} has")
        parts.append(x[torch.randperm(len(x), generator=g).repeat(-(-n // len(x)))[:n]])
    if not parts:
        raise DataError(f"runs.{run.name}.start.images: {start.images} leaves no image of {', '.join(start.of)}: raise it")
    images = torch.cat(parts)
    return images[torch.randperm(len(images), generator=g)]


def start_of(run: params.Run, split: Split, device: str | torch.device = "cpu") -> starts.Start:
    """p0 of a run, whether a buffer is around it or not. Raises: ConfigError for a classifier, which has no chain."""
    return run.origin.build(split, run.low, device, lambda: p0(run))
