"""Samplers against known densities, and PYLD's closed form against its loop."""

import contextlib
import copy
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from lib.parts import networks, samplers, schedules
from lib.parts.energy import Energy
from lib.parts.networks import MLP

A = torch.tensor([[2.0, 0.6], [0.6, 1.0]])  # precision matrix of a 2D Gaussian


def quadratic(x):
    return 0.5 * ((x - 1) @ A * (x - 1)).sum(1)


def test_langevin_moments_of_a_gaussian(rng):
    x = torch.zeros(20_000, 2)
    alpha = 0.05
    x = samplers.last(samplers.SGLD(K=400, alpha=alpha, noise=(2 * alpha) ** 0.5, clip=False)(quadratic, x, rng))
    # the unadjusted chain's own covariance: (A (I - alpha A / 2))^-1, which tends to A^-1
    exact = torch.linalg.inv(A @ (torch.eye(2) - alpha * A / 2))
    assert torch.allclose(x.mean(0), torch.ones(2), atol=0.03)
    assert torch.allclose(torch.cov(x.T), exact, atol=0.05)  # five standard errors, var sqrt(2 / n)


def test_descent_without_noise_finds_the_minimum():
    x = samplers.last(samplers.SGLD(K=200, alpha=0.3, clip=False)(quadratic, torch.randn(10, 2)))
    assert torch.allclose(x, torch.ones(10, 2), atol=1e-4)


def test_proximal_step_is_bounded(wrn):
    E = Energy(wrn.float())
    x = torch.zeros(4, 1, 8, 8)
    with torch.no_grad():
        wrn.head.weight.mul_(1e4)  # a steep energy
    y = samplers.last(samplers.Proximal(K=1, alpha=0.5, epsilon=0.1)(E, x))
    assert (y - x).abs().max() <= 0.5 * 0.1 + 1e-7
    free = samplers.last(samplers.SGLD(K=1, alpha=0.5, clip=False)(E, x))
    assert (free - x).abs().max() > 0.5 * 0.1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_pyld_closed_form_equals_the_loop_where_the_first_layer_is_linear(wrn, noise):
    with torch.no_grad():
        wrn.head.weight.mul_(30)  # gradients that reach both the clamp and the box
    E, x = Energy(wrn.float()), torch.rand(6, 1, 8, 8) * 2 - 1
    ends = [
        samplers.last(
            samplers.PYLD(M=4, N=5, alpha=0.2, epsilon=1.0, noise=noise, closed_form=closed)(
                E, x, torch.Generator().manual_seed(1)
            )
        )
        for closed in (True, False)
    ]
    assert torch.allclose(*ends, atol=1e-5)
    assert (ends[0].abs() == 1).any() and (ends[0].abs() < 1).any()


def test_pyld_is_its_own_sampler_where_the_first_block_is_not():
    torch.manual_seed(0)
    net = MLP(2, 3, 32)
    net.first = nn.Sequential(nn.Linear(2, 32), nn.Tanh())
    with torch.no_grad():
        net.first[0].weight.mul_(5)
        net.head.weight.mul_(20)
    E, x = Energy(net), torch.rand(8, 2)
    loop = samplers.last(samplers.PYLD(M=5, N=5, alpha=0.2, epsilon=1.0, clip=False)(E, x))
    long = samplers.last(samplers.Proximal(K=5, alpha=1.0, epsilon=1.0, clip=False)(E, x))
    assert (loop - long).abs().max() > 1e-3


def test_a_start_outside_the_box_takes_the_loop(wrn):
    E, x = Energy(wrn.float()), torch.full((2, 1, 8, 8), 1.5)
    a, b = (samplers.last(samplers.PYLD(M=1, N=3, alpha=0.2, closed_form=c, epsilon=1.0)(E, x)) for c in (True, False))
    assert torch.equal(a, b)


