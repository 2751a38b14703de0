"""The table's columns compose: every start x step x loss x update that is accepted trains, and every setting acts."""

import itertools
import typing
import warnings

import pytest
import torch

from lib import data, params
from lib.parts import augmentations, networks, samplers, schedules, starts, updates
from lib.parts.cell import Cell, classes_of
from lib.parts.losses import Loss
from lib.parts.networks import DiscriminatorCell
from lib.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*batch norm with a uniform start")

STARTS = {
    "none": None,
    "noise": {"kind": "uniform"},
    "Gaussians": {"kind": "gaussians"},
    "other images": {"kind": "images", "of": {"leaves": 1.0}, "images": 60},
    "data": {"kind": "data"},
}
BUFFERS = {"fresh": None, "buffer": {"size": 40, "reinit": 0.3}}
STEPS = {
    "none": None,
    "SGLD": {"kind": "sgld", "K": 2, "alpha": 0.5, "noise": 0.01},
    "proximal": {"kind": "proximal", "K": 2, "alpha": 0.5, "epsilon": 0.5},
    "PYLD": {"kind": "pyld", "M": 2, "N": 2, "alpha": 0.5, "closed_form": False},
    "PGD": {"kind": "pgd", "K": 2, "alpha": 0.3, "radius": 0.5, "real": {"steps": 1}},
    "HMC": {"kind": "hmc", "K": 1, "L": 2, "alpha": 0.01},
    "PGD, growing": {
        "kind": "pgd",
        "K": 2,
        "alpha": 0.3,
        "growth": {"kind": "auc", "threshold": 0.1, "window": 1, "hold": 1},
    },
}
ATTACKED = {"weight": 1.0, "norm": "linf", "radius": 8.0, "steps": 1}
# Every set of terms: 63, the classifiers' and the generators' among them. With a seventh, all sets of at most three.
TERMS = {
    "cross_entropy": 1.0, "contrastive": 1.0, "energy_l2": 0.1, "bce": 1.0, "r1": 0.1, "adversarial_cross_entropy": ATTACKED
}  # fmt: skip
LOSSES = [s for n in range(len(TERMS) + 1) for s in itertools.combinations(TERMS, n) if n <= 3 or len(TERMS) <= 6]
RATE = {"lr": 0.01, "batch": 8, "iterations": 2, "schedule": {"kind": "constant"}}
UPDATES = {
    "SGD": {"optimizer": "sgd", "momentum": 0.9, **RATE},
    "Adam": {"optimizer": "adam", "betas": (0.9, 0.99), **RATE},
    "SAM": {"optimizer": "sgd", "momentum": 0.9, **RATE, "sam": {"rho": 0.05}},
    "ASAM": {"optimizer": "adam", "betas": (0.9, 0.99), **RATE, "sam": {"rho": 0.5, "adaptive": True}},
}
NETWORKS = {
    "batch norm": {"kind": "wrn", "depth": 10, "widen": 1, "norm": "batch"},
    "frozen norm": {"kind": "wrn", "depth": 10, "widen": 1, "norm": "frozen"},
    "no norm, one logit": {"kind": "wrn", "depth": 10, "widen": 1, "norm": "none", "logits": 1},
    "discriminator": {"kind": "discriminator", "width": 8},
}


