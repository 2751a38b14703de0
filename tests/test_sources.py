"""Where images come from: checksums, and every format, in small files of the same format."""

import gzip
import hashlib
import pickle
import zlib

import numpy as np
import pytest
import torch

from lib import ROOT, data, params, sources, vision
from lib.parts import starts


def test_embedded_sets_are_what_the_readme_says():
    x, y, xt, yt = sources.embedded("fashion_mnist")
    assert x.shape == (10_000, 28, 28) and xt.shape == (2_000, 28, 28) and x.dtype == np.uint8
    assert np.array_equal(np.bincount(y), [1000] * 10) and np.array_equal(np.bincount(yt), [200] * 10)
    x, y, xt, yt = sources.embedded("mnist")
    assert x.shape == (4_000, 28, 28) and np.array_equal(np.bincount(yt), [100] * 10)
    joint = {a.tobytes() for a in x} & {a.tobytes() for a in xt}
    assert not joint, "MNIST training and test images must be disjoint"
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert all(digest in readme for digest in sources.EMBEDDED.values())


def test_a_corrupt_or_missing_file_is_named(tmp_path):
    with pytest.raises(data.DataError, match="is missing"):
        sources.embedded("mnist", tmp_path)
    (tmp_path / "mnist.npz").write_bytes(b"torn")
    with pytest.raises(data.DataError, match="is corrupt: sha256"):
        sources.embedded("mnist", tmp_path)
    with pytest.raises(data.DataError, match="no embedded subset"):
        sources.embedded("cifar10")


def _idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def test_the_four_idx_files_of_a_folder(tmp_path, monkeypatch):
    g = np.random.default_rng(0)
    arrays = [
        g.integers(0, 256, (20, 28, 28), np.uint8),
        np.arange(20, dtype=np.uint8) % 10,
        g.integers(0, 256, (10, 28, 28), np.uint8),
        np.arange(10, dtype=np.uint8),
    ]
    names = [name for name, _ in vision.datasets.FashionMNIST.resources]
    for name, array in zip(names, arrays):
        (tmp_path / name).write_bytes(gzip.compress(_idx(array)))
    digests = [(n, hashlib.md5((tmp_path / n).read_bytes()).hexdigest()) for n in names]
    with pytest.raises(data.DataError, match="corrupt or another file"):
        sources.full("fashion_mnist", tmp_path)
    monkeypatch.setattr(vision.datasets.FashionMNIST, "resources", digests)
    for got, array in zip(sources.full("fashion_mnist", tmp_path), arrays):
        assert np.array_equal(got, array)
    split = sources.prepare(
        params.Data(name="fashion_mnist", source="full", size=32, train=20, holdout=0, folder=str(tmp_path))
    )
    assert split.x_train.shape == (20, 1, 32, 32)
    (tmp_path / names[3]).unlink()
    with pytest.raises(data.DataError, match="is missing: expected the four"):
        sources.full("fashion_mnist", tmp_path)


