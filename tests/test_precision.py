"""bf16 and torch.compile change what comes out by no more than another seed does; a rate too small to learn at, by more."""
import numpy as np
import pytest
import torch
from conftest import COMPILER
from scipy import stats

from lib import data, metrics, params, sources, train

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def found():
    """(accuracy, Frechet distance of the buffer's pixels to the data's) per seed: JEM++ (M=5) on MNIST at 8x8."""
    split = sources.prepare(params.Data(name="mnist", size=8, train=2000, test=1000, holdout=100))
    real = metrics.moments(pixels(split.x_train))
    run = params.run("precision-fp32", "smoke")
    update = run.update.model_copy(update={"batch": 64, "iterations": 150, "lr": 0.02, "milestones": (0.6, 0.9)})
    run = run.model_copy(update={"update": update, "start": run.start.model_copy(update={"buffer": 500}),
                                 "step": run.step.model_copy(update={"M": 2})})
    variants = {"fp32": run, "bf16": run.model_copy(update={"precision": "bf16"}),
                "compiled": run.model_copy(update={"precision": "bf16", "compile": True}),
                "slow": run.model_copy(update={"update": update.model_copy(update={"lr": update.lr / 1000})})}
    return {name: np.array([outcome(v, split, real, seed) for seed in SEEDS]) for name, v in variants.items()}


def pixels(x):
    """Means of 2x2 pixels: the corners' own never change."""
    return torch.nn.functional.avg_pool2d(x.double(), 2).flatten(1).numpy() / 255


def outcome(run, split, real, seed):
    trainer = train.Trainer(run, split, seed)
    for _ in range(run.update.iterations):
        trainer.step()
    logits = metrics.logits_of(trainer.model, split.x_test, run.augment.noise)
    return metrics.accuracy(logits, split.y_test), metrics.frechet(metrics.moments(pixels(data.to_bytes(trainer.buffer.images))), real)


def p_value(a, b):
    """Student's t over seeds."""
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return 2 * stats.t.sf(abs(a.mean() - b.mean()) / error, 2 * len(a) - 2)


@pytest.mark.parametrize("fast", ["bf16", "compiled"])
@pytest.mark.parametrize("measure", [0, 1], ids=["accuracy", "Frechet distance"])
def test_what_makes_it_fast_is_within_the_noise_of_seeds(found, fast, measure):
    assert p_value(found["fp32"][:, measure], found[fast][:, measure]) > 0.01
    assert found["fp32"][:, 0].mean() > 0.25, "the runs must have learned something: chance is 0.1"


def test_they_are_not_the_same_computation(found):
    assert not np.array_equal(found["fp32"], found["bf16"])
    assert not np.array_equal(found["bf16"], found["compiled"]) or not COMPILER


def test_a_change_that_matters_is_seen(found):
    assert min(p_value(found["fp32"][:, m], found["slow"][:, m]) for m in (0, 1)) < 0.01