def test_chains_yield_every_step_and_stay_in_the_box(wrn, rng):
    E = Energy(wrn.float())
    states = list(samplers.Proximal(K=7, alpha=1.0, noise=2.0, epsilon=1.0)(E, torch.zeros(2, 1, 8, 8), rng))
    assert len(states) == 7 and all(s.abs().max() <= 1 for s in states)


def test_an_empty_chain_says_so():
    with pytest.raises(ValueError, match="no steps"):
        samplers.last(samplers.SGLD(K=2, alpha=0.1, clip=False)(quadratic, torch.zeros(1, 2), K=0))


def test_one_generator_seed_one_chain():
    def chain(seed):
        return samplers.last(
            samplers.SGLD(K=5, alpha=0.1, noise=0.5, clip=False)(
                quadratic, torch.zeros(3, 2), torch.Generator().manual_seed(seed)
            )
        )

    assert torch.equal(chain(3), chain(3)) and not torch.equal(chain(3), chain(4))


def test_pgd_steps_have_one_length(rng):
    for scale in (1e-6, 1.0, 1e6):  # whatever the energy's scale
        x = torch.randn(50, 2, generator=rng) * 5
        path = [x, *samplers.PGD(K=4, alpha=0.1, clip=False)(lambda v: scale * quadratic(v), x)]
        for a, b in itertools.pairwise(path):
            assert torch.allclose((b - a).norm(dim=1), torch.full((50,), 0.1), atol=1e-5)
        assert (quadratic(path[-1]) < quadratic(x)).all()


def test_pgd_stays_in_ball_and_range(rng):
    x = torch.rand(20, 1, 4, 4, generator=rng)
    E = lambda v: -(v.flatten(1) @ torch.linspace(-1, 1, 16))
    for y in samplers.PGD(K=30, alpha=0.3, radius=0.7, clip=(0.0, 1.0))(E, x):
        assert (y - x).flatten(1).norm(dim=1).max() <= 0.7 + 1e-5 and y.min() >= 0 and y.max() <= 1
    free = samplers.last(samplers.PGD(K=30, alpha=0.3, radius=0.7, clip=False)(E, x))
    direction = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).norm()
    assert torch.allclose((free - x).flatten(1), 0.7 * direction.expand(20, 16), atol=1e-4), "the ball's known optimum"


def test_real_images_move_up_by_the_same_steps(rng):
    x = torch.rand(10, 2, generator=rng)
    step = samplers.PGD(K=9, alpha=0.1, clip=False, real=samplers.Uphill(steps=3, radius=0.25))
    up = step.uphill(quadratic, x)
    assert (quadratic(up) > quadratic(x)).all() and torch.allclose((up - x).norm(dim=1), torch.full((10,), 0.25), atol=1e-5)
    assert step.but({"real": None}).uphill(quadratic, x) is x and samplers.SGLD(K=1, alpha=1.0).uphill(quadratic, x) is x


def test_hmc_has_the_moments_that_langevin_misses(rng):
    """At a step size at which the unadjusted chain's variance is wrong by a third, HMC's is right."""
    hmc = samplers.HMC(K=60, L=5, alpha=0.5, clip=False)
    x = samplers.last(hmc(quadratic, torch.zeros(20_000, 2), rng))
    exact = torch.linalg.inv(A)
    assert torch.allclose(x.mean(0), torch.ones(2), atol=0.03) and torch.allclose(torch.cov(x.T), exact, atol=0.05)
    alpha = 0.5
    wrong = samplers.last(
        samplers.SGLD(K=60, alpha=alpha, noise=(2 * alpha) ** 0.5, clip=False)(quadratic, torch.zeros(20_000, 2), rng)
    )
    assert (torch.cov(wrong.T) - exact).abs().max() > 0.3


