"""Where images come from: the repository, torchvision's downloads, published files, folders of images.

    python -m lib.sources --profile quick     prepares artifacts/quick/data/<role>.pt, the pipeline's first stage

Every file with a published checksum is held to it; data/README.md shows where each set is expected.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import pickle
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib import ROOT, files, params
from lib.data import CLASSES, TITLES, DataError, Split, path_of, save, to_range
from lib.parts import starts

EMBEDDED = {  # sha256 of what data/make_embedded.py writes
    "fashion_mnist": "7a295f568e995b16b68f8e43c6935e59e60f72c75b7b627e723d920538619007",
    "mnist": "71cdf39340e8ed1921b19d9b90555ae95e71e5ae8f5145ea1f0a48e69b367209",
}
# sha256 of what the four published files hold: computed from Debian's, which have the published MD5 once the names and
# times that Debian strips are put back (31 August 2017, 10:50 UTC)
FASHION = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MNIST_DIGITS = (
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),  # how many of each, in training
    (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
)  # and test images
MNIST_MEANS = (0.1307, 0.1325)  # of their pixels, in [0, 1]
GAUSSIAN_PIXELS = 4096  # above, a covariance per class would not fit into memory
DEBIAN = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}  # package dataset-fashion-mnist
LAYOUT = {  # under data/raw, or under the folder that params.yaml names
    "fashion_mnist": "FashionMNIST/raw/ with the four *-ubyte.gz files",
    "mnist": "MNIST/raw/ with the four *-ubyte.gz files",
    "cifar10": "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta",
    "cifar100": "cifar-100-python/ with train, test and meta",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "imagenet32": "train_data_batch_1 to train_data_batch_10 and val_data, pickled or as .npz, in any folders",
}
EXAMPLE = {  # of a file there
    "celeba": "img_align_celeba/000001.jpg",
    "celeba_hq": "00000.jpg",
    "afhq_cat": "train/cat/flickr_cat_000002.jpg",
    "lsun_church": "church_outdoor_train/0a1b2c.webp",
    "imagenet": "train/n01440764/n01440764_18.JPEG",
}
READ, PASSED_OVER = (".png", ".jpg", ".jpeg", ".webp"), (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")  # images
ELSEWHERE = "or name another place with scales.<profile>.data.<role>.folder"


def embedded(name: str, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of the small set in the repository; its checksum is verified."""
    path = Path(folder or ROOT / "data" / "embedded") / f"{name}.npz"
    if name not in EMBEDDED:
        raise DataError(f"{name} has no embedded subset (only {', '.join(EMBEDDED)}): set source: full")
    if not path.exists():
        raise DataError(f"{path} is missing: git checkout data/embedded, or run data/make_embedded.py")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != EMBEDDED[name]:
        raise DataError(
            f"{path} is corrupt: sha256 {found[:12]}..., expected {EMBEDDED[name][:12]}...; "
            "restore it with git checkout data/embedded"
        )
    with np.load(path) as f:
        return tuple(f[k] for k in ("x_train", "y_train", "x_test", "y_test"))


