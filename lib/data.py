"""Every data set, its range and its augmentation.

Images are uint8 at rest, (n, C, H, W), and float in [low, 1] in use: low = -1 is where the step sizes of JEM,
JEM++ and SADA-JEM live, low = 0 where AT-EBM's do (`lib.params.Run.low` says which).

    python -m lib.data --profile quick        prepares artifacts/quick/data/<role>.pt, the pipeline's first stage
"""
from __future__ import annotations

import argparse
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import ROOT, inits, outliers, params

EMBEDDED = {   # sha256 of what data/make_embedded.py writes
    "fashion_mnist": "7a295f568e995b16b68f8e43c6935e59e60f72c75b7b627e723d920538619007",
    "mnist": "71cdf39340e8ed1921b19d9b90555ae95e71e5ae8f5145ea1f0a48e69b367209",
}
CLASSES = {
    "fashion_mnist": ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
    "mnist": tuple("0123456789"),
    "svhn": tuple("0123456789"),
    "cifar10": ("Plane", "Car", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Ship", "Truck"),
    "cifar100": tuple(str(i) for i in range(100)),
    "celeba_hq": ("face",), "afhq_cat": ("cat",), "lsun_church": ("church",), "imagenet": ("image",),   # unlabelled
}
TITLES = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "svhn": "SVHN", "cifar10": "CIFAR-10",
          "cifar100": "CIFAR-100", "celeba_hq": "CelebA-HQ", "afhq_cat": "AFHQ-CAT", "lsun_church": "LSUN Church",
          "imagenet": "ImageNet"}
GAUSSIAN_PIXELS = 4096      # above, a covariance per class would not fit into memory
DEBIAN = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}     # package dataset-fashion-mnist


class DataError(RuntimeError):
    """A data file that is missing or not what it should be: names it, and what to do."""


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
    gaussians: inits.ClassGaussians | None          # None where images are too large to fit any
    only: tuple[int, ...] = ()                      # the classes kept; (): all

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
        return tuple(self.x_train.shape[1:])


def to_range(x: Tensor, low: float = -1.0) -> Tensor:
    """uint8 [0, 255] -> float [low, 1]."""
    return x.float() / (255 / (1 - low)) + low


def to_bytes(x: Tensor, low: float = -1.0) -> Tensor:
    """float [low, 1] -> uint8, clamped and rounded: what an image file would hold."""
    return ((x.clamp(low, 1) - low) * (255 / (1 - low))).round().to(torch.uint8)


