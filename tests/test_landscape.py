"""Lines, planes and sharpness numbers around the weights, against closed forms and the full Hessian."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.measures import landscape
from lib.parts import networks
from lib.parts.energy import Energy

AT = torch.linspace(-1, 1, 9)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """L = 1/2 theta' A theta + b'theta with theta the entries of a 2 x 3 matrix, in double."""

    def __init__(self, eigenvalues, start: float = 0.0, b=None):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 3), start, dtype=torch.float64))
        q = torch.linalg.qr(torch.randn(6, 6, generator=gen(5), dtype=torch.float64))[0]
        self.A = q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T
        self.b = torch.zeros(6, dtype=torch.float64) if b is None else b

    def loss(self):
        t = self.weight.flatten()
        return 0.5 * t @ self.A @ t + self.b @ t


@pytest.fixture
def classifier():
    """A 2D classifier of 67 parameters in double, its data, and the cross-entropy per point."""
    torch.manual_seed(1)
    model = networks.MLP(2, 3, width=6, depth=2).double()
    x = torch.randn(40, 2, generator=gen(2), dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()
    return model, x, y, lambda x, y: F.cross_entropy(model(x), y, reduction="none")


def full_hessian(model, loss_of):
    """By torch.func: independent of the code under test. loss_of: a network x -> logits gives the scalar."""
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()])
    sizes = [s.numel() for s in shapes]

    def f(flat):
        new = {n: v.view(s) for n, v, s in zip(names, flat.split(sizes), shapes)}
        return loss_of(lambda x: torch.func.functional_call(model, new, (x,)))

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.func.hessian(f)(flat)


# ------------------------------------------------------------------------------------------------- directions
def test_filters_are_as_long_as_the_models_and_the_rest_is_zero(rng):
    model = networks.WideResNet(10, 1, 10, 3, "batch")
    for direction in landscape.directions(model, 2, rng):
        for p, d in zip(model.parameters(), direction, strict=True):
            if p.ndim == 1:
                assert not d.any()
            else:
                assert torch.allclose(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1), rtol=1e-5)
                cosine = F.cosine_similarity(d.flatten(), p.detach().flatten(), dim=0)
                assert abs(cosine) < 4.5 / p.numel() ** 0.5  # random, not the weights themselves


def test_a_seed_is_a_direction_for_every_model_of_an_architecture():
    torch.manual_seed(0)
    one, other = networks.WideResNet(10, 1, 10, 1), networks.WideResNet(10, 1, 10, 1)
    with torch.no_grad():
        other.head.weight *= torch.arange(1, 11)[:, None]  # other norms, other values
    (d, _), (e, _), (f, g) = (landscape.directions(m, 2, gen(s)) for m, s in ((one, 3), (other, 3), (one, 4)))

    def unit(direction):
        return torch.cat([F.normalize(t.flatten(1), dim=1).flatten() for t in direction if t.ndim > 1])

    assert torch.allclose(unit(d), unit(e), atol=1e-6)
    assert not torch.allclose(d[-2], e[-2], rtol=0.1)
    assert abs(unit(d) @ unit(f)) / unit(d).norm() ** 2 < 0.05 and abs(unit(f) @ unit(g)) / unit(f).norm() ** 2 < 0.05


def test_a_rescaled_filter_gives_the_same_landscape():
    """Li et al. Sec. 4: scaling one layer up and the next down leaves a ReLU network, and its picture, unchanged."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x = torch.randn(20, 4, generator=gen(1), dtype=torch.float64)

    def picture():
        return landscape.line(model, lambda: model(x).square().mean(), landscape.directions(model, 1, gen(2))[0], AT)

    before = picture()
    with torch.no_grad():
        model[0].weight *= 10
        model[2].weight /= 10
    assert torch.allclose(picture(), before, rtol=1e-9)
    assert before.max() > 1.5 * before.min()


# ------------------------------------------------------------------------------------------- lines and planes
def test_line_through_a_minimum_is_the_parabola(rng):
    model = Quadratic([4, 3, 2, 1, 0.5, 0.1])
    d = [torch.randn(2, 3, generator=rng, dtype=torch.float64)]
    values, flat = landscape.line(model, model.loss, d, AT), d[0].flatten()
    design = torch.stack([torch.ones_like(AT), AT, AT**2 / 2], 1).double()
    c0, c1, curvature = torch.linalg.lstsq(design, values[:, None]).solution[:, 0]
    assert torch.allclose(curvature, flat @ model.A @ flat) and abs(c0) < 1e-9 and abs(c1) < 1e-9


