"""Model cards: what the pipeline measured, in words that hold."""

import json
import re

import pytest
from conftest import move_root

from lib import cards, data, evaluate, params, sources, train

FIGURE = "results/smoke/05_jempp_results/jempp-fig3.png"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project in which a classifier, JEM++ and AT-EBM were trained and measured, at smoke size."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        move_root(patch, home)
        data.path_of("smoke", "primary").parent.mkdir(parents=True)
        (home / "results" / "smoke" / "details").mkdir(parents=True)
        for role in ("primary", "second"):
            sources.stage("smoke", role)
        for name in ("reference", "softmax", "jempp-m5", "at"):
            train.train(params.run(name, "smoke"), "cpu", home / "artifacts", home / "scratch")
            measured = evaluate.evaluate(name, "smoke", "cpu")
            (home / "results" / "smoke" / "details" / f"{name}.json").write_text(json.dumps(measured), encoding="utf-8")
        shown = {"title": "JEM++ samples", "files": [FIGURE], "runs": ["jempp-m5"]}
        register = {"jempp-fig3": shown, "at-fig6": {"missing": "not yet"}}
        (home / "results" / "smoke" / "artefacts.json").write_text(json.dumps(register), encoding="utf-8")
        yield home


def metrics(home, name):
    return home / "results" / "smoke" / "details" / f"{name}.json"


@pytest.fixture
def edited(home):
    """edited(path, change): a JSON file with a change, for one test."""
    before = {}

    def edit(path, change):
        before.setdefault(path, path.read_text(encoding="utf-8"))
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    yield edit
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


def test_a_card_shows_what_was_measured(home):
    text, m = cards.card("jempp-m5", "smoke"), json.loads(metrics(home, "jempp-m5").read_text(encoding="utf-8"))["mean"]
    assert text.startswith("# JEM++ (M=5)\n\nRun `jempp-m5` at profile `smoke`. Xiulong Yang and Shihao Ji.")
    low, value, high = (f"{100 * m[k]:.1f}" for k in ("accuracy_low", "accuracy", "accuracy_high"))
    assert f"| accuracy on test images, % | {value} | {low} to {high} | – |" in text
    assert f"| FD-clf of the replay buffer (100 images) | {m['buffer']['fd_clf']:.2f} |" in text
    assert "| step | pyld: alpha 0.2, clip True, M 5, N 5, epsilon 1.0, closed_form True |" in text
    assert "![JEM++ samples](../05_jempp_results/jempp-fig3.png)" in text and "no fair draws" in text
    assert "they are not FID and IS" in text and "One seed" in text


def test_the_cards_differ_where_the_methods_do():
    softmax, at = cards.card("softmax", "smoke"), cards.card("at", "smoke")
    assert "a classifier has no chain" in softmax and "model.sample" not in softmax and "FD-clf" not in softmax
    assert "betas" not in softmax and "A baseline of the papers" in softmax
    assert "does not classify" in at and "model.classify" not in at and "E(x) = -f(x), one logit" in at
    assert "No figure shows this run's samples" in at and "momentum" not in at and "pixels in [0, 1]" in at


@pytest.mark.parametrize("name", ["softmax", "jempp-m5", "at"])
def test_the_lines_that_load_it_run(name):
    code = re.search(r"```python\n(.*?)```", cards.card(name, "smoke"), re.S)[1]
    names = {}
    exec(code, names)
    assert names["s"].shape == (60,) and ("p" in names) == (name != "at") and ("images" in names) == (name != "softmax")