def test_hmc_bounces_off_the_walls_of_its_box(rng):
    flat = lambda v: (0 * v).sum(1)
    states = list(samplers.HMC(K=50, L=3, alpha=0.5, clip=(0.0, 1.0))(flat, torch.full((4000, 2), 0.5), rng))
    assert all(((s >= 0) & (s <= 1)).all() for s in states) and len(states) == 50
    assert abs(states[-1].var(0).mean().item() - 1 / 12) < 5e-3, "uniform in the box"
    tilted = lambda v: 3 * v.sum(1)  # exp(-3 v) between 0 and 1 has mean 1/3 - 1 / (e^3 - 1)
    x = samplers.last(samplers.HMC(K=100, L=4, alpha=0.3, clip=(0.0, 1.0))(tilted, torch.full((8000, 2), 0.5), rng))
    assert abs(x.mean().item() - (1 / 3 - 1 / (math.exp(3) - 1))) < 0.01


def test_a_chain_grows_and_a_sampler_counts_its_passes():
    grown = samplers.PYLD(M=4, N=5, alpha=0.2, growth=schedules.Linear())
    assert (grown.passes, grown.steps, samplers.HMC(K=3, L=4, alpha=0.1).passes) == (4, 4, 15)
    assert [grown.length(10)(i) for i in (0, 1, 2, 9)] == [0, 0, 1, 4] and grown.of_length(7).M == 7
    with pytest.raises(ValueError, match="growth.first: 9 is beyond K: 4; expected at most K"):
        grown.but({"growth": schedules.ByAUC(threshold=0.8, window=2, first=9)})


def test_pgd_on_a_flat_energy_stays(rng):
    x = torch.rand(3, 2, generator=rng)
    assert torch.equal(samplers.last(samplers.PGD(K=3, alpha=0.1, clip=(0.0, 1.0))(lambda v: (0 * v).sum(1), x)), x)


def stand_in(monkeypatch, graphed, refuse=False):
    """torch.cuda without a GPU: what runs while capturing leaves no trace, and a replay does it again, from the same
    input, into the same output. `graphed`: the list in which the chain's Graph is found."""

    class CUDAGraph:
        def register_generator_state(self, generator):
            assert generator is graphed[0].generator

        def replay(self):
            captured = graphed[0].captured
            captured.end.copy_(graphed[0].chain(captured.start))

    @contextlib.contextmanager
    def graph(_, capture_error_mode):
        if refuse:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        g = graphed[0]
        before, drawn = [t.clone() for t in g.state], g.generator.get_state()
        yield
        for t, value in zip(g.state, before):
            t.copy_(value)
        g.generator.set_state(drawn)

    class Stream:
        def wait_stream(self, other):
            pass

    for name, fake in (
        ("CUDAGraph", CUDAGraph),
        ("graph", graph),
        ("Stream", Stream),
        ("current_stream", Stream),
        ("stream", contextlib.nullcontext),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("refuse", [False, True])
def test_a_graph_is_the_chain(refuse, monkeypatch):
    """Three calls, noise and batch norm included; where a capture fails, the same, with one warning."""

    def chain(model, generator):
        E = Energy(model)
        return lambda x: samplers.last(samplers.Proximal(K=3, alpha=1.0, noise=0.1, epsilon=1.0)(E, x, generator))

    torch.manual_seed(0)
    model = networks.WideResNetCell(depth=10, widen=1, norm="batch").build(10, 1).train()
    twin, g, h = copy.deepcopy(model), torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    graphed = [samplers.Graph(chain(model, g), model.buffers(), g)]
    stand_in(monkeypatch, graphed, refuse)
    eager, results = chain(twin, h), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(3):
            x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1
            results.append((graphed[0](x), eager(x)))
    assert all(torch.equal(a, b) for a, b in results) and results[0][0].data_ptr() != results[1][0].data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers())) and torch.equal(
        g.get_state(), h.get_state()
    )
    told = [str(w.message) for w in said if "no CUDA graph" in str(w.message)]
    assert told == (
        ["no CUDA graph (operation not permitted when stream is capturing): the chain runs step by step"] if refuse else []
    )