def test_plane_has_the_cross_term_and_its_axes_in_order(rng):
    model = Quadratic([4, 3, 2, 1, -2, 0.1], start=0.3)
    d1, d2 = ([torch.randn(2, 3, generator=rng, dtype=torch.float64)] for _ in range(2))
    at2 = torch.linspace(-0.5, 0.7, 5)
    values = landscape.plane(model, model.loss, d1, d2, AT, at2)
    t, u, w = (v.detach().flatten() for v in (model.weight, d1[0], d2[0]))
    a, b = AT.double()[:, None], at2.double()[None]
    form = lambda p, q: p @ model.A @ q
    expected = (
        0.5 * form(t, t)
        + a * form(t, u)
        + b * form(t, w)
        + a * b * form(u, w)
        + 0.5 * a**2 * form(u, u)
        + 0.5 * b**2 * form(w, w)
    )
    assert values.shape == (9, 5) and torch.allclose(values, expected)
    assert abs(form(u, w)) > 0.1


def test_weights_and_statistics_come_back_to_the_bit(rng):
    model = networks.WideResNet(10, 1, 10, 1).to(memory_format=torch.channels_last).train()
    d1, d2 = landscape.directions(model, 2, rng)
    before = {k: (v.numpy().tobytes(), v.stride()) for k, v in model.state_dict().items()}
    x, seen = torch.rand(4, 1, 8, 8, generator=rng), []

    def value():
        model(x)  # in training mode: moves the running statistics
        seen.append(model.first.weight.detach().clone())
        return 0.0

    def failing():
        if len(seen) > 3:
            raise RuntimeError("on purpose")
        return value()

    def same():
        return all((v.numpy().tobytes(), v.stride()) == before[k] for k, v in model.state_dict().items())

    landscape.line(model, value, d1, [0.1, 0.2])
    assert not torch.equal(seen[0], seen[1]) and same()
    for run in (lambda: landscape.line(model, failing, d1, AT), lambda: landscape.plane(model, failing, d1, d2, AT, AT)):
        seen.clear()
        with pytest.raises(RuntimeError, match="on purpose"):
            run()
        assert same()


def test_a_direction_of_another_architecture_is_refused(rng):
    d = landscape.directions(networks.MLP(2, 3, width=5), 1, rng)[0]
    model = networks.MLP(2, 3, width=6)
    with pytest.raises(ValueError, match="draw it with directions"):
        landscape.line(model, lambda: 0.0, d, AT)


def test_mean_energy_is_the_mean_and_does_not_depend_on_the_batch(rng):
    torch.manual_seed(0)
    model = networks.WideResNet(10, 1, 10, 1)
    x = torch.rand(23, 1, 8, 8, generator=rng) * 2 - 1
    with torch.no_grad():
        for _ in range(20):
            model(x)  # running statistics that fit, in training mode
        model.eval()
        direct = torch.stack([-model(x[i : i + 1])[0].exp().sum().log() for i in range(23)]).double().mean()
    for batch in (1, 7, 23, 100):
        assert torch.allclose(landscape.mean_energy(Energy(model), x, batch)(), direct, atol=1e-6)
    twice = landscape.mean_energy(Energy(model), torch.cat([x, x]), 10)()
    assert torch.allclose(twice, direct, atol=1e-6)


def test_mean_energy_refuses_what_it_cannot_do():
    model, x = networks.WideResNet(10, 1, 10, 1), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        landscape.mean_energy(Energy(model.train()), x)()
    with pytest.raises(ValueError, match="to_range"):
        landscape.mean_energy(Energy(model), x.byte())
    with pytest.raises(ValueError, match="without labels"):
        landscape.mean_energy(Energy(model, torch.zeros(2, dtype=torch.long)), x)


# ------------------------------------------------------------------------------------------- sharpness numbers
@pytest.mark.parametrize("sign", [1, -1])
def test_eigenvalues_against_the_full_hessian(classifier, sign):
    """sign -1: minus the loss, whose Hessian's eigenvalue of largest magnitude is negative."""
    model, x, y, f = classifier
    truth = torch.linalg.eigvalsh(full_hessian(model, lambda net: sign * F.cross_entropy(net(x), y)))
    terms = landscape.parts(lambda x, y: sign * f(x, y), x, y, batch=7)
    biggest = landscape.largest_eigenvalue(model, terms, 3000, gen(), 1e-6, which="magnitude")
    top = landscape.largest_eigenvalue(model, terms, 3000, gen(), 1e-6)
    wanted = truth[truth.abs().argmax()]
    assert wanted * sign > 0 and truth[-1] > 0  # the case is the one that it claims to be
    assert biggest.value == pytest.approx(wanted.item(), rel=1e-5) and biggest.residual < 1e-5
    assert top.value == pytest.approx(truth[-1].item(), rel=1e-4)
    whole = landscape.largest_eigenvalue(model, lambda: sign * f(x, y).mean(), 3000, gen(), 1e-6)
    assert whole.value == pytest.approx(top.value, rel=1e-6)


