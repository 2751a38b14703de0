"""AT-EBM's training: how K grows, what an update does, what it survives, the 256-pixel settings on small files."""

import pytest
import torch
from torch import nn

from lib import data, files, params, sources
from lib.parts import losses, networks
from lib.parts.augmentations import AutoAugment, CropFlip, ResizedCrop, Unchanged
from lib.parts.networks import DiscriminatorCell, ResNet50Cell, WideResNetCell
from lib.parts.samplers import Uphill
from lib.parts.schedules import ByAUC, Constant, Linear
from lib.parts.updates import SGD
from lib.training import Trainer, checkpoint, fit
from lib.training import trainer as trainer_


@pytest.fixture(autouse=True)
def p0(monkeypatch):
    images = torch.randint(256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr(data, "p0", lambda *a: images)


def configure(name="at", **step):
    run = params.run(name, "smoke").but({"update.iterations": 30, "checkpoint_every": 5, "precision": "fp32"})
    return run.but({f"step.{k}": v for k, v in step.items()})


def ks(length, aucs):
    found = []
    for i, auc in enumerate(aucs):
        found.append(length(i))
        length.record(i, torch.tensor(auc))
    return found


def rule(**kw):
    return ByAUC(**{"threshold": 0.8, "window": 20, "hold": None, **kw})


def test_algorithm_2_gives_every_K_as_many_iterations():
    assert ks(Linear().build(4, 100), [0.5] * 100) == [k for k in range(5) for _ in range(20)]


def test_the_code_raises_K_when_D_wins():
    assert ks(rule().build(3, 100), [0.79] * 60) == [0] * 60
    assert ks(rule().build(3, 100), [0.9] * 70) == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 10
    # the mean of the last 20 passes 0.8 once 14 of them are 0.9 (and 6 are 0.6); looked at every tenth iteration
    assert ks(rule().build(3, 100), [0.6] * 20 + [0.9] * 25)[39:41] == [0, 1]


def test_the_code_raises_K_after_a_while_all_the_same():
    assert ks(rule(hold=25).build(2, 100), [0.5] * 60) == [0] * 25 + [1] * 25 + [2] * 10


def test_fixed_K():
    assert set(ks(configure(K=7, growth=None).step.length(50), [1.0] * 50)) == {7}


def test_a_growing_length_resumes():
    aucs, a, b = [0.9] * 33, rule().build(5, 100), rule().build(5, 100)
    ks(a, aucs)
    b.load_state_dict(a.state_dict())
    for p in (a, b):
        for i in range(33, 60):
            p.record(i, torch.tensor(0.9))
    assert a.k == b.k == 3 and a.since == b.since


def test_K_may_begin_later(split):
    run = configure(K=4, growth=rule(window=5, hold=3, first=2))
    trainer = Trainer(run, split, 0)
    assert [trainer.step()["K"].item() for _ in range(8)] == [2, 2, 2, 3, 3, 3, 4, 4]


def test_an_update_moves_p0_down_and_real_images_up(split):
    trainer = Trainer(configure(K=4, alpha=0.3, growth=None, real=Uphill(steps=2, radius=0.2)), split, 0)
    batch = trainer.batch()
    x = batch.real
    assert x.min() >= 0 and x.max() <= 1, "the [0, 1] range"
    before = [p.detach().clone() for p in trainer.model.parameters()]
    star, numbers = trainer.sample(x)
    real = trainer.uphill(batch).real
    assert 0 < (real - x).flatten(1).norm(dim=1).max() <= 0.2 + 1e-5
    assert 0 < numbers["travelled"] <= 4 * 0.3 + 1e-5 and numbers["K"] == 4
    E = trainer.energy
    with torch.no_grad():
        assert E(real).mean() > E(x).mean() and star.min() >= 0 and star.max() <= 1
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.model.parameters()))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_p0_images_are_augmented_as_they_are_drawn(split, monkeypatch):
    monkeypatch.setattr(data, "p0", lambda *a: torch.full((50, 1, 8, 8), 255, dtype=torch.uint8))
    run = configure(K=1, growth=Linear(), real=None)  # K = 0 in the first half
    plain, moved = (Trainer(run.but({"start.augment": a}), split, 0) for a in (None, CropFlip(pad=2, fill=(0,))))
    before = plain.noise.get_state()
    x = plain.stream(0, plain.common)[0]
    star, numbers = plain.sample(x)
    assert star.min() == 1 and torch.equal(plain.noise.get_state(), before), "none draws nothing"
    star, numbers = moved.sample(x)
    assert set(star.unique().tolist()) == {0, 1} and numbers["travelled"] == 0, "the way begins at the augmented image"
    assert not torch.equal(star, moved.sample(x)[0]), "each batch anew"


