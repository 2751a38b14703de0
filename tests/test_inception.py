"""Inception as clean-fid runs it, offline: a small TorchScript network of the same interface stands in for the file."""

import hashlib
import io
import re
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import move_root
from torch import Tensor, nn

from lib import data, evaluate, params, sources, train
from lib.measures import inception, metrics


class Scripted(nn.Module):
    """The published file's interface: `layers` for 299 x 299 in [-1, 1], `output`, and a forward that resizes itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(37), nn.Flatten(), nn.Linear(192, 2048), nn.ReLU())
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False):
        x = F.interpolate(img.to(torch.float32), [299, 299], mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        bias = None if no_output_bias else self.output.bias
        return F.linear(features, self.output.weight, bias).softmax(1)


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_network(folder, monkeypatch):
    """The stand-in, saved under the published file's name, whose checksum it takes over."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / inception.FILE
    torch.jit.script(Scripted().eval()).save(str(path))
    monkeypatch.setattr(inception, "SHA256", checksum(path))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_network(tmp_path, monkeypatch)
    return tmp_path


def images(n=7, channels=3, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("mode", params.INCEPTION)
def test_features_are_clean_fids_own(folder, mode, monkeypatch):
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    monkeypatch.setattr(inception, "BATCH", 3)
    x, resize = images(), build_resizer(mode)
    resized = np.stack([resize(i) for i in x.permute(0, 2, 3, 1).numpy()]).transpose(0, 3, 1, 2)
    theirs = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow")
    features, probabilities = inception.Inception(mode, folder=folder)(x)
    assert features.shape == (7, 2048) and probabilities.shape == (7, 1008)
    assert np.allclose(features, theirs(torch.from_numpy(resized).float()).detach(), atol=1e-5)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)


def test_tensorflows_mode_gives_the_networks_own_probabilities(folder):
    network, x = inception.Inception("legacy_tensorflow", folder=folder), images()
    own = torch.jit.load(folder / inception.FILE)(x, no_output_bias=True).detach()
    assert np.allclose(network(x)[1], own, atol=1e-6) and network.key.startswith("legacy_tensorflow ")


def test_modes_differ_and_grey_is_grey_in_three_colours(folder):
    clean, legacy = (inception.Inception(m, folder=folder) for m in params.INCEPTION)
    grey = images(channels=1)
    assert not np.allclose(clean(grey)[0], legacy(grey)[0], atol=1e-3)
    assert np.array_equal(clean(grey)[0], clean(grey.expand(-1, 3, -1, -1))[0])
    with pytest.raises(ValueError, match="mode 'legacy_pytorch': expected one of clean, legacy_tensorflow"):
        inception.Inception("legacy_pytorch", folder=folder)


def test_the_file_is_downloaded_whole_or_not_at_all(tmp_path, monkeypatch):
    content = write_network(tmp_path / "there", monkeypatch).read_bytes()
    home = tmp_path / "raw"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(content))
    assert inception.weights(home).read_bytes() == content and [f.name for f in home.iterdir()] == [inception.FILE]
    monkeypatch.setattr("urllib.request.urlopen", None)
    assert inception.weights(home) == home / inception.FILE, "there: nothing is fetched"
    inception.weights(home).unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(content[:-1]))
    with pytest.raises(data.DataError, match="is damaged or another file: sha256"):
        inception.weights(home)
    assert not list(home.iterdir()), "no half of it stays"