def with_noise(x: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """x + sigma eps: the JEM codes' input noise, at training and at test time."""
    return x + sigma * torch.randn(x.shape, generator=generator, device=x.device) if sigma else x


def crop_flip(x: Tensor, pad: int, generator: torch.Generator | None = None) -> Tensor:
    """Reflect-pad, crop back at a random offset, flip half of them: (B, C, H, W) on any device."""
    B, _, H, W = x.shape
    padded = F.pad(x, (pad,) * 4, mode="reflect")
    corner = torch.randint(2 * pad + 1, (2, B, 1), generator=generator, device=x.device)
    rows = corner[0] + torch.arange(H, device=x.device)                                   # (B, H)
    cols = corner[1] + torch.arange(W, device=x.device)                                   # (B, W)
    flip = torch.rand(B, 1, generator=generator, device=x.device) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    b = torch.arange(B, device=x.device)[:, None, None]
    return padded[b, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


class Stream:
    """Endless batches of training images, on the device. Batch i depends on (seed, i) alone, so a resumed
    run continues with the batch it would have seen.

    Args:
        x, y: uint8 (n, C, H, W), int64 (n,).   batch: size; the last partial batch of an epoch is left out.
        augment: lib.params.Augment.   low: of the range [low, 1].
    """

    def __init__(self, x: Tensor, y: Tensor, batch: int, augment, seed: int, low: float = -1.0):
        if batch > len(x):
            raise DataError(f"batch {batch} is larger than the {len(x)} training images: lower update.batch")
        self.x, self.y, self.batch, self.augment, self.seed = x, y, batch, augment, seed
        self.per_epoch, self.low = len(x) // batch, low
        self._epoch, self._order = -1, None

    def __call__(self, i: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Batch i: images float (batch, C, H, W) in [low, 1] plus noise, labels (batch,)."""
        epoch, position = divmod(i, self.per_epoch)
        if epoch != self._epoch:
            g = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.x), generator=g).to(self.x.device)
        index = self._order[position * self.batch:(position + 1) * self.batch]
        x = to_range(self.x[index], self.low)
        if self.augment.kind == "crop_flip":
            x = crop_flip(x, self.augment.pad, generator)
        return with_noise(x, self.augment.noise, generator), self.y[index]


# ------------------------------------------------------------------------------------ where images come from
def embedded(name: str, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of the small set in the repository; its checksum is verified."""
    path = Path(folder or ROOT / "data" / "embedded") / f"{name}.npz"
    if name not in EMBEDDED:
        raise DataError(f"{name} has no embedded subset (only {', '.join(EMBEDDED)}): set source: full")
    if not path.exists():
        raise DataError(f"{path} is missing: git checkout data/embedded, or run data/make_embedded.py")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != EMBEDDED[name]:
        raise DataError(f"{path} is corrupt: sha256 {found[:12]}..., expected {EMBEDDED[name][:12]}...; "
                        "restore it with git checkout data/embedded")
    with np.load(path) as f:
        return tuple(f[k] for k in ("x_train", "y_train", "x_test", "y_test"))


def full(name: str, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """The whole data set: from `folder`, else Debian's package where it is installed, else data/raw, filled by
    torchvision's downloader (which verifies its own checksums)."""
    if name in ("fashion_mnist", "mnist"):
        for place in filter(None, (folder, None if folder else DEBIAN.get(name))):
            if (place / "train-images-idx3-ubyte.gz").exists():
                return _idx_files(name, Path(place))
        if folder:
            raise DataError(f"{folder} has no train-images-idx3-ubyte.gz: expected the four *-ubyte.gz files of {name}")
    from lib import vision
    root, sets = folder or ROOT / "data" / "raw", vision.datasets
    kind = {"fashion_mnist": sets.FashionMNIST, "mnist": sets.MNIST, "cifar10": sets.CIFAR10,
            "cifar100": sets.CIFAR100, "svhn": sets.SVHN}[name]
    parts = ({"split": "train"}, {"split": "test"}) if name == "svhn" else ({"train": True}, {"train": False})
    try:
        train, test = (kind(str(root), download=True, **part) for part in parts)
    except (RuntimeError, OSError) as e:
        raise DataError(f"{name}: not in {root} and not to be downloaded ({' '.join(str(e).split())[:120]}). Put "
                        "the published files there, or use source: embedded") from e
    labels = [np.asarray(s.labels if name == "svhn" else s.targets) for s in (train, test)]
    return np.asarray(train.data), labels[0], np.asarray(test.data), labels[1]


def _idx_files(name: str, folder: Path) -> tuple[np.ndarray, ...]:
    """The MNIST family's four gzipped idx files, each checked against torchvision's published MD5."""
    from lib import vision
    kind = {"fashion_mnist": vision.datasets.FashionMNIST, "mnist": vision.datasets.MNIST}[name]
    arrays = []
    for file, md5 in kind.resources:                    # train images, train labels, test images, test labels
        path = folder / file
        if not path.exists():
            raise DataError(f"{path} is missing: expected the four *-ubyte.gz files of {name} in one folder")
        packed = path.read_bytes()
        if hashlib.md5(packed).hexdigest() != md5 and folder != DEBIAN.get(name):
            raise DataError(f"{path} is corrupt or another file: its MD5 is not {md5}; fetch it again")
        arrays.append(read_idx(gzip.decompress(packed)))
    return tuple(arrays)


def read_idx(raw: bytes) -> np.ndarray:
    """An idx file's content as a uint8 array. Raises: DataError where it is truncated or of another type."""
    if len(raw) < 4 or raw[2] != 8:
        raise DataError("not an idx file of unsigned bytes (magic number)")
    shape = [int.from_bytes(raw[4 + 4 * i:8 + 4 * i], "big") for i in range(raw[3])]
    body = raw[4 + 4 * raw[3]:]
    if len(body) != int(np.prod(shape)):
        raise DataError(f"idx file truncated: {len(body)} bytes for shape {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def resize(x: Tensor, size: int) -> Tensor:
    """uint8 (n, C, H, H) -> (n, C, size, size): 28 px is padded to 32 with zeros, then block-averaged."""
    if x.shape[-1] == size:
        return x
    if x.shape[-1] == 28:
        x = F.pad(x, (2, 2, 2, 2))
    if x.shape[-1] < size or x.shape[-1] % size:
        raise DataError(f"size {size}: expected a divisor of {x.shape[-1]} pixels (32, 16, 8)")
    return F.avg_pool2d(x.float(), x.shape[-1] // size).round().to(torch.uint8)


def image_folder(name: str, folder: Path | None, size: int) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of image files anywhere under `folder`, in the order of their paths: the short
    side scaled to `size`, the centre cut out; every tenth file is a test image. All labels are 0.

    Raises: DataError where the folder is missing or has fewer than two images, or a file is no image.
    """
    from PIL import Image, UnidentifiedImageError
    folder = folder or ROOT / "data" / "raw" / name
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if len(files) < 2:
        raise DataError(f"{folder} has {len(files)} images: expected the .png or .jpg files of {TITLES[name]} anywhere "
                        f"under it (or name another place with scales.<profile>.data.<role>.folder)")
    images = np.empty((len(files), 3, size, size), np.uint8)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                image = image.convert("RGB")
                scale = size / min(image.size)
                image = image.resize([max(size, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as e:
            raise DataError(f"{file} is no readable image ({e}): fetch it again, or remove it") from e
        left, top = ((s - size) // 2 for s in image.size)
        images[i] = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    test = np.arange(len(files)) % 10 == 9 if len(files) >= 10 else np.arange(len(files)) == len(files) - 1
    labels = np.zeros(len(files), np.int64)
    return images[~test], labels[~test], images[test], labels[test]


def prepare(p: params.Data) -> Split:
    """Load, resize, choose and split one data set, and fit the class Gaussians of its training part."""
    place = Path(p.folder) if p.folder else None
    if p.source == "folder":
        arrays = image_folder(p.name, place, p.size)
    else:
        arrays = embedded(p.name, place) if p.source == "embedded" else full(p.name, place)
    x, y, xt, yt = (torch.from_numpy(np.array(a)) for a in arrays)
    x, xt = (resize(_channels_first(a), p.size) for a in (x, xt))
    y, yt = y.long(), yt.long()
    if p.classes:
        (x, y), (xt, yt) = (_only(a, b, p) for a, b in ((x, y), (xt, yt)))
    for what, wanted, have in (("train", p.train, len(x)), ("test", p.test, len(xt))):
        if wanted and wanted > have:
            raise DataError(f"{what}: {wanted} images wanted, {p.name} ({p.source}) has {have}: lower {what} in params.yaml")
    n = p.train or len(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    if p.holdout >= n:
        raise DataError(f"holdout {p.holdout} leaves none of the {n} training images: lower holdout")
    train, hold = order[p.holdout:], order[:p.holdout]
    small = x[0].numel() <= GAUSSIAN_PIXELS
    gaussians = inits.ClassGaussians.fit(to_range(x[train]), y[train]) if small else None
    m = p.test or len(xt)
    return Split(p.name, x[train], y[train], x[hold], y[hold], xt[:m], yt[:m], gaussians, p.classes)


def _only(x: Tensor, y: Tensor, p: params.Data) -> tuple[Tensor, Tensor]:
    """The images of the classes that `p` names, labelled in that order."""
    if not set(p.classes) <= set(range(len(CLASSES[p.name]))) or len(set(p.classes)) < len(p.classes):
        raise DataError(f"classes {list(p.classes)}: expected different numbers from 0 to {len(CLASSES[p.name]) - 1}")
    place = torch.full((len(CLASSES[p.name]),), -1)
    place[list(p.classes)] = torch.arange(len(p.classes))
    kept = place[y] >= 0
    return x[kept], place[y[kept]]


def _channels_first(x: Tensor) -> Tensor:
    if x.dim() == 3:
        return x[:, None]
    if x.shape[1] in (1, 3):
        return x
    return x.permute(0, 3, 1, 2).contiguous() if x.shape[-1] == 3 else x


# ------------------------------------------------------------------------------------------ prepared artefacts
def path_of(profile: str, role: str) -> Path:
    return ROOT / "artifacts" / profile / "data" / f"{role}.pt"


def save(split: Split, path: Path) -> None:
    state = {k: v for k, v in vars(split).items() if k != "gaussians"}
    torch.save({**state, "gaussians": split.gaussians and split.gaussians.state_dict()}, path)


def load(profile: str, role: str = "primary") -> Split:
    """The prepared data of a profile. Raises: DataError where the data stage has not run."""
    path = path_of(profile, role)
    if not path.exists():
        raise DataError(f"{path} is missing: run `dvc repro data` (or python -m lib.data --profile {profile})")
    state = torch.load(path, weights_only=True)
    fitted = state["gaussians"]
    return Split(**{**state, "gaussians": fitted and inits.ClassGaussians.from_state(fitted)})


# ------------------------------------------------------------------------------ p0: where AT-EBM's chains start
MADE = {"noise": outliers.uniform_noise, "leaves": outliers.dead_leaves, "discs": outliers.discs}


def p0(run: params.Run, seed: int = 0) -> Tensor:
    """The p0 images of a run, uint8 (start.images, C, H, W), shuffled: made ones, and training images of other roles.

    Raises: DataError for a source that is the data themselves, is no role of this profile, or has another shape.
    """
    shape, g, parts = load(run.profile, run.data).shape, torch.Generator().manual_seed(seed), []
    ours = params.data(run.profile, run.data).name
    for source, share in run.start.of.items():
        n = round(share * run.start.images)
        if not n:
            continue
        if source in MADE:
            parts.append(MADE[source](n, shape, g))
            continue
        where = f"runs.{run.name}.start.of.{source}"
        p = params.data(run.profile, source)
        if p is None or p.name == ours:
            raise DataError(f"{where}: {'no data set of this profile' if p is None else 'the data themselves'}; expected "
                            f"one of {', '.join(MADE)}, or a role that holds other data")
        x = load(run.profile, source).x_train
        if tuple(x.shape[1:]) != shape:
            raise DataError(f"{where}: images of shape {tuple(x.shape[1:])}; expected {shape}, as {run.data} has")
        parts.append(x[torch.randperm(len(x), generator=g).repeat(-(-n // len(x)))[:n]])
    images = torch.cat(parts)
    return images[torch.randperm(len(images), generator=g)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the data sets of a profile.")
    parser.add_argument("--profile", choices=params.PROFILES)
    profile = params.profile(parser.parse_args().profile)
    folder = path_of(profile, "").parent
    folder.mkdir(parents=True, exist_ok=True)
    for role in params.scale(profile)["data"]:
        p = params.data(profile, role)
        if p is not None:
            split = prepare(p)
            save(split, path_of(profile, role))
            print(f"{role}: {split.title}, {len(split.x_hold):,} held out, {len(split.x_test):,} test images")


if __name__ == "__main__":
    main()
