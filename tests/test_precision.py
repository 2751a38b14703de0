"""bf16 and torch.compile change what comes out by no more than another seed does; a rate too small to learn at, by more."""

import numpy as np
import pytest
import torch
from conftest import COMPILER
from scipy import stats
from test_compile import compiler  # noqa: F401  (which chooses the folder of what is compiled)

from lib import data, params, sources
from lib.measures import metrics
from lib.parts.energy import resolve_precision
from lib.training import Trainer

SEEDS = (0, 1, 2)
# Where a processor has no bf16 instructions, convolutions in bf16 take 8 to 12 times as long, and `auto` trains in fp32.
BF16 = resolve_precision("auto", torch.device("cpu")) == "bf16" and torch.backends.cpu.get_cpu_capability() != "AVX2"
FAST = "bf16" if BF16 else "fp32"  # what a run is trained in here, compiled or not
bf16 = pytest.mark.skipif(not BF16, reason="this processor does not multiply in bf16: `auto` never chooses it here")
# Of four comparisons, one at this level fails by chance in some 250 processors; the rate that is too small is far beyond it.
LEVEL = 1e-3


@pytest.fixture(scope="module")
def found():
    """(accuracy, Frechet distance of the buffer's pixels to the data's) per seed: JEM++ (M=5) on MNIST at 8x8."""
    split = sources.prepare(params.Data(name="mnist", size=8, train=2000, test=1000, holdout=100))
    real = metrics.moments(pixels(split.x_train))
    run = params.run("precision-fp32", "smoke")
    run = run.but({"update.batch": 64, "update.iterations": 60, "update.lr": 0.02, "start.buffer.size": 500, "step.M": 2})
    run = run.but({"update.schedule.milestones": (0.6, 0.9)})
    variants = {
        "fp32": run,
        FAST: run.but({"precision": FAST}),
        "compiled": run.but({"precision": FAST, "compile": True}),
        "slow": run.but({"update.lr": run.update.lr / 1000}),
    }
    return {name: np.array([outcome(v, split, real, seed) for seed in SEEDS]) for name, v in variants.items()}


def pixels(x):
    """Means of 2x2 pixels: the corners' own never change."""
    return torch.nn.functional.avg_pool2d(x.double(), 2).flatten(1).numpy() / 255


def outcome(run, split, real, seed):
    trainer = Trainer(run, split, seed)
    for _ in range(run.update.iterations):
        trainer.step()
    assert all(p.requires_grad and p.grad is not None for p in trainer.model.parameters()), "weights learn, compiled or not"
    logits = metrics.logits_of(trainer.model, split.x_test, run.input_noise)
    return metrics.accuracy(logits, split.y_test), metrics.frechet(
        metrics.moments(pixels(data.to_bytes(trainer.buffer.images))), real
    )


def p_value(a, b):
    """Student's t over seeds."""
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return 2 * stats.t.sf(abs(a.mean() - b.mean()) / error, 2 * len(a) - 2)


@pytest.mark.parametrize("fast", [pytest.param("bf16", marks=bf16), "compiled"])
@pytest.mark.parametrize("measure", [0, 1], ids=["accuracy", "Frechet distance"])
def test_what_makes_it_fast_is_within_the_noise_of_seeds(found, fast, measure):
    assert p_value(found["fp32"][:, measure], found[fast][:, measure]) > LEVEL
    assert found["fp32"][:, 0].mean() > 0.25, "the runs must have learned something: chance is 0.1"


def test_they_are_not_the_same_computation(found):
    assert not BF16 or not np.array_equal(found["fp32"], found["bf16"])
    assert not COMPILER or not np.array_equal(found[FAST], found["compiled"])


def test_a_change_that_matters_is_seen(found):
    assert min(p_value(found["fp32"][:, m], found["slow"][:, m]) for m in (0, 1)) < LEVEL
