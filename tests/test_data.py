"""Data: checksums, formats, ranges, streams that resume."""
import gzip
import hashlib

import numpy as np
import pytest
import torch

from lib import data, params


def test_embedded_sets_are_what_the_readme_says():
    x, y, xt, yt = data.embedded("fashion_mnist")
    assert x.shape == (10_000, 28, 28) and xt.shape == (2_000, 28, 28) and x.dtype == np.uint8
    assert np.array_equal(np.bincount(y), [1000] * 10) and np.array_equal(np.bincount(yt), [200] * 10)
    x, y, xt, yt = data.embedded("mnist")
    assert x.shape == (4_000, 28, 28) and np.array_equal(np.bincount(yt), [100] * 10)
    joint = {a.tobytes() for a in x} & {a.tobytes() for a in xt}
    assert not joint, "MNIST training and test images must be disjoint"
    readme = (data.ROOT / "data" / "README.md").read_text()
    assert all(digest in readme for digest in data.EMBEDDED.values())


def test_a_corrupt_or_missing_file_is_named(tmp_path):
    with pytest.raises(data.DataError, match="is missing"):
        data.embedded("mnist", tmp_path)
    (tmp_path / "mnist.npz").write_bytes(b"torn")
    with pytest.raises(data.DataError, match="is corrupt: sha256"):
        data.embedded("mnist", tmp_path)
    with pytest.raises(data.DataError, match="no embedded subset"):
        data.embedded("cifar10")


def _idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def test_the_four_idx_files_of_a_folder(tmp_path, monkeypatch):
    from lib import vision
    g = np.random.default_rng(0)
    arrays = [g.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10,
              g.integers(0, 256, (10, 28, 28), np.uint8), np.arange(10, dtype=np.uint8)]
    names = [name for name, _ in vision.datasets.FashionMNIST.resources]
    for name, array in zip(names, arrays):
        (tmp_path / name).write_bytes(gzip.compress(_idx(array)))
    digests = [(n, hashlib.md5((tmp_path / n).read_bytes()).hexdigest()) for n in names]
    with pytest.raises(data.DataError, match="corrupt or another file"):
        data.full("fashion_mnist", tmp_path)
    monkeypatch.setattr(vision.datasets.FashionMNIST, "resources", digests)
    for got, array in zip(data.full("fashion_mnist", tmp_path), arrays):
        assert np.array_equal(got, array)
    split = data.prepare(params.Data(name="fashion_mnist", source="full", size=32, train=20, holdout=0, folder=str(tmp_path)))
    assert split.x_train.shape == (20, 1, 32, 32)
    (tmp_path / names[3]).unlink()
    with pytest.raises(data.DataError, match="is missing: expected the four"):
        data.full("fashion_mnist", tmp_path)


def test_a_truncated_idx_file():
    with pytest.raises(data.DataError, match="truncated"):
        data.read_idx(_idx(np.zeros((4, 4), np.uint8))[:-1])
    with pytest.raises(data.DataError, match="magic"):
        data.read_idx(b"\x00\x00\x0d\x01")


def test_range_round_trip():
    x = torch.arange(256, dtype=torch.uint8)
    assert data.to_range(x).min() == -1 and data.to_range(x).max() == 1
    assert torch.equal(data.to_bytes(data.to_range(x)), x)
    assert data.to_bytes(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]


def test_resize_averages_blocks():
    x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    x[0, 0, 0, 0] = 200                                 # lands at (2, 2) of 32x32, first of its 2x2 block
    y = data.resize(x, 16)
    assert y.shape == (1, 1, 16, 16) and y[0, 0, 1, 1] == 50 and y.sum() == 50
    with pytest.raises(data.DataError, match="divisor"):
        data.resize(x, 15)


def test_impossible_sizes_are_named():
    with pytest.raises(data.DataError, match="20000 images wanted"):
        data.prepare(params.Data(name="fashion_mnist", size=8, train=20_000))
    with pytest.raises(data.DataError, match="holdout 100 leaves none"):
        data.prepare(params.Data(name="mnist", size=8, train=100, holdout=100))


def test_split_parts_are_disjoint():
    s = data.prepare(params.Data(name="mnist", size=32, train=1000, holdout=200))
    parts = [{a.numpy().tobytes() for a in p} for p in (s.x_train, s.x_hold, s.x_test)]
    assert len(s.x_train) == 800 and len(s.x_hold) == 200
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


AUGMENT = params.Augment(kind="none", noise=0.0)


def test_stream_visits_every_image_once_an_epoch_and_resumes():
    x = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 8, 8)
    s = data.Stream(x, torch.arange(20), 5, AUGMENT, seed=3)
    first = torch.cat([s(i)[1] for i in range(4)])
    assert sorted(first.tolist()) == list(range(20))
    again = data.Stream(x, torch.arange(20), 5, AUGMENT, seed=3)
    assert torch.equal(again(6)[1], s(6)[1]), "a batch depends on (seed, i) alone"
    assert not torch.equal(first, torch.cat([s(i)[1] for i in range(4, 8)]))
    with pytest.raises(data.DataError, match="batch 50"):
        data.Stream(x, torch.arange(20), 50, AUGMENT, seed=3)


def test_input_noise_has_its_sigma(rng):
    x = torch.zeros(40, 1, 32, 32)
    assert abs(data.with_noise(x, 0.03, rng).std().item() - 0.03) < 1e-3
    assert data.with_noise(x, 0.0) is x