def extracted(root, kind, monkeypatch, counts=(30, 20), mean=None):
    """Torchvision's folder with what it extracts, small, with checksums to fit: (folder, arrays)."""
    folder, g = root / "data" / "raw" / kind.__name__ / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = []
    for n in counts:
        arrays += [g.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10]
    names = [file.removesuffix(".gz") for file, _ in kind.resources]
    for name, array in zip(names, arrays):
        (folder / name).write_bytes(_idx(array))
    monkeypatch.setattr(sources, "ROOT", root)
    monkeypatch.setattr(sources, "DEBIAN", {})
    monkeypatch.setattr(kind, "mirrors", [(root / "nowhere").as_uri() + "/"])  # a test downloads nothing
    monkeypatch.setattr(sources, "FASHION", {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names})
    monkeypatch.setattr(sources, "MNIST_DIGITS", tuple((n // 10,) * 10 for n in counts))
    monkeypatch.setattr(sources, "MNIST_MEANS", [a.mean() / 255 for a in arrays[::2]])
    return folder, arrays


BOTH = pytest.mark.parametrize(
    "name, kind", [("fashion_mnist", vision.datasets.FashionMNIST), ("mnist", vision.datasets.MNIST)]
)


@BOTH
def test_extracted_files_are_read_and_verified(tmp_path, monkeypatch, name, kind):
    """torchvision itself looks only at the packed files' checksums, and only when it fetches them."""
    folder, arrays = extracted(tmp_path, kind, monkeypatch)
    assert all(np.array_equal(a, b) for a, b in zip(sources.full(name), arrays))
    for i, path in enumerate(folder / file.removesuffix(".gz") for file, _ in kind.resources):
        whole = path.read_bytes()
        other = np.random.default_rng(1).bytes(len(whole))
        for content in (other, whole[:16] + other[16:], whole[:-1], b"", whole[:16] + bytes(len(whole) - 16)):
            path.write_bytes(content)
            with pytest.raises(data.DataError, match="and they are fetched again|and it is fetched again") as e:
                sources.full(name)
            assert str(path) in str(e.value) or (i % 2 and str(path).replace("labels-idx1", "images-idx3") in str(e.value))
            assert "\n" not in str(e.value)
        path.write_bytes(whole)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(data.DataError, match=f"{name}: .*is missing and not to be downloaded"):
        sources.full(name)


@BOTH
def test_packed_files_count_where_they_are_there(tmp_path, monkeypatch, name, kind):
    folder, arrays = extracted(tmp_path, kind, monkeypatch)
    resources = []
    for (file, _), array in zip(kind.resources, arrays):
        (folder / file).write_bytes(gzip.compress(_idx(array)))
        (folder / file.removesuffix(".gz")).write_bytes(b"any bytes")
        resources.append((file, hashlib.md5((folder / file).read_bytes()).hexdigest()))
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte.gz is corrupt or another file: its MD5 is not"):
        sources.full(name)
    monkeypatch.setattr(kind, "resources", resources)
    assert all(np.array_equal(a, b) for a, b in zip(sources.full(name), arrays))


def test_the_pinned_checksums_are_of_the_published_files():
    """Debian's package holds the published content, packed anew; our 10,000 are from it."""
    folder = sources.DEBIAN["fashion_mnist"]
    if not folder.exists():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    x, y, xt, yt = sources.full("fashion_mnist")
    assert x.shape == (60_000, 28, 28) and np.array_equal(np.bincount(y), [6000] * 10) and len(xt) == len(yt) == 10_000
    assert as_set(sources.embedded("fashion_mnist")[0]) <= as_set(x)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-4] + b"1234", lambda b: gzip.compress(b"other")]
)
def test_a_damaged_package_is_named(tmp_path, monkeypatch, damage):
    arrays = [np.zeros((20, 28, 28), np.uint8), np.zeros(20, np.uint8)] * 2
    for (file, _), array in zip(vision.datasets.FashionMNIST.resources, arrays):
        (tmp_path / file).write_bytes(gzip.compress(_idx(array)))
    monkeypatch.setattr(sources, "DEBIAN", {"fashion_mnist": tmp_path})
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=f"{path} is damaged.*: install its package again"):
        sources.full("fashion_mnist")


def test_a_truncated_idx_file():
    with pytest.raises(data.DataError, match="truncated"):
        sources.read_idx(_idx(np.zeros((4, 4), np.uint8))[:-1])
    with pytest.raises(data.DataError, match="magic"):
        sources.read_idx(b"\x00\x00\x0d\x01")


def test_resize_averages_blocks():
    x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    x[0, 0, 0, 0] = 200  # lands at (2, 2) of 32x32, first of its 2x2 block
    y = sources.resize(x, 16)
    assert y.shape == (1, 1, 16, 16) and y[0, 0, 1, 1] == 50 and y.sum() == 50
    with pytest.raises(data.DataError, match="divisor"):
        sources.resize(x, 15)


def test_impossible_sizes_are_named():
    with pytest.raises(data.DataError, match="20000 images wanted"):
        sources.prepare(params.Data(name="fashion_mnist", size=8, train=20_000))
    with pytest.raises(data.DataError, match="holdout 100 leaves none"):
        sources.prepare(params.Data(name="mnist", size=8, train=100, holdout=100))


