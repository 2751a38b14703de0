"""Prepared data: ranges, augmentation, streams that resume, p0."""

import pytest
import torch

from lib import data, params, sources
from lib.parts import augmentations
from lib.parts.augmentations import AutoAugment, CropFlip, ResizedCrop, Unchanged
from lib.parts.starts import OtherImages


def test_every_data_set_has_a_title_and_classes():
    names = set(params.Data.model_fields["name"].annotation.__args__)
    assert names == data.TITLES.keys() == data.CLASSES.keys()


def test_range_round_trip():
    x = torch.arange(256, dtype=torch.uint8)
    assert data.to_range(x).min() == -1 and data.to_range(x).max() == 1
    assert torch.equal(data.to_bytes(data.to_range(x)), x)
    assert data.to_bytes(torch.tensor([-5.0, 5.0])).tolist() == [0, 255]


def test_stream_visits_every_image_once_an_epoch_and_resumes():
    x = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 8, 8)
    s = data.Stream(x, torch.arange(20), 5, seed=3)
    first = torch.cat([s(i)[1] for i in range(4)])
    assert sorted(first.tolist()) == list(range(20))
    again = data.Stream(x, torch.arange(20), 5, seed=3)
    assert torch.equal(again(6)[1], s(6)[1]), "a batch depends only on (seed, i)"
    assert not torch.equal(first, torch.cat([s(i)[1] for i in range(4, 8)]))
    with pytest.raises(data.DataError, match="batch 50"):
        data.Stream(x, torch.arange(20), 50, seed=3)


def test_input_noise_has_its_sigma(rng):
    x = torch.zeros(40, 1, 32, 32)
    assert abs(data.with_noise(x, 0.03, rng).std().item() - 0.03) < 1e-3
    assert data.with_noise(x, 0.0) is x


def test_crop_flip_moves_by_at_most_the_pad(rng):
    x = torch.zeros(200, 1, 8, 8)
    x[:, :, 4, 4] = 1
    y = augmentations.crop_flip(x, 2, rng)
    assert y.shape == x.shape
    rows, cols = y[:, 0].flatten(1).argmax(1) // 8, y[:, 0].flatten(1).argmax(1) % 8
    assert rows.min() == 2 and rows.max() == 6
    assert cols.min() == 1 and cols.max() == 6  # flipped: column 4 becomes 3, then moves too


def test_a_margin_has_the_colour_asked_for():
    x, colour = torch.full((300, 3, 8, 8), 0.5), torch.tensor([0.0, 1.0, 0.25])
    y = augmentations.crop_flip(x, 2, torch.Generator().manual_seed(0), colour)
    margin = (y != 0.5).any(1)  # (B, H, W)
    assert torch.equal(y.permute(0, 2, 3, 1)[margin], colour.expand(int(margin.sum()), 3))
    rows = margin.all(2).sum(1)  # |offset|: uniform on -2 .. 2
    assert set(rows.tolist()) == {0, 1, 2} and abs(rows.float().mean() - 6 / 5) < 0.15
    how = CropFlip(pad=2, fill=(0, 0, 0))
    assert how(x, torch.Generator().manual_seed(0), low=0.0).amin(1).unique().tolist() == [0, 0.5]
    with pytest.raises(params.ConfigError, match=r"fill: \[0\] for images of 3 channels: expected as many"):
        how.but({"fill": (0,)})(x)


AUTO = AutoAugment(pad=2, fill=(125, 122, 113), cutout=4)
CUT = ResizedCrop(scale=(0.2, 0.3), ratio=(0.9, 1.1))
AS_IS = ResizedCrop(share=0.0)


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("how", [AUTO, CUT, AS_IS, CropFlip(pad=4, fill=(0, 0, 0))])
def test_augmentation_is_the_generators_alone(how, low):
    x = data.to_range(
        torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8), low
    )
    g, before, kept = torch.Generator().manual_seed(3), torch.get_rng_state(), x.clone()
    y = how(x, g, low)
    torch.randn(3)
    again = torch.Generator().manual_seed(3)
    assert torch.equal(y, how(x, again, low)) and torch.equal(g.get_state(), again.get_state())
    assert not torch.equal(y, how(x, g, low)), "the next batch is changed otherwise"
    assert torch.equal(x, kept) and y.shape == x.shape and y.min() >= low and y.max() <= 1
    torch.set_rng_state(before)
    how(x, g, low)
    assert torch.equal(torch.get_rng_state(), before), "torch's global stream goes on as if nothing was"


