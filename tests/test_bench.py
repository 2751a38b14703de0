"""The plain transcription agrees with the package; the benchmark measures what it says."""

import copy
import json
import types
from functools import partial

import pytest
import torch

from lib import params, plots
from lib.bench import plain
from lib.bench import speed as bench
from lib.parts import samplers
from lib.parts.energy import Energy


@pytest.fixture(scope="module")
def small():
    """Ten classes of 16x16 colour images, small networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.SIZES, "cpu", {"depth": 10, "widen": 1})
        patch.setattr(bench, "configuration", partial(bench.configuration, compile=False))  # it takes half a minute
        yield bench.images(16, 200)


def test_the_chains_agree(wrn, rng):
    x = torch.rand(4, 1, 8, 8, generator=rng).double() * 2 - 1
    E = Energy(wrn)
    pairs = [
        (plain.pyld(wrn, x, 3, 4, 0.1, 0.01), samplers.PYLD(M=3, N=4, alpha=0.1, epsilon=0.01)(E, x)),
        (plain.proximal(wrn, x, 3, 0.5, 0.02), samplers.Proximal(K=3, alpha=0.5, epsilon=0.02)(E, x)),
        (plain.sgld(wrn, x, 3, 0.5, 0.0), samplers.SGLD(K=3, alpha=0.5, clip=False)(E, x)),
    ]
    for ours, theirs in pairs:
        assert (ours - x).abs().max() > 1e-3
        torch.testing.assert_close(ours, samplers.last(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", bench.RUNS)
def test_one_update_from_the_same_weights_and_samples_agrees(small, name):
    """Loss, second stream, SAM, R1 and optimiser against an independent implementation of all of them."""
    run = bench.configuration(name, "cpu", batch=8, passes=2, precision="fp32")
    run = run.but({"input_noise": 0.0, "augment": {"kind": "none"}})
    if run.network.kind == "discriminator":
        run = run.but({"network.width": 8})
    ours = bench.trainer(run, small, torch.device("cpu"))
    theirs = plain.Plain(ours)
    before = copy.deepcopy(ours.model.state_dict())
    if run.step and not ours.buffer:
        draws = ours.start.sample(8, torch.Generator().manual_seed(5))
        ours.start.sample = lambda n, g=None, y=None: draws
    elif run.step:
        x_minus = small.gaussians.sample(8, torch.Generator().manual_seed(5))
        ours.sample, theirs.sample = lambda real: (x_minus, {}), lambda: x_minus
    ours.step(), theirs.step()
    changed = 0.0
    for key, a in ours.model.state_dict().items():
        if a.is_floating_point() and "running" not in key:  # SAM's second pass leaves statistics alone, plainly not
            torch.testing.assert_close(a, theirs.model.state_dict()[key], rtol=2e-3, atol=2e-5)
            changed = max(changed, (a - before[key]).abs().max().item())
    assert changed > 1e-4


def test_a_measurement_holds_what_the_figure_and_the_table_show(small):
    cpu = torch.device("cpu")
    runs = bench.against_plain(["softmax", bench.MAIN], small, cpu, 2)
    found = {
        "machine": bench.machine(cpu),
        "network": "small",
        "data": "dead leaves, small",
        "runs": runs,
        "parts": {bench.MAIN: bench.parts(bench.MAIN, small, cpu, 1)},
        "scaling": [
            {"what": w, "value": v, "seconds": 1.0, "images_per_second": 64.0}
            for w in ("batch", "width", "M", "pixels")
            for v in (1, 2)
        ],
    }
    assert runs[bench.MAIN]["ratio"] > 0 and json.dumps(found)
    parts = found["parts"][bench.MAIN]
    assert all(parts[k] > 0 for k in ("data", "sampler", "loss, forward", "step"))
    assert bench.MAIN in bench.table(found) and len(plots.benchmark(found).axes) == 3


def test_rounds_alternate_and_count():
    calls = []
    found = bench.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert calls == ["a", "b"] * 3 and [len(v) for v in found.values()] == [2, 2]


def test_memory_is_counted(small):
    """Activations kept for the backward pass: at least every convolution's input, at most all that is computed."""
    run = bench.configuration(bench.MAIN, "cpu", precision="fp32")
    kept = bench.saved_bytes(run, torch.device("cpu"))
    assert 4 * 16 * 32 * 32 * 4 < kept < 4 * 40 * 16 * 32 * 32
    assert bench.saved_bytes(run, torch.device("cpu"), batch=8) == pytest.approx(kept, rel=0.01)