@pytest.fixture(autouse=True)
def others(monkeypatch):
    images = torch.randint(256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr(data, "p0", lambda run: images)


def configure(start, buffer, step, loss, update, network="batch norm", **more):
    start = STARTS[start] and {**STARTS[start], "buffer": BUFFERS[buffer]}
    cells = {"start": start, "step": STEPS[step], "loss": {t: TERMS[t] for t in loss}, "update": UPDATES[update]}
    base = dict(params.run("softmax", "smoke").but({"precision": "fp32"}))
    return params.Run(**base | cells | {"network": NETWORKS[network], "augment": {"kind": "crop_flip", "pad": 1}} | more)


def refused(*cells, **more):
    """The one line with which a combination is refused, or None."""
    try:
        configure(*cells, **more)
    except ValueError as e:
        return e.errors()[0]["msg"]
    return None


def two_updates(run, split):
    trainer = Trainer(run, split, 0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    for _ in range(2):
        numbers = trainer.step()
        assert all(torch.isfinite(v) for v in numbers.values()), {k: v.item() for k, v in numbers.items()}
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert any(changed), "nothing was learned"
    return numbers


def test_what_is_refused_is_what_cannot_be():
    """Of all cells, those that pass are exactly those whose loss can be computed and uses all that is made."""
    for start, step, loss, network in itertools.product(STARTS, STEPS, LOSSES, NETWORKS):
        terms = Loss(**{t: TERMS[t] for t in loss}).terms.values()
        chain, samples = start != "none", any("samples" in t.needs for t in terms)
        labels = any(t.needs & {"labels", "attacked"} for t in terms)
        sound = (
            chain == (step != "none")
            and chain == samples
            and any(t.drives for t in terms)
            and not (labels and NETWORKS[network].get("logits"))
        )
        says = refused(start, "fresh", step, loss, "SGD", network)
        assert (says is None) == sound, (start, step, loss, network, says)
        assert says is None or ("\n" not in says and len(says) < 250 and any(w in says for w in ("expected", ":", ";")))


def accepted():
    """Every start x buffer x step x loss, with updates and networks in turn, so that each meets each column's others."""
    found, turn = [], itertools.count()
    for start, step, loss in itertools.product(STARTS, STEPS, LOSSES):
        for buffer in BUFFERS if STARTS[start] else ("fresh",):
            if refused(start, buffer, step, loss, "SGD") is None:
                n = next(turn)
                labels = {"cross_entropy", "adversarial_cross_entropy"} & set(loss)
                networks = [k for k, v in NETWORKS.items() if not (labels and v.get("logits"))]
                found.append((start, buffer, step, loss, list(UPDATES)[n % 4], networks[n // 4 % len(networks)]))
    return found


@pytest.mark.parametrize("start", STARTS)
def test_every_accepted_combination_trains(start, split):
    """Two updates of each: finite numbers, named after what they hold, and weights that move."""
    own = [c for c in accepted() if c[0] == start]
    assert len(own) > (5 if start == "none" else 400)
    for combination in own:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = configure(*combination)
            numbers = two_updates(run, split)
        assert set(run.loss.terms) <= set(numbers) and ("travelled" in numbers) == (start != "none"), combination


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_update_of_every_network_trains(network, update, split):
    loss = ("contrastive", "r1") if NETWORKS[network].get("logits") else ("cross_entropy", "contrastive", "r1")
    two_updates(configure("noise", "buffer", "SGLD", loss, update, network), split)


# ----------------------------------------------------------------------------------------------- every setting acts
SAME = {  # settings that must not change the weights, and why
    "name": "a name",
    "title": "a name",
    "profile": "a name",
    "size": "a name: what it stands for is merged in",
    "data": "which images: given to the Trainer",
    "reference": "measures samples, after training",
    "seeds": "which seeds, one after another: given to the Trainer",
    "log_every": "when numbers are read",
    "validate_every": "when numbers are read",
    "checkpoint_every": "when states are kept",
    "rollbacks": "after a divergence only",
    "snapshots": "when states are kept",
    "threads": "how fast, to rounding",
    "compile": "how fast, to rounding",
    "graph": "how fast, on a GPU",
    "initial": "tested in test_at.py",
    "precision": "tested in test_precision.py",
    "range": "tested below: a start in another range",
    "generation": "how samples are made, after training",
    "update.epochs": "or iterations: the same length by another name",
    "step.closed_form": "the same chain, to rounding: tested in test_samplers.py",
    "step.kind": "another cell", "start.kind": "another cell", "network.kind": "another cell",
    "augment.kind": "another cell", "update.optimizer": "another cell", "update.schedule.kind": "another cell",
    "step.growth.kind": "another cell",
    "start.augment.kind": "another cell",
    "network.normalise": "colour images only: tested in test_at.py",
    "augment.fill": "colours: tested in test_data.py", "start.augment.fill": "colours: tested in test_data.py",
}  # fmt: skip
WHOLE = {  # runs that have, between them, every setting
    "JEM++": (
        "jempp-m5",
        {
            "augment": {"kind": "crop_flip", "pad": 1},
            "step": {"kind": "pyld", "M": 2, "N": 3, "alpha": 0.5, "epsilon": 0.02, "noise": 0.01, "clip": True},
            "loss": {k: TERMS[k] for k in ("cross_entropy", "contrastive", "energy_l2", "r1")},
            "update.schedule": {"kind": "step", "warmup": 2, "milestones": (0.3, 0.6), "decay": 0.5},
            "update.sam": {"rho": 0.05, "adaptive": False},
            "branches": "classify",
        },
    ),
    "JEM": (
        "jem",
        {
            "step": {"kind": "sgld", "K": 2, "alpha": 1.0, "noise": 0.01, "clip": True, "growth": {"kind": "linear"}},
            "augment": {"kind": "resized_crop", "share": 0.5, "scale": (0.5, 0.9), "ratio": (0.9, 1.2)},
            "loss": {"adversarial_cross_entropy": ATTACKED, "bce": 1.0},
            "update.weight_decay": 0.1,
            "update.schedule": {"kind": "constant", "warmup": 2},
        },
    ),
    "SADA-JEM": (
        "sada-k5",
        {"step.noise": 0.01, "step.epsilon": 0.01, "update.schedule.warmup": 2, "update.nesterov": False},
    ),
    "AT-EBM": (
        "at",
        {
            "start.augment": {"kind": "autoaugment", "pad": 2, "cutout": 4},
            "step": {
                "kind": "pgd", "K": 2, "alpha": 0.3, "radius": 0.5, "real": {"steps": 1, "radius": 0.2}, "clip": True,
                "growth": {"kind": "auc", "threshold": 0.9, "window": 10, "first": 1},
            },
            "loss": {"bce": 1.0, "r1": 0.1},
            "update.iterations": 30,  # in which that length grows
        },
    ),
    "HMC": ("jem", {"step": {"kind": "hmc", "K": 1, "L": 2, "alpha": 0.01, "clip": True}, "start": {"kind": "data"}}),
}  # fmt: skip


def leaves(cell, prefix=""):
    """(dotted name, value, annotation) of all settings."""
    for name, field in type(cell).model_fields.items():
        value = getattr(cell, name)
        if isinstance(value, Cell):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.annotation


def others_of(value, annotation):
    """Other values that a setting might have, the likeliest first."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value, 0]
    if isinstance(value, float):
        return [value * 2 + 0.013, value / 3, 0.5]
    if isinstance(value, tuple):
        return [tuple(v * 0.7 for v in value), tuple(v * 1.3 for v in value)]
    if isinstance(value, dict):
        return [{"noise": 1.0}]
    literals = [v for v in typing.get_args(annotation) if isinstance(v, str)]
    inner = [v for a in typing.get_args(annotation) for v in typing.get_args(a) if isinstance(v, str)]
    return [v for v in literals + inner if v != value] or [1, 0.4, "linf", (0,)]


def state(run, split):
    """The weights at the end of a run."""
    trainer = Trainer(run, split, 0)
    for _ in range(trainer.iterations):
        trainer.step()
    return torch.cat([v.flatten().float() for v in trainer.model.state_dict().values()])


def p0_of(run):
    g = torch.Generator().manual_seed(len(run.start.of) + run.start.images)
    return torch.randint(256, (run.start.images, 1, 8, 8), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("name", WHOLE)
def test_every_setting_changes_the_weights_or_is_named(name, split, monkeypatch):
    base, changes = WHOLE[name]
    monkeypatch.setattr(data, "p0", p0_of)
    run = params.run(base, "smoke").but({"precision": "fp32", "update.iterations": 8, "input_noise": 0.03}).but(changes)
    before, idle = state(run, split), []
    assert torch.equal(before, state(run, split)), "one seed, one result"
    tried = 0
    for key, value, annotation in leaves(run):
        if key in SAME or key.split(".")[0] in SAME or (value is None and not may_be_given(annotation)):
            continue
        accepted = False
        for other in others_of(value, annotation):
            try:
                changed = run.but({key: other})
            except (ValueError, TypeError):
                continue
            tried, accepted = tried + 1, True
            if not torch.equal(before, padded(state(changed, split), before)):
                break
        else:
            idle += [key] * accepted
    assert not idle, f"settings that are accepted and do nothing: {idle}"
    assert tried > 12


def padded(a, like):
    """Another network's weights are other weights."""
    return a if a.shape == like.shape else torch.full_like(like, torch.nan)


def may_be_given(annotation):
    """A setting left out is tried where it is a value, not a section of its own."""
    return not any(issubclass(a, Cell) for a in classes_of(annotation))


@pytest.mark.parametrize("name", WHOLE)
def test_settings_that_must_not_change_the_weights_do_not(name, split, monkeypatch):
    base, changes = WHOLE[name]
    monkeypatch.setattr(data, "p0", p0_of)
    run = params.run(base, "smoke").but({"precision": "fp32", "update.iterations": 4}).but(changes)
    other = {"title": "another", "log_every": 1, "validate_every": 1, "checkpoint_every": 1, "snapshots": 2, "rollbacks": 1}
    assert torch.equal(state(run, split), state(run.but({**other, "seeds": (0, 1), "reference": "softmax"}), split))


def test_no_setting_is_named_that_no_run_has():
    known = {key for base, changes in WHOLE.values() for key, *_ in leaves(params.run(base, "smoke").but(changes))}
    sections = {key.rsplit(".", 1)[0] for key in known}
    assert not {key for key in SAME if key not in known and key.rsplit(".", 1)[0] not in sections}


def test_the_range_of_images_decides_where_chains_live(split):
    for start, low in itertools.product(("noise", "Gaussians", "other images", "data"), (-1.0, 0.0)):
        run = configure(start, "buffer", "SGLD", ("contrastive",), "SGD", range="unit" if low == 0 else "symmetric")
        images = Trainer(run, split, 0).buffer.images
        assert images.min() >= low and images.max() <= 1 and images.min() < (low + 1) / 2, start


def test_each_term_says_what_it_needs():
    """What the papers' formulas are made of; a new term is tried with all the others as soon as TERMS has it."""
    assert list(Loss.model_fields) == list(TERMS)
    needs = {name: set(term.needs) for name, term in Loss(**TERMS).terms.items()}
    both = {"real", "samples"}
    assert needs == needs | {
        "cross_entropy": {"labels"}, "contrastive": both, "energy_l2": both, "bce": both, "r1": {"real", "curvature"},
        "adversarial_cross_entropy": {"attacked"},
    }  # fmt: skip
    assert {name for name, term in Loss(**TERMS).terms.items() if not term.drives} >= {"energy_l2", "r1"}


@pytest.mark.parametrize(
    "more, says",
    [
        ({"augment": {"kind": "crop_flip", "pad": 8}}, "augment.pad: 8 for images of 8 pixels"),
        ({"augment": {"kind": "crop_flip", "pad": 1, "fill": (0, 0, 0)}}, "augment.fill: .* for images of 1 channels"),
        ({"network.normalise": "cifar10", "range": "unit"}, "normalise: cifar10 for images of 1 channels; expected 3"),
    ],
)
def test_what_does_not_fit_the_images_is_one_clear_line(more, says, split):
    run = params.run("softmax", "smoke").but(more)
    with pytest.raises(params.ConfigError, match=says) as e:
        Trainer(run, split, 0).step()
    assert "\n" not in str(e.value)


def test_a_discriminator_is_of_a_power_of_two(split):
    with pytest.raises(params.ConfigError, match="discriminator for 24 pixels: expected a power of two"):
        DiscriminatorCell(width=8).build(10, 1, 24)


def test_every_cell_stands_in_a_run_whose_settings_are_changed():
    """So that a new cell's settings are tried as well: give it a place in WHOLE."""
    seen = set()
    for base, changes in WHOLE.values():
        todo = [params.run(base, "smoke").but(changes)]
        while todo:
            cell = todo.pop()
            seen.add(type(cell))
            todo += [v for _, v in cell if isinstance(v, Cell)]
    unions = (starts.Starts, samplers.Step, schedules.Rate, schedules.Growth, updates.Update, augmentations.Augmentation)
    cells = {c for union in (*unions, networks.Networks) for c in classes_of(union)}
    terms = {classes_of(f.annotation)[0] for f in Loss.model_fields.values()}
    one_size = {networks.ResNet50Cell}  # which takes seconds: tests/test_at.py
    assert not (cells | terms) - seen - one_size