def test_no_augmentation_draws_nothing():
    x, g = torch.rand(2, 1, 8, 8), torch.Generator().manual_seed(0)
    assert Unchanged()(x, g) is x
    assert torch.equal(g.get_state(), torch.Generator().manual_seed(0).get_state())


def test_a_resized_crop_is_a_part_of_the_image(rng):
    """A ramp from left to right: a part of it, scaled up, spans less."""
    x = torch.linspace(0, 1, 32).repeat(200, 1, 32, 1)
    exact = data.to_range(data.to_bytes(x, 0), 0)

    def spans(**how):
        y = ResizedCrop(**how)(x, rng, low=0.0)
        return y, y[:, 0, 0].amax(1) - y[:, 0, 0].amin(1)

    y, span = spans(share=0.0)
    mirrored = (y == exact.flip(3)).flatten(1).all(1)
    assert ((y == exact).flatten(1).all(1) | mirrored).all() and abs(mirrored.float().mean() - 0.5) < 0.12
    y, span = spans(scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert (span - 15 / 31).abs().max() < 0.05 and len(y[:, 0, 0, 0].unique()) > 15, "half as wide, anywhere"
    y, span = spans(scale=(0.25, 0.25), ratio=(1.0, 1.0), share=0.5)
    assert abs((span < 0.6).float().mean() - 0.5) < 0.12, "half of the images"


def test_autoaugment_changes_each_image_by_itself():
    one = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(40, -1, -1, -1)
    y = augmentations.one_by_one(one, AUTO.transform(), torch.Generator().manual_seed(0), low=0.0)
    kinds = {image.numpy().tobytes() for image in y}
    assert len(kinds) > 15 and (y == data.to_range(data.to_bytes(one, 0), 0)).flatten(1).all(1).any(), "some stay"


def test_cutout_is_a_square_with_its_centre_in_the_image(rng):
    holes = augmentations.cutout(torch.ones(2000, 3, 16, 16), 6, rng, low=0.0) == 0
    assert torch.equal(holes.all(1), holes.any(1)), "in every channel"
    sizes = torch.stack([holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)])
    assert torch.equal(sizes[0] * sizes[1], holes[:, 0].sum((1, 2))), "a rectangle"
    assert sizes.min() == 3 and sizes.max() == 6
    # centres at 0 .. 15: cut short by 3, 2, 1 at the one end and by 1, 2 at the other
    assert abs(sizes.float().mean() - (6 - 9 / 16)) < 0.06
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(augmentations.cutout(x, 0, rng), x)


# -------------------------------------------------------------------------------------- AT-EBM: ranges, classes, p0
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_bytes_survive_both_ranges(low):
    x = torch.arange(256, dtype=torch.uint8)
    y = data.to_range(x, low)
    assert y.min() == low and y.max() == 1 and torch.equal(data.to_bytes(y, low), x)


def test_one_class_plays_a_data_set():
    whole = sources.prepare(params.Data(name="fashion_mnist", size=8, train=None))
    boots = sources.prepare(params.Data(name="fashion_mnist", size=8, classes=(9,)))
    assert boots.classes == ("Boot",) and "Fashion-MNIST Boot 8x8 (1,000" in boots.title
    own = {i.numpy().tobytes() for i in whole.x_train[whole.y_train == 9]}
    assert {i.numpy().tobytes() for i in boots.x_train} == own and set(boots.y_train.tolist()) == {0}
    pair = sources.prepare(params.Data(name="fashion_mnist", size=8, classes=(8, 0)))
    assert pair.classes == ("Bag", "T-shirt") and set(pair.y_train.tolist()) == {0, 1}
    with pytest.raises(data.DataError, match="expected different numbers from 0 to 9"):
        sources.prepare(params.Data(name="fashion_mnist", size=8, classes=(9, 12)))


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_p0_holds_no_image_of_the_data(profile, monkeypatch):
    splits = {role: sources.prepare(params.data(profile, role)) for role in ("primary", "second", "faces", "cats", "church")}
    monkeypatch.setattr(data, "load", lambda profile, role="primary": splits[role])
    real = {
        i.numpy().tobytes()
        for s in splits
        if s != "second"
        for part in ("x_train", "x_hold", "x_test")
        for i in getattr(splits[s], part)
    }
    runs = [r for r in params.runs() if (c := params.run(r, profile)).start and c.start.kind == "images"]
    assert {"at", "at-p0-noise", "at-p0-narrow", "at-faces", "at-ood"} <= set(runs)
    for run in (params.run(r, profile) for r in runs):
        p0 = data.p0(run)
        assert len(p0) == run.start.images and p0.shape[1:] == splits["primary"].shape and p0.dtype == torch.uint8
        assert not real & {i.numpy().tobytes() for i in p0}, run.name
        assert torch.equal(p0, data.p0(run)), "one seed, one set"
    kinds = {k: len(params.run(k, profile).start.of) for k in ("at-p0-noise", "at-p0-narrow", "at")}
    assert kinds == {"at-p0-noise": 1, "at-p0-narrow": 1, "at": 4}