def test_the_same_results_give_the_same_card(home, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cards", "--profile", "smoke", "jempp-m5", "at"])
    cards.main()
    written = [home / line for line in capsys.readouterr().out.split()]
    assert [p.name for p in written] == ["jempp-m5.md", "at.md"]
    before = [p.read_bytes() for p in written]
    cards.main()
    assert before == [p.read_bytes() for p in written] and not re.search(rb"20\d\d-\d\d|\d\d:\d\d", b"".join(before))


def test_what_lib_applications_measured_is_on_the_card(home):
    path = home / "results" / "smoke" / "applications" / "softmax.json"
    path.parent.mkdir()
    linf = {"radii": [0, 4, 16], "accuracy": [0.9, 0.5, 0.25], "low": [0.8, 0.4, 0.2], "high": [1.0, 0.6, 0.3]}
    ood = {
        "MNIST": {"log_p_x": {"value": 0.9, "low": 0.8, "high": 1.0}},
        "Noise": {"log_p_x": {"value": 0.4, "low": 0.3, "high": 0.5}},
    }
    worst = {"radius": 0.5, "auroc": {"log_p_x": {"MNIST": {"standard": 0.9, "worst": 0.1}}}}
    path.write_text(
        json.dumps({"robustness": {"linf": linf, "steps": 20, "images": 200}, "ood": {"auroc": ood}, "worst_case": worst}),
        encoding="utf-8",
    )
    text = cards.card("softmax", "smoke")
    path.unlink()
    assert "| accuracy under L∞ PGD of 4/255 (20 steps, 200 images), % | 50.0 | 40.0 to 60.0 | – |" in text
    assert "| AUROC of log p(x) against MNIST | 0.90 | 0.80 to 1.00 | – |" in text and "worst: Noise (AUROC 0.40)" in text
    assert "| AUROC of log p(x) against attacked MNIST (L2 0.5) | 0.10 |" in text
    assert "under PGD of 16/255 it is right on 25 %" in text


def test_seeds_divergence_and_inception_are_told(home, edited):
    def change(m):
        m["seeds"].append({**m["seeds"][0], "seed": 1, "verdict": "diverged at iteration 4"})
        m["mean"]["buffer"]["inception"] = {"clean": {"fid": 12.25, "is": 8.5}}
        m["sd"]["buffer"]["inception"] = {"clean": {"fid": 0.5, "is": 0.25}}

    edited(metrics(home, "jempp-m5"), change)
    text = cards.card("jempp-m5", "smoke")
    assert "| seeds | 0, 1 |" in text and "seed 1 diverged at iteration 4" in text and "One seed" not in text
    assert "| FID of the replay buffer, Inception, clean | 12.25 | – | 0.50 |" in text


def test_what_is_missing_is_named_and_a_skipped_run_has_no_card(home, monkeypatch):
    with pytest.raises(data.DataError, match="details/jem.json is missing: run `dvc repro evaluate@jem`"):
        cards.card("jem", "smoke")
    path = metrics(home, "softmax-third")
    path.write_text('{"skipped": "profile smoke has no third data set"}', encoding="utf-8")
    assert cards.card("softmax-third", "smoke") is None and cards.write("smoke", ["softmax-third"]) == []
    metrics(home, "jem").write_text(metrics(home, "jempp-m5").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(data.DataError, match="provenance.json is missing: run `dvc repro train@jem`"):
        cards.card("jem", "smoke")


def test_results_that_are_torn_or_of_another_version_are_named(home, edited):
    edited(metrics(home, "jempp-m5"), lambda m: m["mean"].pop("accuracy_low"))
    with pytest.raises(data.DataError, match="measured of jempp-m5 .smoke. has no 'accuracy_low': it is of another"):
        cards.write("smoke", ["jempp-m5"])
    metrics(home, "jempp-m5").write_text('{"mean": {', encoding="utf-8")
    with pytest.raises(data.DataError, match="jempp-m5.json is damaged .torn.*: run `dvc repro evaluate@jempp-m5`$"):
        cards.write("smoke", ["jempp-m5"])


def test_a_card_calls_a_run_labelled_by_its_loss():
    """A JEM without a buffer classifies; one without labels does not, however many logits it has."""
    about = {"parameters": 1, "config": {"profile": "paper", "data": "primary", "step": {}, "network": {"logits": None}}}
    measured = {"mean": {"samples": {}, "epochs": 1.0}, "seeds": 2 * [{"verdict": "finished"}]}
    for loss, labelled in (({"cross_entropy": {"weight": 1.0}}, True), ({"contrastive": {"weight": 1.0}}, False)):
        about["config"]["loss"] = loss
        assert ("model.classify" in cards._load("x", "smoke", about)) == labelled
        assert ("does not classify" in cards._limits(about, measured, {})) == (not labelled)