def test_nesterov_is_passed_on(split):
    weight = torch.nn.Linear(1, 1, bias=False)
    for nesterov in (True, False):
        weight.weight.data.fill_(1.0)
        u = SGD(lr=0.1, batch=1, iterations=1, momentum=0.9, nesterov=nesterov, schedule=Constant())
        u.build(weight).step(lambda: weight.weight.sum().backward())
        # v = g; w -= lr (g + mu v) with Nesterov's, lr v without
        assert weight.weight.item() == pytest.approx(1 - 0.1 * (1.9 if nesterov else 1.0))


@pytest.mark.parametrize("of", ["cifar10", "imagenet"])
def test_normalised_inputs(of):
    from lib.vision import v2

    torch.manual_seed(0)
    plain = DiscriminatorCell(width=8).build(1, 3, 8)
    torch.manual_seed(0)
    model = DiscriminatorCell(width=8, normalise=of).build(1, 3, 8)
    x = torch.rand(4, 3, 8, 8)
    assert torch.allclose(model(x), plain(v2.Normalize(*networks.STATISTICS[of])(x)), atol=1e-6)
    assert torch.equal(model(x), model.rest(model.first(x))) and not list(model.buffers())
    assert [v.shape for v in model.state_dict().values()] == [v.shape for v in plain.state_dict().values()]
    with pytest.raises(ValueError, match=f"normalise: {of} for images of 1 channels; expected 3"):
        DiscriminatorCell(width=8, normalise=of).build(1, 1, 8)


def beginning(path):
    return configure().but({"initial": str(path)})


def test_a_run_begins_from_the_weights_it_names(split, tmp_path):
    run = configure()
    other = Trainer(run, split, 7).model
    files.write_tensors(tmp_path / "weights.pt", other.state_dict())
    began = Trainer(beginning(tmp_path / "weights.pt"), split, 0)
    assert all(torch.equal(a, b) for a, b in zip(began.model.state_dict().values(), other.state_dict().values()))
    # a classifier of ten classes: all but its head
    ten = run.but({"network.logits": 10})
    classifier = Trainer(ten, split, 7).model
    files.write_tensors(tmp_path / "ten.pt", classifier.state_dict())
    own = Trainer(run, split, 0).model.state_dict()
    for key, value in Trainer(beginning(tmp_path / "ten.pt"), split, 0).model.state_dict().items():
        assert torch.equal(value, own[key] if key.startswith("head.") else classifier.state_dict()[key]), key
    Trainer(beginning(tmp_path / "ten.pt"), split, 0).step()


def test_a_relative_path_is_from_the_root(split, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_, "ROOT", tmp_path)
    with pytest.raises(params.ConfigError, match=f"runs.at.initial: {tmp_path}/of/weights.pt is missing: expected"):
        Trainer(beginning("of/weights.pt"), split, 0)


@pytest.mark.parametrize(
    "content, says",
    [
        (lambda model: b"not a file of torch's", r"is damaged \(torn, or another kind of file"),
        (lambda model: {"classes": print}, "is damaged .it asks for code, which was not run"),
        (lambda model: [1, 2], "is of another network: body.0.conv1.bias is missing there"),
        (lambda model: {k: v for k, v in model.items() if k != "first.bias"}, r"first.bias is missing there, \(8,\) here"),
        (lambda model: model | {"last.bias": torch.zeros(3)}, r"last.bias is \(3,\) there, missing here"),
        (
            lambda model: model | {"first.weight": torch.zeros(9, 1, 3, 3)},
            r"first.weight is \(9, 1, 3, 3\) there, \(8, 1, 3, 3\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(split, tmp_path, content, says):
    path, what = tmp_path / "weights.pt", content(Trainer(configure(), split, 0).model.state_dict())
    path.write_bytes(what) if isinstance(what, bytes) else torch.save(what, path)
    with pytest.raises(params.ConfigError, match=says) as e:
        Trainer(beginning(path), split, 0)
    assert str(e.value).startswith(f"runs.at.initial: {path}") and "expected" in str(e.value) and "\n" not in str(e.value)


def test_a_frozen_batch_norm_stays_in_evaluation_mode(split):
    trainer = Trainer(configure().but({"network": WideResNetCell(depth=10, widen=1, norm="frozen", logits=1)}), split, 0)
    for _ in range(2):
        trainer.step()
    norms = [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]
    with networks.batch_statistics(trainer.model):
        assert norms and all(not m.training and int(m.num_batches_tracked) == 0 for m in norms)


AUGMENTED = {
    "none": Unchanged(),
    "autoaugment": AutoAugment(pad=1, fill=(125,), cutout=4),
    "resized_crop": ResizedCrop(share=0.5, scale=(0.5, 1.0)),
}


@pytest.mark.parametrize("how", AUGMENTED)
def test_an_interrupted_run_resumes_to_the_bit(how, split, tmp_path):
    run = configure(growth=rule(window=10, hold=7, first=1))
    run = run.but({"augment": AUGMENTED[how], "start.augment": AUGMENTED[how]})

    def stop(trainer, row):
        if trainer.iteration == 18:
            raise KeyboardInterrupt

    whole = Trainer(run, split, 0)
    fit(whole, tmp_path / "a", tmp_path / "as")
    with pytest.raises(KeyboardInterrupt):
        fit(Trainer(run, split, 0), tmp_path / "b", tmp_path / "bs", on_log=stop)
    assert checkpoint.latest(tmp_path / "bs", "cpu")["iteration"] == 15
    again = Trainer(run, split, 0)
    fit(again, tmp_path / "b", tmp_path / "bs")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    rows = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / d / "curve.csv").read_text(encoding="utf-8").splitlines()]
        for d in "ab"
    ]
    assert rows[0] == rows[1] and rows[0][0] == (
        "iteration,epoch,loss,bce,r1,energy_real,energy_sample,auc,detection_accuracy,travelled,K,grad_norm,lr"
    )
    assert not (tmp_path / "a" / "buffer.pt").exists()