@pytest.mark.parametrize(
    "eigenvalues, magnitude, top",
    [([5, 3, 2, 1, 0, -1], 5, 5), ([2, 1, 1, 0, -3, -7], -7, 2), ([-1, -2, -3, -4, -5, -6], -6, -1), ([0] * 6, 0, 0)],
)
def test_eigenvalues_of_a_quadratic(eigenvalues, magnitude, top):
    model = Quadratic(eigenvalues, start=0.2)
    for which, wanted in (("magnitude", magnitude), ("max", top)):
        found = landscape.largest_eigenvalue(model, model.loss, 500, gen(), 1e-6, which)
        assert found.value == pytest.approx(wanted, abs=1e-9)


def test_a_tie_of_signs_shows_in_the_residual_and_max_is_still_right():
    model = Quadratic([4, 1, 0, 0, -1, -4])
    stuck = landscape.largest_eigenvalue(model, model.loss, 300, gen(), 1e-3, "magnitude")
    assert stuck.steps == 300 and stuck.residual > 1
    assert landscape.largest_eigenvalue(model, model.loss, 300, gen(), 1e-3).value == pytest.approx(4, rel=1e-4)


def test_too_few_steps_underestimate(classifier):
    model, x, y, f = classifier
    truth = torch.linalg.eigvalsh(full_hessian(model, lambda net: F.cross_entropy(net(x), y)))[-1].item()
    short = landscape.largest_eigenvalue(model, lambda: f(x, y).mean(), 2, gen())
    assert short.value < 0.999 * truth and short.residual > 0.01 * truth


def test_eigenvalue_in_single_precision_with_a_frozen_parameter(classifier):
    model, x, y, _ = classifier
    model.float().first.requires_grad_(False)
    x = x.float()
    hessian = full_hessian(model, lambda net: F.cross_entropy(net(x), y))
    kept = sum(p.numel() for p in model.first.parameters())  # they come first
    found = landscape.largest_eigenvalue(model, lambda: F.cross_entropy(model(x), y), 500, gen(), 1e-3)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(hessian[kept:, kept:])[-1].item(), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_parts_that_are_linear_or_skip_parameters():
    """3/2 |b|^2 + sum of W on the last layer: the Hessian is 3 on the biases and zero elsewhere."""
    head = (model := networks.MLP(2, 3, width=6).double()).head
    terms = [lambda: 1.5 * head.bias.square().sum(), lambda: head.weight.sum()]
    assert landscape.largest_eigenvalue(model, terms, tol=1e-6).value == pytest.approx(3)
    assert landscape.largest_eigenvalue(model, terms[1]) == (0, 0, 1)
    whole = Quadratic([1] * 6)
    assert landscape.largest_eigenvalue(whole, lambda: 2 * whole.weight.sum()) == (0, 0, 1)
    assert landscape.sharpness(model, terms[1], 0.5) == pytest.approx(0.5 * 18**0.5)  # linear: rho |g|


def test_rise_of_a_quadratic_is_the_closed_form():
    model = Quadratic([5, 3, 2, 1, 0.5, -1], start=0.4, b=torch.arange(6.0, dtype=torch.float64))
    t, before, rho = model.weight.detach().flatten().clone(), model.weight.detach().clone(), 0.2
    g = model.A @ t + model.b
    expected = rho * g.norm() + 0.5 * rho**2 * (g @ model.A @ g) / g.norm() ** 2
    assert landscape.sharpness(model, model.loss, rho) == pytest.approx(expected.item())
    assert landscape.sharpness(model, [model.loss, model.loss], rho) == pytest.approx(2 * expected.item())
    assert torch.equal(model.weight, before) and model.weight.grad is None


def test_errors_name_the_remedy(rng):
    model, flat = networks.MLP(2, 3, width=6), Quadratic([1] * 6)
    energy = landscape.mean_energy(Energy(model.eval()), torch.zeros(4, 2))
    for call, remedy in (
        (lambda: landscape.sharpness(model, energy, 0.1), "parts"),
        (lambda: landscape.largest_eigenvalue(model, energy), "parts"),
        (lambda: landscape.sharpness(flat, flat.loss, 0.1), "largest_eigenvalue"),  # at the minimum
        (lambda: landscape.largest_eigenvalue(flat, flat.loss, which="min"), "'max' or 'magnitude'"),
        (lambda: landscape.largest_eigenvalue(flat, lambda: flat.loss() / 0, 5), "finite"),
        (lambda: landscape.parts(len, torch.zeros(3), torch.zeros(2), batch=2), "equally many"),
    ):
        with pytest.raises(ValueError, match=remedy):
            call()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad_"):
        landscape.sharpness(model, lambda: model(torch.zeros(1, 2)).sum(), 0.1)