def full(name: str, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """The whole data set: from `folder`, else Debian's package where it is installed, else data/raw, filled by
    torchvision's downloader (which verifies its own checksums, but accepts any bytes in the MNIST family's extracted
    files: those are verified here).

    Raises: DataError, naming the first file that is missing or damaged, where the download does not cure it.
    """
    if name in ("fashion_mnist", "mnist"):
        for place in filter(None, (folder, None if folder else DEBIAN.get(name))):
            if (place / "train-images-idx3-ubyte.gz").exists():
                return _idx_files(name, Path(place))
        if folder:
            raise DataError(f"{folder} has no train-images-idx3-ubyte.gz: expected the four *-ubyte.gz files of {name}")
    from lib import vision

    root, sets = Path(folder or ROOT / "data" / "raw"), vision.datasets
    kinds = {
        "fashion_mnist": sets.FashionMNIST,
        "mnist": sets.MNIST,
        "cifar10": sets.CIFAR10,
        "cifar100": sets.CIFAR100,
        "svhn": sets.SVHN,
    }
    if name not in kinds:
        raise DataError(f"{name} comes as image files, not as an archive: set source: folder (data/README.md)")
    kind = kinds[name]
    raw = root / kind.__name__ / "raw"  # the MNIST family's
    found = _mnist_family(name, kind, raw)
    if found:
        return found
    parts = ({"split": "train"}, {"split": "test"}) if name == "svhn" else ({"train": True}, {"train": False})
    try:
        train, test = (kind(str(root), download=True, **part) for part in parts)
    except (RuntimeError, OSError) as e:
        fault, cause = _fault(kind, root), " ".join(str(e).split())[:120]
        raise DataError(
            f"{name}: {fault}not to be downloaded ({cause}): put the published files under {root}, as "
            f"{LAYOUT[name]}, {ELSEWHERE}"
        ) from e
    found = _mnist_family(name, kind, raw)  # what was downloaded
    if found:
        return found
    labels = [np.asarray(s.labels if name == "svhn" else s.targets) for s in (train, test)]
    return np.asarray(train.data), labels[0], np.asarray(test.data), labels[1]


def _fault(kind, root: Path) -> str:
    """The first file of a torchvision data set that is missing or is not the published one (MD5), as a sentence begins."""
    if hasattr(kind, "split_list"):  # SVHN
        published = [kind.split_list[part][1:] for part in ("train", "test")]
    elif hasattr(kind, "resources"):  # the MNIST family
        published = [(f"{kind.__name__}/raw/{file}", md5) for file, md5 in kind.resources]
    else:  # CIFAR
        published = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        published = [(f"{kind.base_folder}/{file}", md5) for file, md5 in published]
    for file, md5 in published:
        if not (root / file).exists():
            return f"{root / file} is missing and "
        if hashlib.md5((root / file).read_bytes()).hexdigest() != md5:
            return f"{root / file} is damaged or another file (its MD5 is not {md5}) and "
    return ""


def _mnist_family(name: str, kind, raw: Path) -> tuple[np.ndarray, ...] | None:
    """What lies in torchvision's folder, verified: the published files, else what was extracted from them; None where
    some are missing of either, and for other data sets."""
    if not hasattr(kind, "resources"):
        return None
    packed = [file for file, _ in kind.resources]
    if all((raw / file).exists() for file in packed):
        return _idx_files(name, raw)
    if not all((raw / file.removesuffix(".gz")).exists() for file in packed):
        return None
    paths = [raw / file.removesuffix(".gz") for file in packed]
    arrays = tuple(_idx(path, path.read_bytes(), "remove it, and it is fetched again", name) for path in paths)
    if name == "mnist":  # we know of no checksums of what MNIST's files hold
        for x, y, path, counts, mean in zip(arrays[::2], arrays[1::2], paths[::2], MNIST_DIGITS, MNIST_MEANS, strict=True):
            same = x.shape == (sum(counts), 28, 28) and y.shape == (sum(counts),) and tuple(np.bincount(y)) == counts
            if not same or abs(x.mean() / 255 - mean) > 1e-3:
                raise DataError(
                    f"{path} and its labels are not MNIST's {sum(counts):,} images (shapes, number of each "
                    "digit, mean pixel): remove both, and they are fetched again"
                )
    return arrays


def _idx(path: Path, content: bytes, remedy: str, name: str = "") -> np.ndarray:
    """The array in a file's content. Raises: DataError where it is damaged, or not what Fashion-MNIST published."""
    found, wanted = hashlib.sha256(content).hexdigest(), FASHION.get(path.name.removesuffix(".gz"), "")
    if name == "fashion_mnist" and found != wanted:
        raise DataError(
            f"{path} is damaged or another file (sha256 of its content {found[:12]}..., expected {wanted[:12]}...): {remedy}"
        )
    try:
        return read_idx(content)
    except DataError as e:
        raise DataError(f"{path} is damaged or another file ({e}): {remedy}") from None


def _idx_files(name: str, folder: Path) -> tuple[np.ndarray, ...]:
    """The MNIST family's four gzipped idx files, each checked against torchvision's published MD5; Debian's, packed anew,
    by what they hold."""
    from lib import vision

    kind = {"fashion_mnist": vision.datasets.FashionMNIST, "mnist": vision.datasets.MNIST}[name]
    arrays, debian = [], folder == DEBIAN.get(name)
    for file, md5 in kind.resources:  # train images, train labels, test images, test labels
        path = folder / file
        if not path.exists():
            raise DataError(f"{path} is missing: expected the four *-ubyte.gz files of {name} in one folder")
        packed = path.read_bytes()
        if hashlib.md5(packed).hexdigest() != md5 and not debian:
            raise DataError(f"{path} is corrupt or another file: its MD5 is not {md5}; fetch it again")
        try:
            content = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as e:
            raise DataError(f"{path} is damaged ({type(e).__name__}): install its package again") from None
        arrays.append(_idx(path, content, "install its package again", name if debian else ""))
    return tuple(arrays)


def read_idx(raw: bytes) -> np.ndarray:
    """An idx file's content as a uint8 array. Raises: DataError where it is truncated or of another type."""
    if len(raw) < 4 or raw[2] != 8:
        raise DataError("not an idx file of unsigned bytes (magic number)")
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    body = raw[4 + 4 * raw[3] :]
    if len(body) != int(np.prod(shape)):
        raise DataError(f"idx file truncated: {len(body)} bytes for shape {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


class _Plain(pickle.Unpickler):
    """Reads what ImageNet-32's published pickles hold, numpy arrays in plain containers. A pickle may name any function
    for its reader to call: this one calls no other than those that rebuild an array."""

    ADMITTED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data need")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def imagenet32(folder: Path | None = None, train: int | None = None, test: int | None = None) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of ImageNet at 32 pixels (Chrabaszcz, Loshchilov and Hutter 2017): its ten
    training batches and validation images, anywhere under `folder`.

    With `train` and `test`, only as many are kept, at random and as many of each batch: the whole is 4 GB, and sets
    that chains start from or detectors are tested on need a tenth. We know of no published checksums: shapes are verified.

    Raises: DataError for a file that is missing, damaged or another set's.
    """
    folder = folder or ROOT / "data" / "raw" / "imagenet32"
    names = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]
    paths = []
    for name in names:
        path = next((p for n in (name, f"{name}.npz") for p in sorted(folder.rglob(n))), None)
        if path is None:
            raise DataError(
                f"{folder} has no {name}: expected {LAYOUT['imagenet32']} (image-net.org gives them out), {ELSEWHERE}"
            )
        paths.append(path)
    share = [None if train is None else train * (i + 1) // 10 - train * i // 10 for i in range(10)]
    batches = [_batch(path, n) for path, n in zip(paths, (*share, test), strict=True)]
    x, y = (np.concatenate(part) for part in zip(*batches[:-1], strict=True))
    return x, y, *batches[-1]


def _batch(path: Path, wanted: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n,), from 0, of one file: `wanted` of them."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as f:
                x, y = f["data"], f["labels"]
        else:
            with path.open("rb") as f:
                entry = _Plain(f, encoding="latin1").load()  # latin1: for copies pickled by Python 2
            x, y = entry["data"], entry["labels"]
        x, y = np.asarray(x), np.asarray(y, np.int64)
    except MemoryError as e:
        raise MemoryError(f"{path}: out of memory") from e
    except Exception as e:  # a damaged pickle may raise anything
        raise DataError(f"{path} is not a readable batch of ImageNet-32 ({type(e).__name__}: {e}): fetch it again") from e
    fits = x.dtype == np.uint8 and y.size and x.shape == (y.size, 3072) and y.min() >= 1 and y.max() <= 1000
    if not fits:
        raise DataError(
            f"{path} holds {x.dtype} of shape {x.shape} and {y.size} labels: expected uint8 (n, 3072) and n "
            "labels from 1 to 1000, the 32-pixel version"
        )
    kept = _some(len(x), wanted)
    return x[kept].reshape(-1, 3, 32, 32), y[kept] - 1


def _some(n: int, wanted: int | None) -> np.ndarray:
    """Indices of `wanted` of n things, chosen at random (one seed), in their order; all n where there are not more."""
    return np.arange(n) if wanted is None else np.sort(np.random.default_rng(0).permutation(n)[:wanted])


def resize(x: Tensor, size: int) -> Tensor:
    """uint8 (n, C, H, H) -> (n, C, size, size): 28 px is padded to 32 with zeros, then block-averaged."""
    if x.shape[-1] == size:
        return x
    if x.shape[-1] == 28:
        x = F.pad(x, (2, 2, 2, 2))
    if x.shape[-1] < size or x.shape[-1] % size:
        raise DataError(f"size {size}: expected a divisor of {x.shape[-1]} pixels (32, 16, 8)")
    return F.avg_pool2d(x.float(), x.shape[-1] // size).round().to(torch.uint8)


def image_folder(
    name: str, folder: Path | None, size: int, train: int | None = None, test: int | None = None
) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of image files anywhere under `folder`, in the order of their paths: the short
    side scaled to `size`, the centre cut out; every tenth file is a test image. All labels are 0.

    With `train` and `test`, only as many files are read, chosen at random: ImageNet at 256 pixels is 250 GB.

    Raises: DataError where the folder is missing or has fewer than two images, or a file is not an image.
    """
    folder = folder or ROOT / "data" / "raw" / name
    every = sorted(f for f in folder.rglob("*") if f.suffix.lower() in READ + PASSED_OVER)
    found = [f for f in every if f.suffix.lower() in READ]
    if others := Counter(f.suffix.lower() for f in every if f.suffix.lower() in PASSED_OVER):
        counts = ", ".join(f"{n} {kind} files" for kind, n in sorted(others.items()))
        print(f"{folder}: passed over {counts}; images are read from {', '.join(READ)}", file=sys.stderr)
    if len(found) < 2:
        example = f", such as {folder.name}/{EXAMPLE[name]}" if name in EXAMPLE else ""
        raise DataError(
            f"{folder} has {len(found)} images: expected the .png or .jpg files of {TITLES[name]} anywhere "
            f"under it{example} ({ELSEWHERE})"
        )
    tests = found[9::10] or found[-1:]
    parts = [sorted(set(found) - set(tests)), tests]
    images = [_images([part[i] for i in _some(len(part), n)], size) for part, n in zip(parts, (train, test), strict=True)]
    labels = [np.zeros(len(x), np.int64) for x in images]
    return images[0], labels[0], images[1], labels[1]


def _images(paths: list[Path], size: int) -> np.ndarray:
    """uint8 (n, 3, size, size): each scaled so that its short side fits, its centre cut out."""
    from PIL import Image

    images = np.empty((len(paths), 3, size, size), np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image = _eight_bits(image).convert("RGB")
                scale = size / min(image.size)
                image = image.resize([max(size, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
        except MemoryError as e:
            raise MemoryError(f"{path}: out of memory") from e
        except Exception as e:  # a damaged or hostile image raises many kinds, a decompression bomb its own
            raise DataError(
                f"{path} is not a readable image ({' '.join(str(e).split())}): fetch it again, or remove it"
            ) from e
        left, top = ((s - size) // 2 for s in image.size)
        images[i] = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    return images


def _eight_bits(image):
    """A grey image of 16 bits scaled to 8: Pillow's own conversion would cut off all above 255. Others as they are.
    Raises: ValueError for numbers whose range is not known."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    x = np.asarray(image)
    if image.mode == "F" or x.min() < 0 or x.max() > 65535:
        raise ValueError(f"{x.dtype} from {x.min():g} to {x.max():g}; expected 8 or 16 bits a channel")
    return Image.fromarray((x / 257).round().astype(np.uint8))


def read(p: params.Data) -> tuple[np.ndarray, ...]:
    """(x_train, y_train, x_test, y_test) of the data set that `p` names, from the source that it names."""
    place = Path(p.folder) if p.folder else None
    if p.source == "embedded":
        return embedded(p.name, place)
    if p.source == "folder":
        return image_folder(p.name, place, p.size, p.train, p.test)
    return imagenet32(place, p.train, p.test) if p.name == "imagenet32" else full(p.name, place)


def prepare(p: params.Data) -> Split:
    """Load, resize, choose and split one data set, and fit the class Gaussians of its training part."""
    x, y, xt, yt = (torch.from_numpy(np.require(a, requirements="W")) for a in read(p))
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
    train, hold = order[p.holdout :], order[: p.holdout]
    fits = p.gaussians and x[0].numel() <= GAUSSIAN_PIXELS
    gaussians = gaussians_of(x[train], y[train], p.name) if fits else None
    m = p.test or len(xt)
    return Split(p.name, x[train], y[train], x[hold], y[hold], xt[:m], yt[:m], gaussians, p.classes)


def gaussians_of(x: Tensor, y: Tensor, name: str) -> starts.ClassGaussians:
    """The class Gaussians of uint8 images x (n, C, H, W) with labels y (n,), fitted one class at a time.

    Memory: the result, a (D, D) matrix of floats for each class, D = CHW (3.8 GB for CIFAR-100), and while it grows
    a handful of such matrices in double for the class that is being fitted (0.5 GB). Raises: DataError for an empty class.
    """
    counts, D = torch.bincount(y), x[0].numel()
    if (counts == 0).any():
        empty = torch.nonzero(counts == 0).flatten().tolist()
        raise DataError(
            f"{name}: classes {empty} have no training image, and class Gaussians need one of each: raise "
            "train, or set gaussians: false"
        )
    mu, factor = torch.empty(len(counts), D), torch.empty(len(counts), D, D)
    for c, n in enumerate(counts.tolist()):
        one = starts.ClassGaussians.fit(to_range(x[y == c]), torch.zeros(n, dtype=torch.long))
        mu[c], factor[c] = one.mu[0], one.factor[0]
    return starts.ClassGaussians(mu, factor, (counts / counts.sum()).float(), x.shape[1:])


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


def stage(profile: str, role: str) -> str | None:
    """Prepare and save one role's data; says in a line what they are (None where the profile has none)."""
    p = params.data(profile, role)
    if p is None:
        return None
    split = prepare(p)
    save(split, path_of(profile, role))
    return f"{role}: {split.title}, {len(split.x_hold):,} held out, {len(split.x_test):,} test images"


@files.command(params.ConfigError)
def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the data sets of a profile.")
    parser.add_argument("--profile", choices=params.PROFILES)
    profile, wrong = params.profile(parser.parse_args().profile), []
    files.writable(path_of(profile, "").parent)
    for role in params.scale(profile)["data"]:
        try:
            if done := stage(profile, role):
                print(done)
        except DataError as e:  # the others first: all that is missing is said at once
            wrong.append(f"error: {role}: {e}")
    if wrong:
        sys.exit("\n".join([*wrong, f"A set that you do without: scales.{profile}.data.<role>: null"]))


if __name__ == "__main__":
    main()
