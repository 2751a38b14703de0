"""PGD against known optima and against foolbox."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import data, params, sources
from lib.measures import attacks
from lib.parts import attacks as parts


class Linear(nn.Module):
    """Two classes, logits (w.x, -w.x): the loss falls with the margin w.x, so every optimum is known."""

    def __init__(self, d=12):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1.3, d))

    def forward(self, x):
        s = x.flatten(1) @ self.w
        return torch.stack([s, -s], 1)


@pytest.fixture(scope="module")
def mnist():
    return sources.prepare(params.Data(name="mnist", size=8, train=2000, test=300))


@pytest.fixture(scope="module")
def cnn(mnist):
    """A small network with batch norm, trained for a second or two on 8x8 digits: in double precision, so that every
    processor attacks the same network."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ).double()
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = data.to_range(mnist.x_train).double(), mnist.y_train
    for i in range(150):
        rows = torch.arange(i * 64, i * 64 + 64) % len(x)
        opt.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    opt.zero_grad()
    return model.float().eval()


@pytest.fixture
def batch(mnist):
    return data.to_range(mnist.x_test[:100]), mnist.y_test[:100]


def loss(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none").detach()


def distance(a, b, norm):
    return (a - b).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_the_optimum_of_a_linear_model(norm, rng):
    model, x, y = Linear(), torch.rand(20, 1, 3, 4, generator=rng) - 0.5, torch.arange(20) % 2
    # with the default step an L2 chain keeps some (1 + 2.5 / T)^-T = 9 % of its start's sideways part: near the optimum
    x_adv = attacks.pgd(model, x, y, epsilon=0.2, norm=norm, step_size=0.2, generator=rng)
    w = model.w.detach()
    direction = w.sign() if norm == "linf" else w / w.norm()
    best = x + 0.2 * torch.where(y == 0, -1, 1)[:, None, None, None] * direction.view(1, 3, 4)
    assert torch.allclose(loss(model, x_adv, y), loss(model, best, y), rtol=1e-5)
    assert torch.allclose(x_adv, best, atol=1e-5)
    default = attacks.pgd(model, x, y, epsilon=0.2, norm=norm, generator=rng)
    assert torch.allclose(loss(model, default, y), loss(model, best, y), rtol=0.05)


def test_the_linf_optimum_at_the_edge_of_the_range(rng):
    model, x, y = Linear(), 2 * torch.rand(20, 1, 3, 4, generator=rng) - 1, torch.zeros(20, dtype=torch.long)
    x_adv = attacks.pgd(model, x, y, epsilon=0.7, norm="linf", generator=rng)
    best = (x - 0.7 * model.w.detach().sign().view(1, 3, 4)).clamp(-1, 1)
    assert torch.allclose(x_adv, best, atol=1e-6)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.8)])
@pytest.mark.parametrize("step_size", [None, 10.0])
def test_ball_and_range_are_never_left(cnn, batch, norm, epsilon, step_size, rng):
    x, y = batch
    for steps in (1, 2, 5):  # the states that a longer chain passes
        x_adv = attacks.pgd(cnn, x, y, epsilon=epsilon, norm=norm, steps=steps, step_size=step_size, generator=rng)
        assert distance(x_adv, x, norm).max() <= epsilon * (1 + 1e-5) and x_adv.abs().max() <= 1
    assert distance(x_adv, x, norm).max() > 0.9 * epsilon, "the ball is used"


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_random_starts_are_uniform_in_the_ball(norm, rng):
    d = parts.uniform_in_ball(torch.zeros(20_000, 1, 1, 3), 2.0, norm, rng)
    r = distance(d, torch.zeros_like(d), norm) / 2
    assert r.max() <= 1 and abs((r < 0.5).float().mean().item() - 0.5**3) < 0.01
    assert d.mean((0, 1, 2)).abs().max() < 0.03


def test_epsilon_zero_is_the_identity(cnn, batch, mnist):
    x, y = batch
    assert torch.equal(attacks.pgd(cnn, x, y, epsilon=0, norm="l2"), x)
    clean = (cnn(x).argmax(1) == y).float().mean().item()
    assert clean > 0.8
    for by in ("ours", "foolbox"):
        found = attacks.robust_accuracy(cnn, mnist.x_test[:100], y, [0], "linf", 2, by, batch=30)
        assert found == pytest.approx([clean])