def test_crop_flip_moves_by_at_most_the_pad(rng):
    x = torch.zeros(200, 1, 8, 8)
    x[:, :, 4, 4] = 1
    y = data.crop_flip(x, 2, rng)
    assert y.shape == x.shape
    rows, cols = y[:, 0].flatten(1).argmax(1) // 8, y[:, 0].flatten(1).argmax(1) % 8
    assert rows.min() == 2 and rows.max() == 6
    assert cols.min() == 1 and cols.max() == 6            # flipped: column 4 becomes 3, then moves too


# -------------------------------------------------------------------------------------- AT-EBM: ranges, classes, p0
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_bytes_survive_both_ranges(low):
    x = torch.arange(256, dtype=torch.uint8)
    y = data.to_range(x, low)
    assert y.min() == low and y.max() == 1 and torch.equal(data.to_bytes(y, low), x)


def test_one_class_plays_a_data_set():
    whole = data.prepare(params.Data(name="fashion_mnist", size=8, train=None))
    boots = data.prepare(params.Data(name="fashion_mnist", size=8, classes=(9,)))
    assert boots.classes == ("Boot",) and "Fashion-MNIST Boot 8x8 (1,000" in boots.title
    own = {i.numpy().tobytes() for i in whole.x_train[whole.y_train == 9]}
    assert {i.numpy().tobytes() for i in boots.x_train} == own and set(boots.y_train.tolist()) == {0}
    pair = data.prepare(params.Data(name="fashion_mnist", size=8, classes=(8, 0)))
    assert pair.classes == ("Bag", "T-shirt") and set(pair.y_train.tolist()) == {0, 1}
    with pytest.raises(data.DataError, match="expected different numbers from 0 to 9"):
        data.prepare(params.Data(name="fashion_mnist", size=8, classes=(9, 12)))


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_p0_holds_no_image_of_the_data(profile, monkeypatch):
    splits = {role: data.prepare(params.data(profile, role)) for role in ("primary", "second", "faces", "cats", "church")}
    monkeypatch.setattr(data, "load", lambda profile, role="primary": splits[role])
    real = {i.numpy().tobytes() for s in splits if s != "second" for part in ("x_train", "x_hold", "x_test")
            for i in getattr(splits[s], part)}
    runs = [r for r in params.runs() if (c := params.run(r, profile)).start and c.start.kind == "images"]
    assert {"at", "at-p0-noise", "at-p0-narrow", "at-faces", "at-ood"} <= set(runs)
    for run in (params.run(r, profile) for r in runs):
        p0 = data.p0(run)
        assert len(p0) == run.start.images and p0.shape[1:] == splits["primary"].shape and p0.dtype == torch.uint8
        assert not real & {i.numpy().tobytes() for i in p0}, run.name
        assert torch.equal(p0, data.p0(run)), "one seed, one set"
    kinds = {k: len(params.run(k, profile).start.of) for k in ("at-p0-noise", "at-p0-narrow", "at")}
    assert kinds == {"at-p0-noise": 1, "at-p0-narrow": 1, "at": 4}


@pytest.mark.parametrize("of, message", [({"primary": 1.0}, "start.of.primary: the data themselves"),
                                         ({"faces": 1.0}, "start.of.faces: the data themselves"),
                                         ({"third": 1.0}, "start.of.third: no data set of this profile")])
def test_p0_must_be_other_data(of, message, monkeypatch):
    monkeypatch.setattr(data, "load", lambda profile, role="primary": data.prepare(params.data(profile, role)))
    run = params.run("at", "smoke")
    with pytest.raises(data.DataError, match=message):
        data.p0(run.model_copy(update={"start": run.start.model_copy(update={"of": of})}))


def test_p0_shares_add_up():
    with pytest.raises(ValueError, match="add up to 0.9; expected 1"):
        params.Start(kind="images", of={"noise": 0.5, "leaves": 0.4})
    with pytest.raises(ValueError, match="says what p0 is made of"):
        params.Start(kind="images")


def test_image_folders(tmp_path):
    from PIL import Image
    g = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i in range(20):                                          # wide images: the centre is cut out
        image = np.zeros((300, 500, 3), np.uint8)
        image[:, 100:400] = 10 * i
        image[0, 250] = g.integers(0, 255, 3)
        Image.fromarray(image).save(tmp_path / ("a" if i % 2 else ".") / f"{i:02d}.png")
    config = params.Data(name="afhq_cat", source="folder", size=256, folder=str(tmp_path))
    split = data.prepare(config)
    assert split.x_train.shape == (18, 3, 256, 256) and split.x_test.shape == (2, 3, 256, 256) and split.gaussians is None
    assert split.title == "AFHQ-CAT 256x256 (18 training images)" and split.classes == ("cat",)
    flat = split.x_train.flatten(1).float()
    assert (flat.std(1) < 12).all() and set(flat.median(1).values.round().int().tolist()) <= set(range(0, 200, 10))
    (tmp_path / "a" / "99.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match="99.png is no readable image"):
        data.prepare(config)
    with pytest.raises(data.DataError, match="has 0 images: expected the .png or .jpg files of CelebA-HQ"):
        data.prepare(params.Data(name="celeba_hq", source="folder", size=256, folder=str(tmp_path / "none")))