def test_a_missing_or_damaged_file_says_what_to_do(folder, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("no\n route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    (folder / inception.FILE).write_bytes(b"torn")
    with pytest.raises(data.DataError, match="damaged or another file.*remove it, and it is fetched again, or put the file"):
        inception.Inception("clean", folder=folder)
    (folder / inception.FILE).unlink()
    with pytest.raises(data.DataError) as e:
        inception.Inception("clean", folder=folder)
    assert re.search("is missing and not to be downloaded .*no route.*put the file there, from https", str(e.value))
    assert "empty scales.<profile>.inception" in str(e.value) and "\n" not in str(e.value)


# ------------------------------------------------------------------------------------------- FID and KID of features
def test_fid_of_few_images_is_clean_fids_where_both_work():
    from lib import vision  # noqa: F401  # isort: skip  (clean-fid imports torchvision: see lib/vision.py)
    from cleanfid.fid import fid_from_feats

    g = np.random.default_rng(0)
    a, b = g.normal(size=(60, 30)), g.normal(size=(200, 30)) + 0.3
    real = metrics.Moments(*metrics.moments(b))
    assert metrics.fid(a, real) == pytest.approx(fid_from_feats(a, b), rel=1e-6), "more images than dimensions"
    few = metrics.fid(a[:20], real)  # as many as dimensions or fewer
    assert few == pytest.approx(fid_from_feats(a[:20], b), rel=1e-3) and few > metrics.fid(a, real)
    wide = np.concatenate([a, 1e-9 * g.normal(size=(60, 40))], 1), np.concatenate([b, 1e-9 * g.normal(size=(200, 40))], 1)
    assert metrics.fid(wide[0], metrics.Moments(*metrics.moments(wide[1]))) == pytest.approx(metrics.fid(a, real), rel=1e-6)
    with pytest.raises(ValueError, match="FID of 1 images"):
        metrics.fid(a[:1], real)


def test_kid_is_unbiased_repeats_and_leaves_numpys_numbers_alone():
    g = np.random.default_rng(0)
    a, b, c = g.normal(size=(200, 20)), g.normal(size=(300, 20)), g.normal(size=(300, 20)) + 1
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    same = metrics.kid(a, b)
    assert np.random.random() == expected and metrics.kid(a, b) == same
    assert abs(same) < 0.02 < 0.5 < metrics.kid(a, c)


# ---------------------------------------------------------------------------------------------------- a run measured
@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two smoke runs measured without Inception and with it: name -> (metrics, metrics)."""
    home, found = tmp_path_factory.mktemp("home"), {}
    with pytest.MonkeyPatch.context() as patch:
        move_root(patch, home)
        data.path_of("smoke", "").parent.mkdir(parents=True)
        for role in ("primary", "second"):
            sources.stage("smoke", role)
        for name in ("reference", "softmax", "jempp-m10", "at"):
            train.train(params.run(name, "smoke"), "cpu", home / "artifacts", home / "scratch")
        write_network(home / "data" / "raw", patch)
        plain = params.load()
        scale = {**plain["scales"]["smoke"], "inception": list(params.INCEPTION)}
        asked = {**plain, "scales": {**plain["scales"], "smoke": scale}}
        for name in ("softmax", "jempp-m10", "at"):
            without = evaluate.evaluate(name, "smoke", "cpu")
            with patch.context() as m:
                m.setattr(params, "load", lambda path=None: asked)
                found[name] = without, evaluate.evaluate(name, "smoke", "cpu")
        yield home, found


SECTIONS = {
    "jempp-m10": {"buffer": 100, "confident": 10, "matched": 10, "start": 100, "fresh": 100},
    "at": {"samples": 40, "start": 40},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_protocol_has_its_inception_numbers(measured, name):
    _, with_ = measured[1][name]
    for section, n in SECTIONS[name].items():
        some = section in ("confident", "matched")  # a tenth of each class that is predicted, rounded, at least one;
        if some and section not in with_["mean"]:  # fewer than ten in all are not measured
            continue
        found = with_["mean"][section]
        assert 10 <= found["images"] < 20 if some else found["images"] == n
        assert list(found["inception"]) == list(params.INCEPTION)
        for mode in params.INCEPTION:
            assert set(found["inception"][mode]) == {"fid", "is", "is_sd", "kid"} and found["inception"][mode]["fid"] > 0
    assert with_["inception"] == inception.SHA256
    assert all(list(s["inception"]) == ["clean"] for s in with_["seeds"][0].get("snapshots", [])), "along training: one mode"


@pytest.mark.parametrize("name", ["softmax", *SECTIONS])
def test_without_inception_nothing_else_changes(measured, name):
    def stripped(d):
        if isinstance(d, dict):
            return {k: stripped(v) for k, v in d.items() if k not in ("inception", "fresh", "seconds_per_image")}
        return [stripped(v) for v in d] if isinstance(d, list) else d

    without, with_ = measured[1][name]
    assert "inception" not in str(without) and stripped(with_) == stripped(without)


def test_moments_of_the_data_are_made_once_and_kept(measured, monkeypatch):
    home, _ = measured
    move_root(monkeypatch, home)
    monkeypatch.setattr(inception, "SHA256", checksum(home / "data" / "raw" / inception.FILE))
    split, kept = data.load("smoke"), len(list((home / "scratch").glob("moments-*")))
    network = inception.Inception("clean")
    again = evaluate.moments_of_data(network, split)
    assert len(list((home / "scratch").glob("moments-*"))) == kept == 3, "the reference's, and one of each mode"
    both = torch.cat([split.x_train, split.x_test])
    mean, covariance = metrics.moments(network(both)[0])
    assert np.allclose(again.mean, mean, atol=1e-5) and np.allclose(again.covariance, covariance, atol=1e-5)
    assert len(again.some) == min(params.measures().kid, len(both))


@pytest.mark.parametrize(
    "modes, message",
    [(["cleen"], "['cleen']; expected a list of some of clean, legacy_tensorflow"), ("clean", "'clean'; expected a list")],
)
def test_a_mode_that_is_none(modes, message):
    with pytest.raises(params.ConfigError, match=re.escape(f"scales.smoke.inception: {message}")) as e:
        params.inception("smoke", {"scales": {"smoke": {"inception": modes}}})
    assert "\n" not in str(e.value)


def test_which_profiles_ask_for_it():
    assert {p: params.inception(p) for p in params.PROFILES} == {
        "smoke": (),
        "quick": (),
        "gpu": (),
        "paper": ("clean", "legacy_tensorflow"),
    }