def test_split_parts_are_disjoint():
    s = sources.prepare(params.Data(name="mnist", size=32, train=1000, holdout=200))
    parts = [{a.numpy().tobytes() for a in p} for p in (s.x_train, s.x_hold, s.x_test)]
    assert len(s.x_train) == 800 and len(s.x_hold) == 200
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), np.uint8)


def as_set(*images):
    return {np.asarray(i).tobytes() for part in images for i in part}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(folder, monkeypatch, kind, labels, key):
    """Small files in CIFAR's format, instead of the published ones: (training images, test images)."""
    monkeypatch.setattr(kind, "url", (folder / "nowhere.tar.gz").as_uri())  # a test downloads nothing
    home, found = folder / kind.base_folder, {}
    home.mkdir()
    for part in ("train_list", "test_list"):
        files, found[part] = [], []
        for i, (name, _) in enumerate(getattr(kind, part)):
            x = noise(len(labels), seed=10 * len(found) + i)
            (home / name).write_bytes(pickle.dumps({"data": x.reshape(-1, 3072), key: labels}, protocol=2))
            files.append([name, md5(home / name)])
            found[part].extend(x)
        monkeypatch.setattr(kind, part, files)
    (home / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [str(c) for c in sorted(set(labels))]}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(home / kind.meta["filename"])})
    return found["train_list"], found["test_list"]


def test_cifar10_files(tmp_path, monkeypatch):
    x, xt = write_cifar(tmp_path, monkeypatch, vision.datasets.CIFAR10, [i % 10 for i in range(20)], "labels")
    config = params.Data(name="cifar10", source="full", size=32, holdout=10, folder=str(tmp_path), gaussians=False)
    split = sources.prepare(config)
    assert split.x_train.shape == (90, 3, 32, 32) and len(split.x_hold) == 10 and len(split.x_test) == 20
    assert as_set(split.x_train, split.x_hold) == as_set(x) and split.gaussians is None, "colours stay where they were"
    assert np.array_equal(split.x_test, xt) and split.y_test.tolist() == [i % 10 for i in range(20)]
    data.save(split, tmp_path / "primary.pt")
    monkeypatch.setattr(data, "path_of", lambda *a: tmp_path / "primary.pt")
    assert data.load("paper").gaussians is None and torch.equal(data.load("paper").x_train, split.x_train)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1] + b"?")
    with pytest.raises(data.DataError, match="data_batch_2 is damaged or another file.*put the published files under"):
        sources.prepare(config)
    batch.unlink()
    with pytest.raises(data.DataError, match="data_batch_2 is missing and not to be downloaded.*cifar-10-batches-py/ with"):
        sources.prepare(config)


def test_the_published_checksums_are_kept(tmp_path, monkeypatch):
    real = vision.datasets.CIFAR10.train_list
    write_cifar(tmp_path, monkeypatch, vision.datasets.CIFAR10, list(range(10)), "labels")
    monkeypatch.setattr(vision.datasets.CIFAR10, "train_list", real)
    with pytest.raises(data.DataError, match="data_batch_1 is damaged or another file .its MD5 is not c99cafc1"):
        sources.full("cifar10", tmp_path)


def test_cifar100_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, vision.datasets.CIFAR100, [i % 100 for i in range(300)], "fine_labels")
    split = sources.prepare(params.Data(name="cifar100", source="full", size=8, folder=str(tmp_path)))
    assert split.x_train.shape == (300, 3, 8, 8) and len(split.classes) == 100
    assert split.gaussians.factor.shape == (100, 192, 192) and split.gaussians.shape == (3, 8, 8)


def write_svhn(folder, monkeypatch, labels):
    from scipy.io import savemat

    kind, files = vision.datasets.SVHN, {**vision.datasets.SVHN.split_list}
    for seed, part in enumerate(("train", "test")):
        name = files[part][1]
        savemat(folder / name, {"X": noise(len(labels), seed).transpose(2, 3, 1, 0), "y": np.array(labels)[:, None]})
        files[part] = [(folder / "nowhere").as_uri(), name, md5(folder / name)]
    monkeypatch.setattr(kind, "split_list", files)


