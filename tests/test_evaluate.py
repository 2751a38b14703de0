"""A trained run by name: three lines sample, classify and score."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import move_root

from lib import applications, data, evaluate, params, sources, train
from lib.parts import networks, samplers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project's artifacts: smoke data, and three runs trained for six updates."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        move_root(patch, home)
        folder = data.path_of("smoke", "primary").parent
        folder.mkdir(parents=True)
        for role in ("primary", "second"):
            sources.stage("smoke", role)
        for name in ("softmax", "jempp-m5", "at"):
            train.train(params.run(name, "smoke"), "cpu", home / "artifacts", home / "scratch")
        yield home


@pytest.fixture
def model(home):
    return evaluate.load_run("jempp-m5", "smoke")


def still(trained):
    """The same model, whose chains do not move: its samples are their starts."""
    step = trained.run.step.model_copy(update={"alpha": 1e-9})
    return replace(trained, run=trained.run.model_copy(update={"step": step}))


def test_three_lines(home, rng):
    model = evaluate.load_run("jempp-m5", "smoke")
    images = model.sample(16, rng)
    p, s = model.classify(images), model.score(images)
    assert images.dtype == torch.uint8 and images.shape == (16, 1, 8, 8)
    assert p.shape == (16, 10) and torch.allclose(p.sum(1), torch.ones(16)) and s.shape == (16,)


def test_samples_repeat_with_their_generator_and_leave_the_model_alone(model):
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    a, b, c = (model.sample(5, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not model.model.training and all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    torch.manual_seed(3)
    a = model.sample(5)
    torch.manual_seed(3)
    assert torch.equal(model.sample(5), a) and not torch.equal(model.sample(5), a)


def test_samples_come_from_the_buffer_none_twice(model, rng):
    n = len(model.buffer)
    drawn = still(model).sample(n, rng)
    assert sorted(x.numpy().tobytes() for x in drawn) == sorted(x.numpy().tobytes() for x in model.buffer)
    assert len(still(model).sample(2 * n + 3, rng)) == 2 * n + 3
    moved = model.sample(n, torch.Generator().manual_seed(0))
    starts = still(model).sample(n, torch.Generator().manual_seed(0))
    with networks.batch_statistics(model.model):
        visit = samplers.last(samplers.Proximal(K=5, alpha=1.0, epsilon=1.0)(model.energy(), data.to_range(starts)))
    assert torch.equal(moved, data.to_bytes(visit)), "one visit; PYLD-5-5 of 0.2 is five steps of 1"


def test_fresh_samples_start_at_p0(model):
    start = model.p0(data.load("smoke"))
    drawn = still(model).sample(20, torch.Generator().manual_seed(0), fresh=True)
    assert torch.equal(drawn, data.to_bytes(start.sample(20, torch.Generator().manual_seed(0))))
    one, many = (model.sample(20, torch.Generator().manual_seed(0), fresh=f).float() for f in (False, True))
    assert not torch.equal(many, drawn.float()) and not torch.equal(one, many)


def test_at_samples_are_p0_images_moved_by_its_generation(home, rng):
    at = evaluate.load_run("at", "smoke")
    how, state = at.run.generation, rng.get_state()
    x = at.sample(12, rng)
    rng.set_state(state)
    sources_ = at.p0(data.load("smoke")).sample(12, rng)
    assert torch.equal(x, at.perturb(data.to_bytes(sources_, 0.0), how.steps, how.alpha))
    way = (data.to_range(x, 0.0) - sources_).flatten(1).norm(dim=1)
    assert (way > 0).all() and (way <= how.steps * how.alpha + 8 / 255).all()  # 64 pixels, each rounded
    assert at.score(x).shape == (12,)


def test_classify_and_score_are_what_the_logits_say(model):
    x = data.load("smoke").x_test
    logits = model.model(data.to_range(x))
    assert torch.allclose(model.classify(x), logits.softmax(1), atol=1e-5)
    assert torch.allclose(model.score(x), logits.logsumexp(1), atol=1e-4)


@pytest.mark.parametrize(
    "name, call, message",
    [
        ("softmax", lambda m: m.sample(4), "4 samples of softmax: a classifier has no chain"),
        ("jempp-m5", lambda m: m.sample(0), "0 samples of jempp-m5: expected at least 1"),
        ("at", lambda m: m.classify(m.sample(2)), "run at knows no classes: use score"),
        (
            "jempp-m5",
            lambda m: m.score(torch.zeros(2, 1, 8, 8)),
            "images torch.float32 of shape (2, 1, 8, 8): expected torch.ui",
        ),
        ("softmax", lambda m: m.classify(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)), "expected torch.uint8 (n, 1, 8, 8)"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(home, name, call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as e:
        call(evaluate.load_run(name, "smoke"))
    assert "\n" not in str(e.value)


def test_a_run_that_was_not_trained_says_how_to(home):
    with pytest.raises(data.DataError, match="has no weights: train it with python -m lib.train jem --profile smoke"):
        evaluate.load_run("jem", "smoke")


# ---------------------------------------------------------------------------------------- what is damaged or another's
@pytest.fixture
def jempp(home):
    """jempp-m5's folder, put right afterwards."""
    folder = home / "artifacts" / "smoke" / "jempp-m5" / "seed0"
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    yield folder
    for path, content in before.items():
        path.write_bytes(content)


def refused(says):
    with pytest.raises(data.DataError, match=says) as e:
        evaluate.load_run("jempp-m5", "smoke")
    assert "\n" not in str(e.value) and str(e.value).count("train it with python -m lib.train jempp-m5 --profile smoke") == 1


