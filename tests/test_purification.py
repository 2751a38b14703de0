"""The defence and its attacks on energies whose chains and gradients are known, and on small networks."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import data
from lib.measures import attacks, purification
from lib.parts import networks
from lib.parts.energy import Energy

CHAIN = {"steps": 3, "alpha": 0.5, "noise": 0.05}
ATTACKS = pytest.mark.parametrize("attack", [purification.bpda, purification.eot])


class Bowl:
    """E(x) = a |x|^2 / 2 beside the linear logits x W: a step multiplies x by 1 - alpha a."""

    def __init__(self, a=0.4, d=6, classes=3):
        self.a, self.w = a, torch.linspace(-1, 1, d * classes, dtype=torch.float64).view(d, classes).sin()

    def __call__(self, x):
        return self.a * x.square().flatten(1).sum(1) / 2

    def logits(self, x):
        return x.flatten(1) @ self.w


class Smooth:
    """A small network and its energy in double precision, for finite differences (lib.parts.energy computes in single)."""

    def __init__(self, d=6):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(d, 16), nn.SiLU(), nn.Linear(16, 3)).double().eval()

    def logits(self, x):
        return self.model(x)

    def __call__(self, x):
        return -3 * self.model(x).logsumexp(1)


@pytest.fixture
def network():
    """WRN-10-1 with batch norm, its statistics those of some noise, as an energy in eval mode."""
    torch.manual_seed(0)
    model = networks.WideResNet(10, 1, 10, 1, "batch")
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(32, 1, 8, 8) * 2 - 1)
        model.head.weight *= 10
    return Energy(model.eval())


@pytest.fixture
def images(rng):
    """20 images inside the range, and labels."""
    return torch.rand(20, 1, 8, 8, generator=rng) * 1.6 - 0.8, torch.arange(20) % 10


@pytest.fixture
def points(rng):
    return torch.rand(8, 6, generator=rng, dtype=torch.float64) - 0.5, torch.arange(8) % 3


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------------------- the defence
def test_a_bowl_s_chain_is_known(points):
    x, _ = points
    end = purification.purify(Bowl(), x, steps=4, alpha=0.5, noise=0)
    assert torch.allclose(end, x * 0.8**4) and not end.requires_grad
    assert purification.purify(Bowl(), x, steps=0, alpha=0.5, noise=1) is x


def test_purification_lowers_the_energy(network, images):
    x, _ = images
    with torch.no_grad():
        levels = [network(purification.purify(network, x, steps=k, alpha=0.1, noise=0)) for k in (0, 1, 5, 20)]
    assert all((b < a).all() for a, b in pairwise(levels))


def test_states_stay_in_the_range(network, images):
    end = purification.purify(network, images[0], steps=3, alpha=1000, noise=1)
    assert end.abs().max() == 1


def test_logits_are_averaged_over_chains():
    """Without a slope a chain is pure noise: the logits scatter by noise |w| sqrt(steps / chains)."""
    E, x = Bowl(a=0), torch.zeros(4000, 6, dtype=torch.float64)
    for chains, steps in ((1, 4), (8, 1), (8, 4)):
        said = purification.defended_logits(
            E, x, chains=chains, steps=steps, alpha=1, noise=0.1, generator=seeded(), clip=None
        )
        assert said.shape == (4000, 3)
        assert torch.allclose(said.std(0), 0.1 * E.w.norm(dim=0) * (steps / chains) ** 0.5, rtol=0.04)
        assert said.mean(0).abs().max() < 0.02


def test_an_image_s_chains_are_averaged_with_each_other(points):
    x, E = points[0], Bowl()
    said = purification.defended_logits(E, x, chains=4, steps=2, alpha=0.5, noise=0, chunk=5)
    assert torch.allclose(said, E.logits(0.8**2 * x))
    copies = purification.purify(E, x.repeat_interleave(4, 0), **CHAIN, generator=seeded())
    said = purification.defended_logits(E, x, chains=4, **CHAIN, generator=seeded())
    assert torch.allclose(said[3], E.logits(copies[12:16]).mean(0))


def test_without_steps_or_noise_there_is_one_answer(network, images):
    x, _ = images
    with torch.no_grad():
        bare = network.logits(x)
    for chains in (1, 3):
        said = purification.defended_logits(network, x, chains=chains, steps=0, alpha=1, noise=1)
        assert torch.allclose(said, bare, atol=1e-5) and not said.requires_grad
    one, many = (purification.defended_logits(network, x, chains=c, steps=3, alpha=0.5, noise=0) for c in (1, 4))
    assert torch.allclose(one, many, atol=1e-4) and not torch.allclose(one, bare, atol=1e-2)


# -------------------------------------------------------------------------------------------------- the attacks
@ATTACKS
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.6)])
def test_one_chain_of_no_steps_is_plain_pgd(network, images, attack, norm, epsilon):
    climbed = attack(network, chains=1, steps=0, alpha=1, noise=1, generator=seeded())
    ours, plain = (
        attacks.pgd(
            network.logits, *images, epsilon=epsilon, norm=norm, steps=5, restarts=2, generator=seeded(2), loss_gradient=g
        )
        for g in (climbed, None)
    )
    assert torch.equal(ours, plain) and not torch.equal(plain, images[0])


def test_bpda_hands_back_the_gradient_at_the_purified_image(network, images):
    x, y = images
    loss, g = purification.bpda(network, chains=1, **CHAIN, generator=seeded())(x, y)
    purified = purification.purify(network, x, **CHAIN, generator=seeded())
    wanted, there = attacks.cross_entropy_gradient(network.logits)(purified, y)
    assert torch.equal(loss, wanted) and torch.equal(g, there)
    assert not torch.allclose(g, attacks.cross_entropy_gradient(network.logits)(x, y)[1], rtol=0.1)


def test_bpda_sums_over_the_chains_of_one_loss(network, images):
    x, y = images
    loss, g = purification.bpda(network, chains=3, **CHAIN, generator=seeded())(x[:1], y[:1])
    purified = purification.purify(network, x[:1].repeat(3, 1, 1, 1), **CHAIN, generator=seeded()).requires_grad_()
    wanted = F.cross_entropy(network.logits(purified).mean(0, keepdim=True), y[:1])
    there = torch.autograd.grad(wanted, purified)[0]
    assert torch.allclose(loss, wanted.detach()) and torch.allclose(g[0], there.sum(0), atol=1e-6)


def test_through_a_bowl_s_chain_the_gradient_shrinks_by_the_chain_s_slope(points):
    """Each of K steps multiplies by 1 - alpha a, which BPDA leaves out."""
    (loss, exact), (same, identity) = (
        attack(Bowl(), chains=2, **CHAIN, generator=seeded())(*points) for attack in (purification.eot, purification.bpda)
    )
    assert torch.allclose(loss, same) and torch.allclose(exact, 0.8**3 * identity)


@pytest.mark.parametrize("chains", [1, 3])
def test_eot_agrees_with_finite_differences(points, chains, rng):
    (x, y), E, h = points, Smooth(), 1e-5

    def climbed(x):
        return purification.eot(E, chains=chains, **CHAIN, generator=seeded())(x, y)

    _, g = climbed(x)
    for _ in range(5):
        v = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        slope = (climbed(x + h * v)[0] - climbed(x - h * v)[0]) / (2 * h)
        assert torch.allclose((g * v).sum(1), slope, rtol=1e-6, atol=1e-9)
    identity = purification.bpda(E, chains=chains, **CHAIN, generator=seeded())(x, y)[1]
    assert not torch.allclose(g, identity, rtol=0.1), "the chain's own slope matters here"


@pytest.mark.parametrize("clip", [None, (-0.3, 0.3)])
def test_eot_walks_the_defence_s_chain(points, clip):
    """Same noise, same states, clipped where the sampler clips: the loss is that of the defended logits."""
    (x, y), E = points, Smooth()
    loss, _ = purification.eot(E, chains=2, **CHAIN, clip=clip, generator=seeded())(x, y)
    said = purification.defended_logits(E, x, chains=2, **CHAIN, clip=clip, generator=seeded())
    torch.testing.assert_close(loss, F.cross_entropy(said, y, reduction="none"), rtol=1e-12, atol=1e-12)  # order of sums


def test_a_clipped_pixel_loses_its_gradient(points):
    """One step without noise takes 0.8 x, clipped at 0.3: pixels beyond 0.375 stop there."""
    g = purification.eot(Bowl(), chains=2, steps=1, alpha=0.5, noise=0, clip=(-0.3, 0.3))(*points)[1]
    assert torch.equal(g == 0, points[0].abs() > 0.375) and (g == 0).any()


@ATTACKS
def test_without_noise_more_chains_change_nothing(points, attack):
    one, many, parts = (
        attack(Smooth(), chains=c, steps=3, alpha=0.5, noise=0, chunk=chunk)(*points)
        for c, chunk in ((1, 500), (4, 500), (4, 1))
    )
    for a, b, c in zip(one, many, parts):
        assert torch.allclose(a, b) and torch.allclose(a, c)


@ATTACKS
def test_attacks_draw_fresh_noise_and_leave_the_weights_alone(network, images, attack):
    climbed = attack(network, chains=2, **CHAIN, generator=seeded())
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in network.model.state_dict().items()}
    (a, g), (b, _) = climbed(*images), climbed(*images)
    assert not torch.equal(a, b) and not a.requires_grad and not g.requires_grad
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in network.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.model.state_dict().items())


# ------------------------------------------------------------------------------------------------ the evaluation
@pytest.fixture
def bytes_and_labels(network, rng):
    """30 images with the labels that the network gives them: the clean accuracy is 1."""
    x = torch.randint(0, 256, (30, 1, 8, 8), generator=rng, dtype=torch.uint8)
    with torch.no_grad():
        return x, network.logits(data.to_range(x)).argmax(1)


def accuracy(network, x, y, epsilons, **changed):
    few = {"attack_chains": 2, "defend_chains": 4, "attack_steps": 4, **CHAIN, **changed}
    return purification.purified_accuracy(
        network, x, y, epsilons, changed.pop("norm", "linf"), **{k: v for k, v in few.items() if k != "norm"}
    )


@pytest.mark.parametrize("attack", purification.ATTACKS)
def test_without_steps_the_defended_model_is_the_bare_one(network, bytes_and_labels, attack):
    network.model.train()  # put in eval mode
    for norm, epsilons in (("linf", [0, 0.02, 0.04]), ("l2", [0, 0.1, 0.2])):
        ours = accuracy(network, *bytes_and_labels, epsilons, attack=attack, norm=norm, steps=0, batch=20, seed=3)
        bare = attacks.robust_accuracy(network.model, *bytes_and_labels, epsilons, norm, 4, "ours", batch=20, seed=3)
        assert ours == pytest.approx(bare) and ours[0] == 1 > ours[2]


@pytest.mark.parametrize("attack", purification.ATTACKS)
def test_a_point_of_the_curve_stands_alone(network, bytes_and_labels, attack):
    many, one = (accuracy(network, *bytes_and_labels, e, attack=attack, alpha=0.01) for e in ([0, 0.02, 0.04], [0.04]))
    assert many[2] == one[0] and many[0] > many[2]
    assert many == accuracy(network, *bytes_and_labels, [0, 0.02, 0.04], attack=attack, alpha=0.01)


def test_attacker_and_defence_draw_different_noise(network, bytes_and_labels, monkeypatch):
    drawn, real = [], purification.purify

    def spy(E, x, **chain):
        drawn.append(chain["generator"].initial_seed() & 0xFFFFFFFF)  # all that mt19937 uses of a seed
        return real(E, x, **chain)

    monkeypatch.setattr(purification, "purify", spy)
    accuracy(network, *bytes_and_labels, [0.02], attack="bpda", batch=15, seed=0)
    assert drawn == [10**6] * 4 + [2 * 10**6] + [10**6 + 1] * 4 + [2 * 10**6 + 1]


# ------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": -1}, "steps -1"),
        ({"alpha": -0.1}, "alpha -0.1"),
        ({"noise": float("nan")}, "noise nan"),
        ({"chains": 0}, "chains 0"),
        ({"chunk": 0}, "chunk 0"),
    ],
)
def test_bad_numbers_are_named(points, wrong, message):
    arguments = {"chains": 1, **CHAIN, **wrong}
    for attack in (purification.bpda, purification.eot):
        with pytest.raises(ValueError, match=message):
            attack(Bowl(), **arguments)
    with pytest.raises(ValueError, match=message):
        purification.defended_logits(Bowl(), points[0], **arguments)
    if not wrong.keys() & {"chains", "chunk"}:
        with pytest.raises(ValueError, match=message):
            purification.purify(Bowl(), points[0], **{**CHAIN, **wrong})


def test_wrong_energies_and_images_are_named(network, images, bytes_and_labels):
    with pytest.raises(ValueError, match=r"E\(x, y\): the defence knows no label"):
        purification.purify(Energy(network.model, images[1]), images[0], **CHAIN)
    for wrong, message in (
        ({"attack": "fgsm"}, "attack 'fgsm': expected one of pgd, bpda, eot"),
        ({"norm": "l1"}, "norm 'l1'"),
        ({"attack_steps": 0}, "steps 0"),
        ({"attack_chains": 0}, "chains 0"),
        ({"defend_chains": 0}, "chains 0"),
    ):
        with pytest.raises(ValueError, match=message):
            accuracy(network, *bytes_and_labels, [0.1], **wrong)
    with pytest.raises(ValueError, match="30 images and 2 labels"):
        accuracy(network, bytes_and_labels[0], bytes_and_labels[1][:2], [0.1])
    with pytest.raises(ValueError, match="epsilon -1"):
        accuracy(network, *bytes_and_labels, [-1])
    network.model.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        purification.purify(network, images[0], **CHAIN)