def test_svhn_files(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch, [i % 10 + 1 for i in range(30)])  # the files call the digit 0 "10"
    config = params.Data(name="svhn", source="full", size=32, folder=str(tmp_path), gaussians=False)
    split = sources.prepare(config)
    assert as_set(split.x_train) == as_set(noise(30)) and np.array_equal(split.x_test, noise(30, 1))
    assert split.y_test.tolist() == [(i + 1) % 10 for i in range(30)] and split.title.startswith("SVHN 32x32")
    (tmp_path / "test_32x32.mat").write_bytes(b"torn")
    with pytest.raises(data.DataError, match="test_32x32.mat is damaged.*as train_32x32.mat and test_32x32.mat"):
        sources.prepare(config)
    (tmp_path / "train_32x32.mat").unlink()
    with pytest.raises(data.DataError, match="train_32x32.mat is missing"):
        sources.prepare(config)


def write_imagenet32(folder, n=10):
    """Pickles as published, the validation images as .npz: (training images, validation images)."""
    (folder / "Imagenet32_train").mkdir(parents=True)
    images = [noise(n, seed) for seed in range(11)]
    for i, x in enumerate(images[:10]):
        entry = {"data": x.reshape(n, 3072), "labels": [*range(1, n), 1000], "mean": x.reshape(n, 3072).mean(0)}
        (folder / "Imagenet32_train" / f"train_data_batch_{i + 1}").write_bytes(pickle.dumps(entry, protocol=i % 6))
    np.savez(folder / "val_data.npz", data=images[10].reshape(n, 3072), labels=np.arange(1, n + 1))
    return np.concatenate(images[:10]), images[10]


IMAGENET32 = dict(name="imagenet32", source="full", size=32, gaussians=False)


def test_imagenet32_files(tmp_path):
    x, xt = write_imagenet32(tmp_path)
    split = sources.prepare(params.Data(**IMAGENET32, folder=str(tmp_path)))
    assert as_set(split.x_train) == as_set(x) and np.array_equal(split.x_test, xt) and split.gaussians is None
    assert split.y_test.tolist() == list(range(10)) and split.y_train.max() == 999 and len(split.classes) == 1000
    few = sources.prepare(params.Data(**IMAGENET32, train=25, test=4, folder=str(tmp_path)))
    assert len(few.x_train) == 25 and as_set(few.x_train) < as_set(x) and as_set(few.x_test) < as_set(xt)
    assert len(few.x_test) == 4 and len(as_set(few.x_train)) == 25
    assert {len(as_set(few.x_train) & as_set(x[i : i + 10])) for i in range(0, 100, 10)} == {2, 3}, "of each batch, as many"
    with pytest.raises(data.DataError, match="train: 500 images wanted, imagenet32 .full. has 100"):
        sources.prepare(params.Data(**IMAGENET32, train=500, folder=str(tmp_path)))
    (tmp_path / "Imagenet32_train" / "train_data_batch_10").unlink()
    with pytest.raises(data.DataError, match="has no train_data_batch_10: expected train_data_batch_1 to"):
        sources.imagenet32(tmp_path)


class Spy:
    def __reduce__(self):
        return print, ("code from a data file ran",)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a readable batch of ImageNet-32 .EOFError"),
        (pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [1] * 5})[:-200], "is not a readable batch"),
        (pickle.dumps({"data": Spy(), "labels": [1]}), "asks for builtins.print, which no data need"),
        (pickle.dumps({"images": []}), "not a readable batch of ImageNet-32 .KeyError: 'data'"),
        (pickle.dumps({"data": np.zeros((5, 12288), np.uint8), "labels": [1] * 5}), "expected uint8 .n, 3072. and n labels"),
        (
            pickle.dumps({"data": np.zeros((5, 3072), np.float32), "labels": [1] * 5}),
            "holds float32 of shape .5, 3072. and 5",
        ),
        (pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "labels": [0] * 5}), "labels from 1 to 1000"),
        (pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}), "and 0 labels"),
    ],
)
def test_a_batch_that_is_none(content, message, tmp_path, capsys):
    write_imagenet32(tmp_path)
    (tmp_path / "Imagenet32_train" / "train_data_batch_3").write_bytes(content)
    with pytest.raises(data.DataError, match=f"train_data_batch_3 .*{message}"):
        sources.imagenet32(tmp_path)
    assert not capsys.readouterr().out


