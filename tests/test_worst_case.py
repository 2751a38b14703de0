"""The worst-case attack against known optima, scipy and plain PGD."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import nn

from lib.measures import attacks, worst_case
from lib.measures.worst_case import adaptive_pgd
from lib.parts import networks

W = torch.linspace(-1, 1.3, 12, dtype=torch.float64)


def linear(x):
    return x.flatten(1) @ W.to(x.dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=20, shape=(3, 2, 2), low=0.0, high=1.0, dtype=torch.float64):
    return torch.rand(n, *shape, generator=seeded(1), dtype=dtype) * (high - low) + low


def length(d, norm):
    return d.flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)


# --------------------------------------------------------------------------------------------------- known optima
@pytest.mark.parametrize("norm, dual", [("l2", 2), ("linf", 1)])
def test_a_linear_score_rises_by_epsilon_times_the_dual_norm(norm, dual):
    x = images() * 0.2 + 0.4  # a ball of 0.3 does not touch the range
    best, s = adaptive_pgd(linear, x, epsilon=0.3, norm=norm, restarts=1, generator=seeded())
    assert torch.allclose(s, linear(x) + 0.3 * W.norm(p=dual), rtol=0, atol=1e-6)
    assert torch.allclose(linear(best), s)


def box_optimum(x, epsilon, low, high):
    """max w.d over |d| <= epsilon and low <= x + d <= high: d = clip(k w), where k makes |d| = epsilon."""
    w, found = W.numpy(), []
    for row in x.flatten(1).numpy():
        d = lambda k: np.clip(k * w, low - row, high - row)
        full = np.linalg.norm(d(1e9))
        k = 1e9 if full <= epsilon else brentq(lambda k: np.linalg.norm(d(k)) - epsilon, 0, 1e9, xtol=1e-14)
        found.append(w @ (row + d(k)))
    return torch.tensor(np.array(found))


@pytest.mark.parametrize("epsilon", [0.8, 1.6, 3.0])  # some pixels at the edge, most, all
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0)])
def test_the_l2_optimum_where_the_range_binds(epsilon, low, high):
    x = images(low=low, high=high)
    _, s = adaptive_pgd(linear, x, epsilon=epsilon, low=low, high=high, restarts=2, generator=seeded())
    expected = box_optimum(x, epsilon, low, high)
    assert torch.allclose(s, expected, rtol=0, atol=1e-4) and (s <= expected + 1e-9).all()
    assert (expected < linear(x) + epsilon * W.norm() - 1e-3).sum() > len(x) / 2, "the range binds"


def test_the_linf_optimum_where_the_range_binds():
    x = images()
    best, _ = adaptive_pgd(linear, x, epsilon=0.7, norm="linf", restarts=1, generator=seeded())
    assert torch.allclose(best.flatten(1), (x.flatten(1) + 0.7 * W.sign()).clamp(0, 1), atol=1e-12)


def test_the_projection_is_scipy_s():
    x, z = images(30, (5,)), images(30, (5,), -2, 3).flip(0)
    x[:10] = x[:10].round()  # images at the edge of the range
    found = worst_case.project(z, x, 0.8, "l2", 0.0, 1.0)
    for a, b, p in zip(x.numpy(), z.numpy(), found.numpy()):
        inside = {"type": "ineq", "fun": lambda v: 0.8**2 - ((v - a) ** 2).sum()}
        best = minimize(
            lambda v: ((v - b) ** 2).sum(),
            a,
            bounds=[(0, 1)] * 5,
            constraints=inside,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        assert np.allclose(p, best.x, atol=1e-5)
    assert torch.equal(worst_case.project(x, x, 0.8, "l2", 0.0, 1.0), x)


def test_a_quadratic_is_climbed_although_the_first_step_is_twice_too_long():
    scale = torch.tensor([1.0, 4.0, 0.5])
    centre = torch.tensor([0.55, 0.48, 0.5])

    def score(x):
        return -(scale * (x - centre) ** 2).sum(1)

    x = torch.full((1, 3), 0.5)
    best, s = adaptive_pgd(score, x, epsilon=0.4, restarts=1, generator=seeded())  # the first step: 0.8
    assert (best - centre).abs().max() < 0.01 and s > -1e-3 * score(x + 0.2).abs()

    def gradient(x, y):
        return worst_case._value_and_gradient(score, x)

    stuck = attacks.pgd(
        None,
        x,
        None,
        epsilon=0.4,
        norm="l2",
        steps=100,
        step_size=0.8,
        low=0,
        high=1,
        generator=seeded(),
        loss_gradient=gradient,
    )
    assert (stuck - centre).norm() > 0.3, "steps that stay as long go from side to side"


def test_step_sizes_halve_where_the_score_stalls(monkeypatch):
    """|x - c| from c: every second step falls. One long rise: none does, and no step is halved."""
    asked = []

    def spy(score):
        return lambda x: asked.append(x.detach().clone()) or score(x)

    x = torch.full((1, 2), 0.5)
    adaptive_pgd(spy(lambda x: -(x - 0.5).norm(dim=1)), x, epsilon=0.4, restarts=1, generator=seeded())
    moves = torch.stack(asked[1:]).diff(dim=0).norm(dim=2)[:, 0]  # asked[0]: the clean image
    assert moves[:20].mean() > 20 * moves[-10:].mean()
    rising = torch.zeros(1, 2)  # every step of 100 rises: steps stay as long
    monkeypatch.setattr(worst_case, "steepest", lambda g, norm: 0.001 * g)
    asked.clear()
    adaptive_pgd(spy(lambda x: x[:, 0]), rising, epsilon=1.0, restarts=1, generator=seeded())
    moves = torch.stack(asked[1:]).diff(dim=0).norm(dim=2)[:, 0]
    assert moves[-1] == pytest.approx(moves[30].item(), rel=0.05)


def test_checkpoints_are_the_paper_s():
    assert worst_case.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert worst_case.checkpoints(1000)[:3] == [220, 410, 570] and worst_case.checkpoints(1) == [1]
    assert all(1 <= k <= n for n in range(1, 40) for k in worst_case.checkpoints(n))


def bumpy(x):
    """A broad hill around (0.8, 0.7) under bumps 0.1 apart: some 40 local maxima."""
    return -4 * ((x - torch.tensor([0.8, 0.7])) ** 2).sum(1) + 0.2 * torch.cos(20 * torch.pi * x).sum(1)


def test_on_a_bumpy_score_it_beats_plain_pgd_of_any_step_size():
    """The mean of 50 chains; of plain PGD's, too, the best step is taken (`seen`). The summit's score is 0.40."""
    x, seen = torch.full((50, 2), 0.4), []  # each chain from its own random point
    ours = adaptive_pgd(bumpy, x, epsilon=0.6, steps=50, restarts=1, generator=seeded())[1]

    def gradient(x, y):
        s, g = worst_case._value_and_gradient(bumpy, x)
        seen.append(s)
        return s, g

    for step_size in (None, 0.1, 0.2, 0.4, 0.8, 1.2):
        seen.clear()
        last = attacks.pgd(
            None,
            x,
            None,
            epsilon=0.6,
            norm="l2",
            steps=50,
            step_size=step_size,
            low=0,
            high=1,
            generator=seeded(),
            loss_gradient=gradient,
        )
        plain = torch.stack([*seen, bumpy(last)]).amax(0)
        assert ours.mean() > plain.mean() + 0.05, step_size
        # chains on such a score are chaotic: which ones lose depends on a processor's last bits
        assert step_size or (ours > plain).float().mean() > 0.9, "with PGD's usual step, chain by chain"
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 501)] * 2)
    summit = bumpy(grid[(grid - 0.4).norm(dim=1) <= 0.6]).max()
    many = adaptive_pgd(bumpy, x[:1], epsilon=0.6, steps=50, restarts=60, generator=seeded())[1]
    assert many == pytest.approx(summit.item(), abs=0.005), "60 restarts find it (20 miss it with one seed of six)"


# ------------------------------------------------------------------------------------------------------ guarantees
@pytest.fixture
def net():
    torch.manual_seed(0)
    return networks.WideResNet(10, 1, 4, 3, "batch")


def test_more_restarts_are_never_weaker(net):
    x, score = images(16, (3, 8, 8), dtype=torch.float32), worst_case.max_p_y(net)
    scores = [score(x).detach()] + [
        adaptive_pgd(score, x, epsilon=1.0, steps=4, restarts=r, generator=seeded())[1] for r in (1, 2, 3, 6)
    ]
    for fewer, more in pairwise(scores):
        assert (more >= fewer).all()
    assert (scores[1] > scores[0]).all() and (scores[-1] > scores[1]).any(), "and some are stronger"


def test_the_clean_image_is_a_candidate():
    x = images(8, (4,))

    def peak(x_):  # highest at the clean images themselves
        return -(x_ - x).abs().sum(1)

    best, s = adaptive_pgd(peak, x, epsilon=0.5, steps=2, generator=seeded())
    assert torch.equal(best, x) and (s == 0).all()


@pytest.mark.parametrize("norm, epsilon", [("l2", 0.5), ("l2", 6.0), ("linf", 0.1)])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_ball_and_range_are_never_left(net, norm, epsilon, low):
    x = images(16, (3, 8, 8), low, dtype=torch.float32)
    for steps in (1, 3, 10):
        best, s = adaptive_pgd(
            worst_case.log_p_x(net), x, epsilon=epsilon, norm=norm, steps=steps, restarts=2, low=low, generator=seeded()
        )
        assert length(best - x, norm).max() <= epsilon * (1 + 1e-5) and best.min() >= low and best.max() <= 1
        assert torch.allclose(worst_case.log_p_x(net)(best), s, atol=1e-4)
    assert length(best - x, norm).max() > 0.9 * epsilon, "the ball is used"


def test_epsilon_zero_gives_the_clean_score(net):
    x = torch.randint(256, (9, 3, 8, 8), generator=seeded(), dtype=torch.uint8)
    for score in (worst_case.log_p_x(net), worst_case.max_p_y(net)):
        for low in (-1.0, 0.0):
            found = worst_case.worst_case_scores(score, x, epsilon=0, low=low, batch=4)
            clean = score(x / 255 * (1 - low) + low).detach().numpy()
            assert found.shape == (9,) and np.allclose(found, clean, atol=1e-5)


def test_a_radius_in_the_unit_range_is_two_in_the_symmetric_one():
    x = torch.randint(256, (9, 3, 2, 2), generator=seeded(), dtype=torch.uint8)
    unit = worst_case.worst_case_scores(linear, x, epsilon=0.3, restarts=1)
    symmetric = worst_case.worst_case_scores(lambda x: linear((x + 1) / 2), x, epsilon=0.6, low=-1.0, restarts=1)
    assert np.allclose(unit, symmetric, atol=1e-4)


def test_detection_falls_under_attack(net):
    from lib.measures.uncertainty import auroc

    a, b = (torch.randint(*r, (40, 3, 8, 8), generator=seeded(), dtype=torch.uint8) for r in ((0, 256), (100, 156)))
    score = worst_case.log_p_x(net)
    clean, attacked = (worst_case.worst_case_scores(score, b, epsilon=e, steps=10, restarts=1) for e in (0, 1.0))
    inside = worst_case.worst_case_scores(score, a, epsilon=0)
    assert (attacked > clean).all() and auroc(inside, attacked) < auroc(inside, clean)


# --------------------------------------------------------------------------------------------------------- scores
class Logits(nn.Module):
    """x (B, C) are the logits themselves."""

    def forward(self, x):
        return x


def test_scores_are_what_they_say(rng):
    f = 3 * torch.randn(20, 4, generator=rng)
    assert torch.allclose(worst_case.log_p_x(Logits())(f), f.logsumexp(1))
    assert torch.equal(worst_case.log_p_x(Logits())(f[:, :1]), f[:, 0]), "AT-EBM: one logit is the score"
    assert torch.allclose(worst_case.max_p_y(Logits())(f).sigmoid(), f.softmax(1).amax(1))


def test_confidence_does_not_saturate():
    f = torch.tensor([[30.0, 0.0, -1.0], [40.0, 0.0, -1.0]])
    assert (f.softmax(1).amax(1) == 1).all() and (f.log_softmax(1).amax(1) == 0).all(), "p and log p tie"
    s, g = worst_case._value_and_gradient(worst_case.max_p_y(Logits()), f)
    assert s[1] == pytest.approx(s[0].item() + 10) and (g[:, 0] == 1).all()


def test_networks_and_random_state_are_left_alone(net):
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    adaptive_pgd(
        worst_case.log_p_x(net.train()), images(4, (3, 8, 8), dtype=torch.float32), epsilon=1.0, steps=2, generator=seeded()
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()), "batch norm was in eval mode"


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"norm": "l1"}, "norm 'l1': expected one of linf, l2"),
        ({"epsilon": -1.0}, "epsilon -1.0: expected a radius"),
        ({"steps": 0}, "steps 0"),
        ({"restarts": 0}, "restarts 0"),
        ({"low": 0.5}, r"floats in \[0.5, 1\]"),
        ({"score": lambda x: x}, r"score of shape \(20, 3, 2, 2\) for 20 images: expected one number each"),
        ({"score": lambda x: linear(x) / 0}, "20 of 20 clean scores are not finite"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        adaptive_pgd(x=images(), **{"score": linear, "epsilon": 0.1, "generator": seeded(), **wrong})


def test_wrong_images_are_named():
    x = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    for bad, settings in ((x.float(), {}), (x[:0], {}), (x, {"batch": 0}), (x, {"low": 1.0})):
        with pytest.raises(ValueError, match="expected uint8 .*at least one image"):
            worst_case.worst_case_scores(linear, bad, epsilon=0.1, **settings)
    with pytest.raises(ValueError, match=r"logits \(2, 1\); expected two classes or more. Use log_p_x"):
        worst_case.max_p_y(Logits())(torch.zeros(2, 1))