@pytest.mark.parametrize(
    "of, message",
    [
        ({"primary": 1.0}, "start.of.primary: the data themselves"),
        ({"faces": 1.0}, "start.of.faces: the data themselves"),
        ({"third": 1.0}, "start.of.third: no data set of this profile"),
    ],
)
def test_p0_must_be_other_data(of, message, monkeypatch):
    monkeypatch.setattr(data, "load", lambda profile, role="primary": sources.prepare(params.data(profile, role)))
    run = params.run("at", "smoke")
    with pytest.raises(data.DataError, match=message):
        data.p0(run.but({"start.of": of}))


def test_p0_shares_add_up():
    with pytest.raises(ValueError, match="add up to 0.9; expected 1"):
        OtherImages(images=10, of={"noise": 0.5, "leaves": 0.4})
    with pytest.raises(ValueError, match="of\n.*Field required"):
        OtherImages(images=10)


# ---------------------------------------------------------------------------------------------------- prepared files
@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The smoke profile's primary data in a folder of their own: their file."""
    monkeypatch.setattr(data, "ROOT", tmp_path)
    sources.stage("smoke", "primary")
    return data.path_of("smoke", "primary")


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda b: b[: len(b) // 2], "is damaged .torn"),
        (lambda b: b"", "is damaged .empty"),
        (lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:], "is damaged .its own checksums do not hold"),
    ],
)
def test_damaged_data_are_one_line(prepared, damage, says):
    assert len(data.load("smoke").x_train) == 160
    prepared.write_bytes(damage(prepared.read_bytes()))
    with pytest.raises(
        data.DataError, match=f"primary.pt {says}.*: run `dvc repro data` .or python -m lib.sources --prof"
    ) as e:
        data.load("smoke")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("y_hold"), "holds no prepared data of this version"),
        (lambda s: s.update(more=1), "holds no prepared data of this version"),
        (lambda s: s.update(x_test=s["x_test"].float()), "holds no prepared data of this version"),
        (lambda s: s.update(y_train=s["y_train"][1:]), "holds no prepared data of this version"),
        (lambda s: s.update(gaussians={"mu": 1}), "holds no prepared data of this version"),
        (lambda s: s.update(name="mnist"), r"holds MNIST 8x8 .* images.; params.yaml has fashion_mnist at 8 pixels"),
        (lambda s: s.update(only=(9,)), r"holds Fashion-MNIST Boot 8x8 .*; params.yaml has fashion_mnist at 8 pixels"),
        (
            lambda s: s.update({k: s[k].repeat(1, 1, 2, 2) for k in s if k[0] == "x"}),
            "holds Fashion-MNIST 16x16 .* 8 pixels",
        ),
    ],
)
def test_data_of_another_version_or_set_are_one_line(prepared, change, says):
    state = torch.load(prepared, weights_only=True)
    change(state)
    torch.save(state, prepared)
    with pytest.raises(data.DataError, match=f"primary.pt {says}: run `dvc repro data`") as e:
        data.load("smoke")
    assert "\n" not in str(e.value)


def test_a_full_disk_leaves_the_data_that_were_there(prepared, monkeypatch):
    before, split = prepared.read_bytes(), data.load("smoke")

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="primary.pt could not be written .No space left on device.; what was there"):
        data.save(split, prepared)
    assert prepared.read_bytes() == before and [p.name for p in prepared.parent.iterdir()] == ["primary.pt"]
