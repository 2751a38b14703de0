"""AT-EBM's training: how K grows, what an update does, what it survives, the 256-pixel settings on small files."""
import pytest
import torch
from torch import nn

from lib import checkpoint, data, losses, networks, params, sources, train


@pytest.fixture(scope="module")
def split():
    return sources.prepare(params.data("smoke", "primary"))


@pytest.fixture(autouse=True)
def p0(monkeypatch):
    images = torch.randint(256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr(data, "p0", lambda *a: images)


def configure(name="at", **step):
    run = params.run(name, "smoke")
    u = run.update.model_copy(update={"iterations": 30})
    return run.model_copy(update={"update": u, "checkpoint_every": 5, "precision": "fp32", "step": run.step.model_copy(update=step)})


def ks(progress, aucs):
    found = []
    for i, auc in enumerate(aucs):
        found.append(progress.K(i))
        progress.record(i, torch.tensor(auc))
    return found


def rule(**kw):
    return params.Progress(**{"kind": "auc", "threshold": 0.8, "window": 20, "hold": None, **kw})


def test_algorithm_2_gives_every_K_as_many_iterations():
    step = configure(K=4, progress=rule(kind="linear")).step
    assert ks(train.Progress(step, 100), [0.5] * 100) == [k for k in range(5) for _ in range(20)]


def test_the_code_raises_K_when_D_wins():
    step = configure(K=3, progress=rule()).step
    assert ks(train.Progress(step, 100), [0.79] * 60) == [0] * 60
    assert ks(train.Progress(step, 100), [0.9] * 70) == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 10
    # the mean of the last 20 passes 0.8 once 14 of them are 0.9 (and 6 are 0.6); looked at every tenth iteration
    assert ks(train.Progress(step, 100), [0.6] * 20 + [0.9] * 25)[39:41] == [0, 1]


def test_the_code_raises_K_after_a_while_all_the_same():
    step = configure(K=2, progress=rule(hold=25)).step
    assert ks(train.Progress(step, 100), [0.5] * 60) == [0] * 25 + [1] * 25 + [2] * 10


def test_fixed_K():
    assert set(ks(train.Progress(configure(K=7, progress=None).step, 50), [1.0] * 50)) == {7}


def test_progress_resumes():
    step, aucs = configure(K=5, progress=rule()).step, [0.9] * 33
    a, b = train.Progress(step, 100), train.Progress(step, 100)
    ks(a, aucs)
    b.load_state_dict(a.state_dict())
    for p in (a, b):
        for i in range(33, 60):
            p.record(i, torch.tensor(0.9))
    assert a.k == b.k == 3 and a.since == b.since


def test_auc_of_told_apart():
    real, fake = torch.tensor([-3.0, -1.0, 1.0]), torch.tensor([0.0, 2.0])       # low energy: real
    found = train.told_apart(real, fake)
    assert found["auc"].item() == pytest.approx(5 / 6) and found["accuracy"].item() == pytest.approx((2 / 3 + 1) / 2)
    assert train.told_apart(real, real)["auc"] == 0.5, "ties count half"


def test_an_update_moves_p0_down_and_real_images_up(split):
    trainer = train.Trainer(configure(K=4, alpha=0.3, progress=None, real=params.Downhill(steps=2, radius=0.2)), split, 0)
    x, _ = trainer.stream(0, trainer.noise)
    assert x.min() >= 0 and x.max() <= 1, "the [0, 1] range"
    before = [p.detach().clone() for p in trainer.model.parameters()]
    real, star, numbers = trainer.perturb(x)
    assert 0 < (real - x).flatten(1).norm(dim=1).max() <= 0.2 + 1e-5
    assert 0 < numbers["travelled"] <= 4 * 0.3 + 1e-5 and numbers["K"] == 4
    E = trainer.energy
    with torch.no_grad():
        assert E(real).mean() > E(x).mean() and star.min() >= 0 and star.max() <= 1
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.model.parameters()))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_batch_norm_stays_in_evaluation_mode(split):
    run = configure()
    run = run.model_copy(update={"network": params.Network(kind="wrn", logits=1)})
    trainer = train.Trainer(run, split, 0)
    for _ in range(2):
        trainer.step()
    norms = [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(not m.training and int(m.num_batches_tracked) == 0 for m in norms)


def test_an_interrupted_run_resumes_to_the_bit(split, tmp_path):
    run = configure(progress=rule(window=10, hold=7))

    def stop(trainer, row):
        if trainer.iteration == 18:
            raise KeyboardInterrupt
    whole = train.Trainer(run, split, 0)
    train.fit(whole, tmp_path / "a", tmp_path / "as")
    with pytest.raises(KeyboardInterrupt):
        train.fit(train.Trainer(run, split, 0), tmp_path / "b", tmp_path / "bs", on_log=stop)
    assert checkpoint.latest(tmp_path / "bs", "cpu")["iteration"] == 15
    again = train.Trainer(run, split, 0)
    train.fit(again, tmp_path / "b", tmp_path / "bs")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    rows = [[line.rsplit(",", 1)[0] for line in (tmp_path / d / "curve.csv").read_text().splitlines()] for d in "ab"]
    assert rows[0] == rows[1] and rows[0][0].endswith("K,auc,travelled")
    assert not (tmp_path / "a" / "buffer.pt").exists()


def test_the_ebm_objective_is_another_cell(split):
    a, b = (train.Trainer(configure(name, progress=None, K=2), split, 0) for name in ("at", "at-ebm"))
    x, _ = a.stream(0, a.noise)
    e = torch.linspace(-1, 1, len(x))
    (la, _), (lb, _) = (t.unlabelled_loss(x.clone(), e) for t in (a, b))
    with torch.no_grad():
        plus = a.energy(x)
    assert torch.allclose(lb, losses.contrastive(plus, e)) and la > losses.real_vs_perturbed(plus, e), "R1 is added"


def test_the_256_pixel_discriminator():
    torch.manual_seed(0)
    model = networks.build("discriminator", classes=1, channels=3, size=256, width=64)
    assert 18e6 < networks.parameter_count(model) < 23e6
    widths = [m.conv2.out_channels for m in model.modules() if isinstance(m, networks.DownBlock)]
    assert widths == [128, 256, 512, 512, 512, 512], "StarGAN v2's: doubled up to 512, six blocks down to 4x4"
    x = torch.rand(2, 3, 256, 256)
    assert model(x).shape == (2, 1) and model.features(x).shape == (2, 512)
    with pytest.raises(ValueError, match="discriminator for 24 pixels: expected a power of two"):
        networks.build("discriminator", classes=1, channels=1, size=24)


def test_resnet50_for_small_images():
    model = networks.build("resnet50", classes=10, channels=3, size=32, logits=1).eval()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 1)
    assert networks.parameter_count(model) == pytest.approx(23.5e6, rel=0.01)
    assert torch.equal(model(torch.zeros(1, 3, 32, 32)), model.rest(model.first(torch.zeros(1, 3, 32, 32))))


@pytest.mark.parametrize("name, K, r1, steps", [("at-faces", 40, 30, 20), ("at-cats", 25, 100, 14), ("at-church", 25, 100, 17)])
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
    assert (run.step.K, run.step.alpha, run.loss.r1, run.update.lr, run.update.batch) == (K, 2.0, r1, 5e-5, 40)
    assert (run.generation.steps, run.generation.alpha) == (steps, 8.0)
    small = run.model_copy(update={"update": run.update.model_copy(update={"batch": 2, "iterations": 2, "epochs": None}),
                                   "network": run.network.model_copy(update={"width": 8}),
                                   "step": run.step.model_copy(update={"K": 2, "progress": None})})
    trainer = train.Trainer(small, split, 0)
    m = train.fit(trainer, tmp_path / "out", tmp_path / "scratch")
    assert m["verdict"] == "finished" and (tmp_path / "out" / "weights.pt").exists()