def test_the_ebm_objective_is_another_cell(split):
    a, b = (Trainer(configure(name, growth=None, K=2), split, 0) for name in ("at", "at-ebm"))
    batch, x_minus = a.batch(), torch.rand(16, 1, 8, 8)
    (la, _), (lb, _) = (t.run.loss(t.energy, batch, x_minus) for t in (a, b))
    with torch.no_grad():
        plus, minus = a.energy(batch.real), a.energy(x_minus)
    assert torch.allclose(lb, losses.contrastive(plus, minus)) and la > losses.real_vs_perturbed(plus, minus), "R1 is added"


def test_the_256_pixel_discriminator():
    torch.manual_seed(0)
    model = DiscriminatorCell(width=64).build(1, 3, 256)
    assert 18e6 < networks.parameter_count(model) < 23e6
    widths = [m.conv2.out_channels for m in model.modules() if isinstance(m, networks.DownBlock)]
    assert widths == [128, 256, 512, 512, 512, 512], "StarGAN v2's: doubled up to 512, six blocks down to 4x4"
    x = torch.rand(2, 3, 256, 256)
    assert model(x).shape == (2, 1) and model.features(x).shape == (2, 512)
    with pytest.raises(ValueError, match="discriminator for 24 pixels: expected a power of two"):
        DiscriminatorCell(width=8).build(1, 1, 24)


def test_resnet50_for_small_images():
    model = ResNet50Cell(norm="frozen", logits=1).build(10, 3, 32).eval()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 1)
    assert networks.parameter_count(model) == pytest.approx(23.5e6, rel=0.01)
    assert torch.equal(model(torch.zeros(1, 3, 32, 32)), model.rest(model.first(torch.zeros(1, 3, 32, 32))))


@pytest.mark.parametrize(
    "name, K, r1, steps", [("at-faces", 40, 30, 20), ("at-cats", 25, 100, 14), ("at-church", 25, 100, 17)]
)
def test_the_papers_256_pixel_runs_on_a_small_folder(name, K, r1, steps, tmp_path, monkeypatch):
    """The paper profile's own code path and settings, on generated images: data, p0, two updates, a checkpoint."""
    from PIL import Image

    run = params.run(name, "paper")
    g = torch.Generator().manual_seed(0)
    for i in range(10):
        image = torch.randint(256, (260, 270, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(image.numpy()).save(tmp_path / f"{i}.jpg")
    config = params.data("paper", run.data).model_copy(update={"folder": str(tmp_path)})
    split = sources.prepare(config)
    monkeypatch.setattr(data, "p0", lambda run: split.x_test.expand(6, -1, -1, -1))
    assert split.shape == (3, 256, 256) and run.network.kind == "discriminator" and run.low == 0
    # as its code's README trains, and its generate.py samples
    assert (run.step.K, run.step.alpha, run.loss.r1.weight, run.update.lr, run.update.batch) == (K, 2.0, r1, 5e-5, 40)
    assert (run.generation.steps, run.generation.alpha) == (steps, 8.0)
    small = run.but(
        {
            "update.batch": 2,
            "update.iterations": 2,
            "update.epochs": None,
            "network.width": 8,
            "step.K": 2,
            "step.growth": None,
        }
    )
    trainer = Trainer(small, split, 0)
    m = fit(trainer, tmp_path / "out", tmp_path / "scratch")
    assert m["verdict"] == "finished" and (tmp_path / "out" / "weights.pt").exists()