@pytest.mark.parametrize("name", ["weights.pt", "buffer.pt", "metrics.json", "provenance.json"])
@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda b: b[: len(b) // 2], "is damaged .torn"),
        (lambda b: b"", "is damaged .empty"),
        (None, "is missing|has no weights"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_the_remedy(jempp, name, damage, says):
    if damage:
        (jempp / name).write_bytes(damage((jempp / name).read_bytes()))
    else:
        (jempp / name).unlink()
    refused(f"{re.escape(str(jempp))}.*({says})")


class Evil:
    def __reduce__(self):
        return print, ("code from a weights file ran",)


@pytest.mark.parametrize(
    "weights, says",
    [
        (lambda w: {"first.weight": Evil()}, "weights.pt is damaged .it asks for code, which was not run.: train"),
        (
            lambda w: w | {"first.weight": torch.zeros(9, 1, 3, 3)},
            r"of another network: first.weight is \(9, 1, 3, 3\) there, \(",
        ),
        (
            lambda w: {k: v for k, v in w.items() if k != "head.bias"},
            r"of another network: head.bias is missing there, \(10",
        ),
        (lambda w: w | {"head.bias": torch.zeros(11)}, r"is of another network: head.bias is \(11,\) there, \(10,\) here"),
        (lambda w: [1, 2], "is of another network: .* is missing there"),
        (
            lambda w: w | {"head.bias": torch.full((10,), float("nan"))},
            "holds numbers that are not finite, in head.bias: train",
        ),
    ],
)
def test_weights_of_another_network_or_none_are_refused(jempp, weights, says, capsys):
    torch.save(weights(torch.load(jempp / "weights.pt", weights_only=True)), jempp / "weights.pt")
    refused(says)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "buffer, says",
    [
        (
            torch.zeros(100, 1, 8, 8),
            r"pt holds torch.float32 of shape \(100, 1, 8, 8\); expected torch.uint8 \(n, 1, 8, 8\)",
        ),
        (torch.zeros(100, 3, 8, 8, dtype=torch.uint8), r"holds torch.uint8 of shape \(100, 3, 8, 8\); expected"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), r"holds torch.uint8 of shape \(0, 1, 8, 8\)"),
        ({"a": 1}, "holds dict; expected torch.uint8"),
    ],
)
def test_a_buffer_that_is_none_is_refused(jempp, buffer, says):
    torch.save(buffer, jempp / "buffer.pt")
    refused(says)


@pytest.mark.parametrize(
    "file, change, says",
    [
        ("provenance.json", {"run": "jem"}, "seed0 holds jem, profile smoke, seed 0; expected jempp-m5, smoke, 0"),
        ("provenance.json", {"profile": "quick"}, "seed0 holds jempp-m5, profile quick, seed 0; expected"),
        ("provenance.json", {"seed": 1}, "seed0 holds jempp-m5, profile smoke, seed 1; expected"),
        ("provenance.json", {"precision": ...}, "provenance.json lacks precision: it is of another version"),
        ("metrics.json", {"verdict": ..., "planned": ...}, "metrics.json lacks verdict, planned: it is of another version"),
    ],
)
def test_another_runs_results_are_refused(jempp, file, change, says):
    content = json.loads((jempp / file).read_text(encoding="utf-8")) | change
    (jempp / file).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")
    refused(says)


def test_a_snapshot_that_is_torn_is_named(home):
    folder = home / "artifacts" / "smoke" / "at" / "seed0" / "snapshots"
    path = max(folder.glob("*/weights.pt"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    at = evaluate.load_run("at", "smoke")
    with pytest.raises(data.DataError, match=f"{path} is damaged .torn.*: train it anew with python -m lib.train at --prof"):
        evaluate.generated(at, lambda *a, **kw: {})
    path.write_bytes(whole)
    assert [s["iteration"] for s in evaluate.generated(at, lambda *a, **kw: {})["snapshots"]] == [3, 6]


def test_kept_moments_that_are_torn_are_computed_anew(home, capsys):
    softmax, split = evaluate.load_run("softmax", "smoke"), data.load("smoke")
    first = evaluate.moments_of_data(softmax, split)
    [path] = (home / "scratch").glob("moments-*.npz")
    path.write_bytes(path.read_bytes()[:200])
    again = evaluate.moments_of_data(softmax, split)
    assert f"{path} is damaged (BadZipFile): computed anew" in capsys.readouterr().err
    kept = evaluate.moments_of_data(softmax, split)
    assert (first.mean == again.mean).all() and (kept.covariance == first.covariance).all()


@pytest.mark.parametrize("module, words", [(evaluate, ["softmax"]), (applications, ["softmax", "ood"])])
def test_where_nothing_can_be_written_nothing_is_computed(module, words, tmp_path, monkeypatch):
    (tmp_path / "results").write_bytes(b"")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "evaluate" if module is evaluate else "apply", lambda *a: pytest.fail("computed"))
    monkeypatch.setattr("sys.argv", ["command", *words, "--profile", "smoke"])
    with pytest.raises(SystemExit, match="^error: .*results/smoke/.* is no folder to write to .*: make it writable"):
        module.main()


def test_a_device_that_is_not_there_is_named(home):
    with pytest.raises(params.ConfigError, match="device 'cuda:97' does not work .*: torch .* has cpu"):
        evaluate.load_run("softmax", "smoke", device="cuda:97")
    for call in (
        lambda: evaluate.evaluate("softmax", "smoke", "nonsense"),
        lambda: applications.apply("softmax", ["ood"], "smoke", "meta"),
    ):
        with pytest.raises(params.ConfigError, match="device '(nonsense|meta)' does not work") as e:
            call()
        assert "\n" not in str(e.value)