@pytest.mark.parametrize("norm, epsilons", [("linf", [0, 0.06, 0.12]), ("l2", [0, 0.4, 0.8])])
def test_foolbox_agrees(cnn, mnist, norm, epsilons):
    ours, theirs = (
        attacks.robust_accuracy(cnn, mnist.x_test, mnist.y_test, epsilons, norm, 20, by) for by in ("ours", "foolbox")
    )
    assert ours[0] == theirs[0] and ours == pytest.approx(theirs, abs=0.03), "9 of 300 images: the random starts differ"
    assert ours[0] > ours[1] + 0.1 > ours[2] + 0.2, "the attack bites"


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.6)])
def test_one_step_without_a_random_start_is_foolbox_s(cnn, mnist, batch, norm, epsilon):
    import foolbox

    x, y = batch
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    _, theirs, _ = kind(rel_stepsize=2.5, steps=1, random_start=False)(
        foolbox.PyTorchModel(cnn, bounds=(-1, 1), device="cpu"), x, y, epsilons=epsilon
    )
    cnn.zero_grad()
    ours = attacks.pgd(cnn, x, y, epsilon=epsilon, norm=norm, steps=1, random_start=False)
    assert torch.allclose(ours, theirs, atol=1e-6)
    a, b = (
        attacks.robust_accuracy(cnn, mnist.x_test, mnist.y_test, [epsilon], norm, 1, by, random_start=False)
        for by in ("ours", "foolbox")
    )
    assert a == b


def test_more_restarts_are_never_weaker(cnn, batch):
    x, y = batch

    def attacked(restarts):
        g = torch.Generator().manual_seed(0)
        return attacks.pgd(cnn, x, y, epsilon=0.1, norm="linf", steps=2, restarts=restarts, generator=g)

    losses = [loss(cnn, attacked(r), y) for r in (1, 2, 4)]
    assert (losses[1] >= losses[0] - 1e-5).all() and losses[2].mean() > losses[1].mean() > losses[0].mean()
    for by in (attacks.own_pgd, attacks.foolbox_pgd):
        once, often = (by(cnn, x, y, [0.1], "linf", 2, restarts=r) for r in (1, 4))
        assert often[0] <= once[0]


def test_a_point_of_the_curve_stands_alone(cnn, batch):
    for by in (attacks.own_pgd, attacks.foolbox_pgd):
        assert by(cnn, *batch, [0.05, 0.1], "l2", 3)[1] == by(cnn, *batch, [0.1], "l2", 3)[0]


def test_the_loss_gradient_can_be_another_s(cnn, batch):
    """The room for EOT and BPDA: whatever the callable climbs is climbed."""
    x, y = batch
    plain = attacks.cross_entropy_gradient(cnn)

    def kind_one(x, y):
        return tuple(-v for v in plain(x, y))

    helped = attacks.pgd(None, x, y, epsilon=0.1, norm="linf", steps=5, restarts=2, loss_gradient=kind_one)
    assert loss(cnn, helped, y).mean() < loss(cnn, x, y).mean()


def test_attacks_leave_weights_and_random_state_alone(cnn, batch):
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in cnn.state_dict().items()}
    cnn.train()
    for by in (attacks.own_pgd, attacks.foolbox_pgd):
        by(cnn, *batch, [0.1], "linf", 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in cnn.parameters())
    assert all(torch.equal(v, state[k]) for k, v in cnn.state_dict().items()), "batch norm was in eval mode"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"norm": "l1"}, "norm 'l1': expected one of linf, l2"),
        ({"epsilon": -0.1}, "epsilon -0.1: expected a radius >= 0"),
        ({"epsilon": float("nan")}, "epsilon nan"),
        ({"steps": 0}, "steps 0"),
        ({"restarts": 0}, "restarts 0"),
    ],
)
def test_bad_arguments_are_named(cnn, batch, wrong, message):
    good = {"epsilon": 0.1, "norm": "linf", "steps": 1, "restarts": 1}
    with pytest.raises(ValueError, match=message):
        attacks.pgd(cnn, *batch, **{**good, **wrong})
    a = {**good, **wrong}
    for by in (attacks.own_pgd, attacks.foolbox_pgd):
        with pytest.raises(ValueError, match=message):
            by(cnn, *batch, [a["epsilon"]], a["norm"], a["steps"], restarts=a["restarts"])


def test_wrong_images_are_named(cnn, mnist, batch):
    x, y = batch
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\]"):
        attacks.pgd(cnn, mnist.x_test[:100], y, epsilon=0.1, norm="linf")
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\]"):
        attacks.foolbox_pgd(cnn, 2 * x, y, [0.1], "linf")
    with pytest.raises(ValueError, match="by 'cleverhans'"):
        attacks.robust_accuracy(cnn, mnist.x_test, mnist.y_test, [0.1], "linf", by="cleverhans")
    with pytest.raises(ValueError, match="300 images and 2 labels"):
        attacks.robust_accuracy(cnn, mnist.x_test, mnist.y_test[:2], [0.1], "linf")
