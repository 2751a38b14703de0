"""Samplers against known densities, and PYLD's closed form against its loop."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

from lib.parts import networks, samplers
from lib.parts.energy import Energy
from lib.parts.networks import MLP

A = torch.tensor([[2.0, 0.6], [0.6, 1.0]])  # precision matrix of a 2D Gaussian


def quadratic(x):
    return 0.5 * ((x - 1) @ A * (x - 1)).sum(1)


def test_langevin_moments_of_a_gaussian(rng):
    x = torch.zeros(20_000, 2)
    alpha = 0.05
    x = samplers.last(samplers.sgld(quadratic, x, K=400, alpha=alpha, noise=(2 * alpha) ** 0.5, generator=rng))
    # the unadjusted chain's own covariance: (A (I - alpha A / 2))^-1, which tends to A^-1
    exact = torch.linalg.inv(A @ (torch.eye(2) - alpha * A / 2))
    assert torch.allclose(x.mean(0), torch.ones(2), atol=0.03)
    assert torch.allclose(torch.cov(x.T), exact, atol=0.05)  # five standard errors, var sqrt(2 / n)


def test_descent_without_noise_finds_the_minimum():
    x = samplers.last(samplers.sgld(quadratic, torch.randn(10, 2), K=200, alpha=0.3))
    assert torch.allclose(x, torch.ones(10, 2), atol=1e-4)


def test_proximal_step_is_bounded(wrn):
    E = Energy(wrn.float())
    x = torch.zeros(4, 1, 8, 8)
    with torch.no_grad():
        wrn.head.weight.mul_(1e4)  # a steep energy
    y = samplers.last(samplers.proximal_sgld(E, x, K=1, alpha=0.5, epsilon=0.1))
    assert (y - x).abs().max() <= 0.5 * 0.1 + 1e-7
    free = samplers.last(samplers.sgld(E, x, K=1, alpha=0.5))
    assert (free - x).abs().max() > 0.5 * 0.1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_pyld_closed_form_equals_the_loop_where_the_first_layer_is_linear(wrn, noise):
    with torch.no_grad():
        wrn.head.weight.mul_(30)  # gradients that reach both the clamp and the box
    E, x = Energy(wrn.float()), torch.rand(6, 1, 8, 8) * 2 - 1
    ends = [
        samplers.last(
            samplers.pyld(
                E,
                x,
                M=4,
                N=5,
                alpha=0.2,
                epsilon=1.0,
                noise=noise,
                closed_form=closed,
                generator=torch.Generator().manual_seed(1),
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
    run = dict(M=5, N=5, alpha=0.2, epsilon=1.0, clip=None)
    loop = samplers.last(samplers.pyld(E, x, **run))
    long = samplers.last(samplers.proximal_sgld(E, x, K=5, alpha=1.0, epsilon=1.0, clip=None))
    assert (loop - long).abs().max() > 1e-3


def test_a_start_outside_the_box_takes_the_loop(wrn):
    E, x = Energy(wrn.float()), torch.full((2, 1, 8, 8), 1.5)
    a, b = (samplers.last(samplers.pyld(E, x, M=1, N=3, alpha=0.2, closed_form=c)) for c in (True, False))
    assert torch.equal(a, b)


def test_chains_yield_every_step_and_stay_in_the_box(wrn, rng):
    E = Energy(wrn.float())
    states = list(samplers.proximal_sgld(E, torch.zeros(2, 1, 8, 8), K=7, alpha=1.0, noise=2.0, generator=rng))
    assert len(states) == 7 and all(s.abs().max() <= 1 for s in states)


def test_an_empty_chain_says_so():
    with pytest.raises(ValueError, match="no steps"):
        samplers.last(samplers.sgld(quadratic, torch.zeros(1, 2), K=0, alpha=0.1))


def test_one_generator_seed_one_chain():
    def chain(seed):
        return samplers.last(
            samplers.sgld(
                quadratic, torch.zeros(3, 2), K=5, alpha=0.1, noise=0.5, generator=torch.Generator().manual_seed(seed)
            )
        )

    assert torch.equal(chain(3), chain(3)) and not torch.equal(chain(3), chain(4))


def test_pgd_steps_have_one_length(rng):
    for scale in (1e-6, 1.0, 1e6):  # whatever the energy's scale
        x = torch.randn(50, 2, generator=rng) * 5
        path = [x, *samplers.pgd(lambda v: scale * quadratic(v), x, K=4, alpha=0.1, clip=None)]
        for a, b in zip(path, path[1:]):
            assert torch.allclose((b - a).norm(dim=1), torch.full((50,), 0.1), atol=1e-5)
        assert (quadratic(path[-1]) < quadratic(x)).all()


def test_pgd_stays_in_ball_and_range(rng):
    x = torch.rand(20, 1, 4, 4, generator=rng)
    E = lambda v: -(v.flatten(1) @ torch.linspace(-1, 1, 16))
    for y in samplers.pgd(E, x, K=30, alpha=0.3, radius=0.7):
        assert (y - x).flatten(1).norm(dim=1).max() <= 0.7 + 1e-5 and y.min() >= 0 and y.max() <= 1
    free = samplers.last(samplers.pgd(E, x, K=30, alpha=0.3, radius=0.7, clip=None))
    direction = torch.linspace(-1, 1, 16) / torch.linspace(-1, 1, 16).norm()
    assert torch.allclose((free - x).flatten(1), 0.7 * direction.expand(20, 16), atol=1e-4), "the ball's known optimum"


def test_pgd_climbs_when_told_to(rng):
    x = torch.rand(10, 2, generator=rng)
    up = samplers.last(samplers.pgd(quadratic, x, K=3, alpha=0.1, clip=None, climb=True))
    assert (quadratic(up) > quadratic(x)).all()


def test_pgd_on_a_flat_energy_stays(rng):
    x = torch.rand(3, 2, generator=rng)
    assert torch.equal(samplers.last(samplers.pgd(lambda v: (0 * v).sum(1), x, K=3, alpha=0.1)), x)


def stand_in(monkeypatch, graphed, refuse=False):
    """torch.cuda without a GPU: what runs while capturing leaves no trace, and a replay does it again, from the same
    input, into the same output. `graphed`: the list in which the chain's Graph is found."""

    class CUDAGraph:
        def register_generator_state(self, generator):
            assert generator is graphed[0].generator

        def replay(self):
            graphed[0].end.copy_(graphed[0].chain(graphed[0].start))

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
        return lambda x: samplers.last(samplers.proximal_sgld(E, x, K=3, alpha=1.0, noise=0.1, generator=generator))

    torch.manual_seed(0)
    model = networks.build("wrn", depth=10, widen=1, classes=10, channels=1).train()
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