def test_gaussians_one_class_at_a_time_are_those_of_all_at_once():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (60, 3, 8, 8), generator=g, dtype=torch.uint8)
    y = torch.randint(4, (60,), generator=g)
    one, all_ = sources.gaussians_of(x, y, "cifar10"), starts.ClassGaussians.fit(data.to_range(x), y)
    assert all(torch.equal(getattr(one, k), getattr(all_, k)) for k in ("mu", "factor", "prior"))
    assert (one.shape, one.low, one.high) == (all_.shape, all_.low, all_.high)
    with pytest.raises(data.DataError, match=r"cifar10: classes \[1, 2\] have no training image.*gaussians: false"):
        sources.gaussians_of(x[:2], torch.tensor([0, 3]), "cifar10")


def test_image_folders(tmp_path):
    from PIL import Image

    g = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i in range(20):  # wide images: the centre is cut out
        image = np.zeros((300, 500, 3), np.uint8)
        image[:, 100:400] = 10 * i
        image[0, 250] = g.integers(0, 255, 3)
        Image.fromarray(image).save(tmp_path / ("a" if i % 2 else ".") / f"{i:02d}.png")
    config = params.Data(name="afhq_cat", source="folder", size=256, folder=str(tmp_path))
    split = sources.prepare(config)
    assert split.x_train.shape == (18, 3, 256, 256) and split.x_test.shape == (2, 3, 256, 256) and split.gaussians is None
    assert split.title == "AFHQ-CAT 256x256 (18 training images)" and split.classes == ("cat",)
    flat = split.x_train.flatten(1).float()
    assert (flat.std(1) < 12).all() and set(flat.median(1).values.round().int().tolist()) <= set(range(0, 200, 10))
    (tmp_path / "a" / "99.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match="99.png is not a readable image"):
        sources.prepare(config)
    with pytest.raises(data.DataError, match="has 0 images: expected the .png or .jpg files of CelebA-HQ"):
        sources.prepare(params.Data(name="celeba_hq", source="folder", size=256, folder=str(tmp_path / "none")))


def test_a_set_of_image_files_has_no_archive():
    with pytest.raises(data.DataError, match="celeba_hq comes as image files, not as an archive: set source: folder"):
        sources.full("celeba_hq")


def test_celeba_files(tmp_path):
    from PIL import Image

    (tmp_path / "img_align_celeba").mkdir()
    shades = [20 * i for i in range(12)]
    for i, shade in enumerate(shades):
        Image.new("RGB", (178, 218), (shade, 255 - shade, 0)).save(tmp_path / "img_align_celeba" / f"{i + 1:06d}.jpg")
    config = dict(name="celeba", source="folder", size=32, folder=str(tmp_path), gaussians=False)
    split = sources.prepare(params.Data(**config))
    assert split.x_train.shape == (11, 3, 32, 32) and split.title == "CelebA 32x32 (11 training images)"
    assert (split.x_test[0, 0].int() - shades[9]).abs().max() < 6, "every tenth is a test image"
    few = sources.prepare(params.Data(**config, train=3, test=1))
    assert as_set(few.x_train) < as_set(split.x_train) and len(few.x_train) == 3
    with pytest.raises(data.DataError, match="test: 5 images wanted, celeba .folder. has 1"):
        sources.prepare(params.Data(**config, test=5))
    with pytest.raises(data.DataError, match="of CelebA anywhere under it, such as none/img_align_celeba/000001.jpg"):
        sources.image_folder("celeba", tmp_path / "none", 32)


def test_the_stage_names_all_that_is_missing_at_once(tmp_path, monkeypatch, capsys):
    def prepare(p):
        if p.name == "mnist" or p.classes == (9,):
            raise data.DataError(f"{p.name} is missing")
        return split

    split = sources.prepare(params.Data(name="mnist", size=8, train=100))
    monkeypatch.setattr(sources, "prepare", prepare)
    monkeypatch.setattr(sources, "path_of", lambda profile, role: tmp_path / f"{role}.pt")
    monkeypatch.setattr("sys.argv", ["sources", "--profile", "smoke"])
    with pytest.raises(SystemExit) as stopped:
        sources.main()
    lines = str(stopped.value).splitlines()
    assert lines[:2] == ["error: second: mnist is missing", "error: faces: fashion_mnist is missing"]
    assert lines[2] == "A set that you do without: scales.smoke.data.<role>: null"
    assert {p.name for p in tmp_path.glob("*.pt")} == {"primary.pt", "cats.pt", "church.pt"}
    assert "primary: MNIST 8x8 (100 training images)" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- odd image files
@pytest.fixture
def folder(tmp_path):
    """Two ordinary images, which a folder needs at least."""
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (16, 16), (100, 150, 200)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_cut_off(folder, mode):
    """All above 255 became white before: 98 % of what a 16-bit image shows."""
    from PIL import Image

    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).repeat(16).reshape(256, 16).T.copy()  # (16, 256)
    image = Image.fromarray(ramp.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    assert image.mode == mode
    image.save(folder / "c.png", format=None if mode == "I;16" else "TIFF")
    eight = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(16, 0))
    eight.save(folder / "d.png")
    x = sources._images([folder / "c.png", folder / "d.png"], 16)
    assert np.array_equal(x[0], x[1]) and len(np.unique(x[0])) > 10