def test_the_published_network_and_settings_are_measured():
    run = bench.configuration("jempp-m10", "cuda")
    assert (run.network.depth, run.network.widen, run.update.batch, run.start.buffer.size) == (28, 10, 64, 10_000)
    assert run.step.M == 10 and run.step.N == 5 and run.augment.kind == "crop_flip"


def test_no_part_is_begun_after_the_minutes_and_what_there_is_stays(small, monkeypatch, capsys):
    monkeypatch.setattr(bench, "images", lambda *a: small)
    monkeypatch.setattr(bench, "against_plain", lambda names, *a: {names[0]: {"ratio": 2.0}})
    begun = []
    for part in ("launches", "memory", "parts", "processes", "scaling", "kept_memory_gain"):
        monkeypatch.setattr(bench, part, lambda *a, part=part: begun.append(part) or {})
    every = list(bench.measure(torch.device("cpu"), ("softmax", bench.MAIN)))
    assert len(every) == 8 and begun[0] == "launches" and every[-1]["ratio_to_plain"] == {bench.MAIN: 2.0, "softmax": 2.0}
    found = bench.measure(torch.device("cpu"), (bench.MAIN, "softmax"), minutes=1)
    assert list(next(found)["runs"]) == [bench.MAIN]
    now = bench.time.monotonic()
    monkeypatch.setattr(bench.time, "monotonic", lambda: now + 61)
    assert not list(found) and "1 minutes are over, left out: launches" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (["--rounds", "0"], "argument --rounds: 0 rounds; expected at least 2"),
        (["--rounds", "1"], "expected at least 2"),
        (["--minutes", "-1"], "invalid amount value: '-1'"),
        (["--minutes", "nan"], "invalid amount value: 'nan'"),
        (["--device", "cuda:97"], "device 'cuda:97' does not work"),
    ],
)
def test_a_command_line_that_measures_nothing_is_refused(words, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", *words])
    monkeypatch.setattr(bench, "measure", lambda *a: pytest.fail("measured"))
    with pytest.raises(SystemExit) as e:
        bench.main()
    assert says in capsys.readouterr().err + str(e.value)


@pytest.mark.parametrize(
    "name, changes, says",
    [
        ("jempp-m5", {"step": {"kind": "hmc", "K": 1, "L": 1, "alpha": 0.1}}, "step "),
        ("jempp-m5", {"loss.energy_l2": 1.0}, "step pyld with loss"),
        ("jempp-m5", {"loss.contrastive": 2.0}, "step pyld with loss"),
        ("jempp-m5", {"step.noise": 0.1}, "step "),
        ("jem", {"range": "unit"}, "step "),
        ("jem", {"start": {"kind": "data"}}, "step sgld from start .*data"),
        ("softmax", {"loss.r1": 1.0}, "a classifier's loss"),
        ("softmax", {"update.nesterov": True}, "update.nesterov"),
        ("sada-k5", {"update.sam.adaptive": True}, "update.sam.adaptive"),
        ("at", {}, "step.growth auc"),
        ("at", {"step.growth": None, "step.radius": 0.5}, "step "),
    ],
)
def test_what_is_in_no_paper_is_refused_in_one_line(small, name, changes, says):
    ours = types.SimpleNamespace(run=params.run(name, "smoke").but(changes))
    with pytest.raises(params.ConfigError, match=f"run {name}: {says}.* is in no paper's algorithm") as e:
        plain.Plain(ours)
    assert "\n" not in str(e.value)