def test_numbers_of_no_known_range_are_refused(folder):
    from PIL import Image

    Image.fromarray(np.linspace(0, 3, 256, dtype=np.float32).reshape(16, 16)).save(folder / "c.png", format="TIFF")
    with pytest.raises(data.DataError, match="c.png is not a readable image .float32 from 0 to 3; expected 8 or 16 bits"):
        sources.image_folder("celeba", folder, 16)


def bomb(path):
    """A PNG of 40,000 x 40,000 pixels that has none of them."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = (40_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def large_text(path):
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 2_000_000, zip=True)
    Image.new("L", (16, 16)).save(path, pnginfo=info)


@pytest.mark.parametrize(
    "write, says",
    [
        (bomb, "decompression bomb"),
        (large_text, "too large"),
        (lambda p: p.write_bytes(b""), "cannot identify"),
        (lambda p: p.write_bytes((p.parent / "a.png").read_bytes()[:60]), ""),
    ],
    ids=["bomb", "text", "empty", "torn"],
)
def test_a_hostile_or_damaged_image_is_one_line(folder, write, says):
    write(folder / "c.png")
    with pytest.raises(data.DataError, match=f"c.png is not a readable image .*{says}.*: fetch it again, or remove it") as e:
        sources.image_folder("celeba", folder, 16)
    assert "\n" not in str(e.value)


def test_files_of_another_kind_are_passed_over_with_a_word(folder, capsys):
    from PIL import Image

    assert len(sources.image_folder("celeba", folder, 16)[0]) == 1 and not capsys.readouterr().err
    for name in ("c.gif", "d.GIF", "e.bmp"):
        Image.new("L", (16, 16)).save(folder / name)
    (folder / "notes.txt").write_bytes(b"")
    assert len(sources.image_folder("celeba", folder, 16)[0]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{folder}: passed over 1 .bmp files, 2 .gif files; images are read from .png, .jpg")
    assert said.count("\n") == 1


def test_where_nothing_can_be_written_nothing_is_prepared(tmp_path, monkeypatch):
    (tmp_path / "artifacts").write_bytes(b"")
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "stage", lambda *a: pytest.fail("prepared"))
    monkeypatch.setattr("sys.argv", ["sources", "--profile", "smoke"])
    with pytest.raises(SystemExit, match="^error: .*artifacts/smoke/data is no folder to write to .*: make it writable"):
        sources.main()
