"""params.yaml and its guard: every mistake ends in one clear line."""

import copy
import warnings

import pytest

from lib import params


@pytest.fixture
def tree():
    return copy.deepcopy(params.load())


@pytest.mark.parametrize("profile", params.PROFILES)
def test_every_run_is_valid_in_every_profile(profile):
    for name in params.runs():
        run = params.run(name, profile)
        assert run.name == name and run.profile == profile


def test_the_papers_own_values():
    run = params.run("jempp-m10", "paper")
    assert (run.step.M, run.step.N, run.step.alpha, run.step.epsilon) == (10, 5, 0.2, 1.0)
    assert (run.start.buffer.size, run.start.buffer.reinit, run.update.lr, run.update.epochs) == (10_000, 0.05, 0.1, 150)
    assert (run.network.depth, run.network.widen, run.network.norm) == (28, 10, "batch")
    jem = params.run("jem", "paper")
    assert (jem.step.K, jem.update.optimizer, jem.update.lr, jem.network.norm) == (20, "adam", 1e-4, "none")
    assert params.data("paper", "third").name == "cifar100"


@pytest.mark.parametrize(
    "break_it, says",
    [
        (lambda t: t["runs"]["jem"]["update"].update(lrr=1), "runs.jem.update.lrr: unknown key (did you mean 'lr'?)"),
        (lambda t: t["runs"]["jem"].update(sise="jem"), "runs.jem.sise: unknown key (did you mean 'size'?)"),
        (lambda t: t["runs"]["jem"]["step"].update(alpha="much"), "runs.jem.step.alpha"),
        (lambda t: t["runs"]["jem"]["step"].update(K=2.5), "runs.jem.step.K"),
        (lambda t: t["runs"]["jem"]["step"].pop("K"), "runs.jem.step.K: missing; add it"),
        (
            lambda t: t["runs"]["jem"]["step"].update(M=3),
            "runs.jem.step.M: kind 'sgld' has no such key, pyld have; leave it out, or change the kind",
        ),
        (
            lambda t: t["runs"]["jem"]["step"].update(kind="slgd"),
            "kind: 'slgd' (did you mean 'sgld'?); expected one of sgld,",
        ),
        (
            lambda t: t["runs"]["jem"]["step"].pop("kind"),
            "runs.jem.step: kind: None; expected one of sgld, proximal, pyld, pgd",
        ),
        (
            lambda t: t["runs"]["jem"]["start"]["buffer"].update(reinit=1.5),
            "runs.jem.start.buffer.reinit: Input should be less",
        ),
        (
            lambda t: t["runs"]["jem"]["start"]["buffer"].update(sise=1),
            "start.buffer.sise: unknown key (did you mean 'size'?)",
        ),
        (lambda t: t["runs"]["jem"].pop("start"), "a chain needs both; a classifier has neither"),
        (lambda t: t["runs"]["jem"].update(size="jam"), "no 'jam' (did you mean 'jem'?)"),
        (lambda t: t["runs"]["softmax"]["loss"].update(contrastive=1.0), "needs samples, and there is no chain"),
        (lambda t: t["runs"]["jem"]["update"].update(epochs=3), "iterations: 1150 and epochs: 3.0; expected exactly one"),
        (lambda t: t["runs"]["jem"].update(update="fast"), "runs.jem"),
        (lambda t: t["runs"]["jem"]["loss"].pop("contrastive"), "makes samples that loss (cross_entropy) never sees"),
        (lambda t: t["runs"]["jem"].update(loss={"energy_l2": 1.0}), "leaves nothing to learn from; expected cross_entropy"),
        (lambda t: t["runs"]["jem"]["network"].update(logits=1), "network.logits: 1 with loss cross_entropy, contrastive"),
        (
            lambda t: t["runs"]["jem"]["network"].update(norm="bacth"),
            "network.norm: Input should be 'batch', 'frozen' or 'none'",
        ),
        (lambda t: t["runs"]["jem"]["loss"].update(bec=1.0), "runs.jem.loss.bec: unknown key (did you mean 'bce'?)"),
        (lambda t: t["runs"]["jem"]["loss"].update(r1=-1.0), "runs.jem.loss.r1.weight: Input should be greater"),
        (
            lambda t: t["runs"]["jem"].update(loss={"adversarial_cross_entropy": {"weight": 1.0, "radius": 8}}),
            "runs.jem.loss.adversarial_cross_entropy.steps: missing; add it",
        ),
        (
            lambda t: t["runs"]["jem"].update(loss={"contrastive": 1.0}, branches="classify"),
            "branches: classify sets p(x) apart from p(y|x), and loss (contrastive) does not have both",
        ),
        (
            lambda t: t["runs"]["jem"].update(graph=True, step={**t["runs"]["jem"]["step"], "growth": {"kind": "linear"}}),
            "graph: true with step.growth",
        ),
        (
            lambda t: t["runs"]["jem"].update(generation={"steps": 1, "alpha": 1.0, "images": 10}),
            "generation: it is how a run with a start and without a buffer",
        ),
    ],
)
def test_mistakes_are_one_clear_line(tree, break_it, says):
    for section in ("common", "jem"):  # the scale would overrule what the test breaks
        for key in ("lr", "epochs", "normalise"):
            tree["scales"]["quick"][section].get("update", {}).pop(key, None)
    break_it(tree)
    with pytest.raises(params.ConfigError) as e:
        params.run("softmax" if "no chain" in says else "jem", "quick", tree)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "run, section, change, says",
    [
        ("at", ("step", "growth"), {"first": 99}, "growth.first: 99 is beyond K: 25; expected at most K"),
        ("at-linear", ("step", "growth"), {"first": 2}, "growth.first: kind 'linear' has no such key, auc have"),
        ("at", ("update",), {"nesterov": True}, "update.nesterov: optimizer 'adam' has no such key, sgd have"),
        ("softmax", ("update",), {"nesterov": True, "momentum": 0.0}, "nesterov: true with momentum 0; expected some"),
        ("at", ("loss",), {"bce": None}, "loss: r1 leaves nothing to learn from"),
        (
            "jempp-m5",
            ("start",),
            {"augment": {"kind": "crop_flip"}},
            "runs.jempp-m5.start.augment: kind 'gaussians' has no such key, images have",
        ),
        (
            "at",
            ("start",),
            {"augment": {"kind": "resized_crop", "scale": [0.9, 1.2]}},
            "scale: [0.9, 1.2]; expected from and to",
        ),
        (
            "at",
            ("start",),
            {"augment": {"kind": "resized_crop", "ratio": [1.1, 0.9]}},
            "ratio: [1.1, 0.9]; expected from and to",
        ),
        ("at", ("start",), {"augment": {"kind": "crop_flip", "pad": 1, "fill": [300]}}, "runs.at.start.augment.fill"),
        ("softmax", ("network",), {"normalise": "cifar10"}, "normalise: cifar10 with range symmetric"),
        ("at", ("network",), {"normalise": "cifar"}, "runs.at.network.normalise"),
        ("at", (), {"initail": "weights.pt"}, "runs.at.initail: unknown key (did you mean 'initial'?)"),
    ],
)
def test_mistakes_in_what_at_ebm_has_are_one_clear_line(tree, run, section, change, says):
    tree["scales"]["quick"]["common"]["network"].pop("normalise")  # it would overrule what the test breaks
    place = tree["runs"][run] = copy.deepcopy(tree["runs"][run])  # YAML's anchors share sections
    for key in section:
        place = place[key]
    place.update(change)
    with pytest.raises(params.ConfigError) as e:
        params.run(run, "quick", tree)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_the_published_settings_of_at_ebm_stay_in_the_paper_profile():
    """Augmentation, constants to normalise by, Nesterov, a later first K: as AT-EBM's code has them, and nowhere else."""
    black, mean = (
        {"kind": "crop_flip", "pad": 4, "fill": (0, 0, 0)},
        {"kind": "autoaugment", "fill": (125, 122, 113), "cutout": 16},
    )
    half = {"kind": "resized_crop", "share": 0.5, "scale": (0.8, 1.0), "ratio": (0.9, 1.1)}
    imagenet = {"kind": "resized_crop", "share": 1.0, "scale": (0.08, 1.0), "ratio": (0.75, 1.3333)}
    wanted = {
        "at": (black, black, "cifar10"),
        "at-ood": (mean, mean, "cifar10"),
        "at-cats": (half, imagenet, "imagenet"),
        "at-faces": (half | {"scale": (0.9, 1.0), "ratio": (0.95, 1.05)}, imagenet, "imagenet"),
        "at-church": (half, imagenet, "imagenet"),
        "at-p0-noise": (black, black, "cifar10"),
    }
    for name, (real, p0, constants) in wanted.items():
        run = params.run(name, "paper")
        assert run.augment.model_dump() | real == run.augment.model_dump() and run.input_noise == 0, name
        assert run.start.augment.model_dump() | p0 == run.start.augment.model_dump(), name
        assert run.network.normalise == constants and run.initial is None, name
        assert getattr(run.update, "nesterov", False) == (name == "at-ood") and run.update.weight_decay == 0, name
        assert run.step.growth is None or run.step.growth.first == (10 if name == "at-cats" else 0), name
        for profile in ("smoke", "quick", "gpu"):
            run = params.run(name, profile)
            assert run.augment.kind == "none" and not run.start.augment and not run.network.normalise, (profile, name)
            assert not getattr(run.update, "nesterov", False), (profile, name)
            assert run.step.growth is None or not run.step.growth.first, (profile, name)


def test_unknown_names(tree, monkeypatch):
    with pytest.raises(params.ConfigError, match="did you mean 'softmax'"):
        params.run("softmx", "quick")
    monkeypatch.setenv("EBM_PROFILE", "qiuck")
    with pytest.raises(params.ConfigError, match="'qiuck' is not a profile"):
        params.profile()


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(params.ConfigError, match="is missing"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,\nb: 2", encoding="utf-8")
    with pytest.raises(params.ConfigError, match="is not YAML"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "holds nothing: expected the sections profile, scales and runs"),
        (b"# a comment\n", "holds nothing: expected"),
        (b"[1, 2]", "holds list: expected the sections"),
        (b"quick", "holds str: expected"),
        ("profile: ρ".encode("utf-16"), "is damaged .not UTF-8.: save it as UTF-8, or git checkout params.yaml"),
        ("profile: ρ".encode("cp1253"), "is damaged .not UTF-8.: save it as UTF-8"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, content, says):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(params.ConfigError, match=f"params.yaml {says}") as e:
        params.load(tmp_path / "params.yaml")
    assert "\n" not in str(e.value)


def test_batch_norm_with_a_uniform_start_is_warned_of(tree):
    tree["runs"]["jem"]["network"]["norm"] = "batch"
    params._WARNED.clear()  # each text is shown once per process
    with pytest.warns(UserWarning, match="batch norm with a uniform start"):
        params.run("jem", "quick", tree)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params.run("jempp-m10", "quick")


def test_the_scale_wins_and_a_classifier_gets_no_chain(tree):
    tree["scales"]["quick"]["common"]["update"]["batch"] = 7
    run = params.run("softmax", "quick", tree)
    assert run.update.batch == 7 and run.start is None and run.step is None


def test_a_size_switches_on_no_part_that_the_method_lacks():
    """A scale's `sam: {rho: ...}` resizes SAM where a run has it, and leaves the runs beside it without."""
    with_sam = {r for r, m in params.load()["runs"].items() if (m.get("update") or {}).get("sam")}
    assert {"sada-k10", "softmax-sam", "sada-ablation-jem-sam"} <= with_sam
    assert not with_sam & {"softmax", "jem", "sada-ablation-jem", "sada-ablation-jempp", "sada-ablation-noda"}
    for profile in params.PROFILES:
        for name in params.runs():
            run = params.run(name, profile)
            assert (run.update.sam is not None) == (name in with_sam), (profile, name)
            assert (run.generation is not None) == name.startswith("at"), (profile, name)
    small = {
        "profile": "quick",
        "scales": {"quick": {"common": {"update": {"iterations": 5, "sam": {"rho": 0.1}}}, "s": {}}},
        "runs": {
            "a": {
                "title": "A",
                "size": "s",
                "data": "primary",
                "reference": "a",
                "network": {"kind": "wrn", "norm": "batch", "depth": 10, "widen": 1},
                "augment": {"kind": "none"},
                "input_noise": 0.0,
                "loss": {"cross_entropy": 1.0},
                "update": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "batch": 8, "schedule": {"kind": "constant"}},
            }
        },
    }
    assert params.run("a", "quick", small).update.sam is None
    small["scales"]["quick"]["common"]["step"] = {"K": 3}
    assert params.run("a", "quick", small).step is None
    small["runs"]["a"]["update"]["sam"] = {"rho": 0.2}
    assert params.run("a", "quick", small).update.sam.rho == 0.1


def test_what_a_size_says_of_other_kinds_is_passed_over_and_what_no_kind_has_is_not(tree):
    """A size speaks to many runs: of each, it resizes what that run's kind has."""
    common = tree["scales"]["quick"]["common"]
    common["step"], common["network"]["width"] = {"M": 3, "radius": 0.5}, 9
    jem, jempp, at = (params.run(n, "quick", tree) for n in ("jem", "jempp-m5", "at-ood"))
    assert (jem.step.K, jempp.step.M, at.step.radius) == (20, 3, 0.5) and not hasattr(jem.network, "width")
    common["step"] = {"radios": 0.5}
    with pytest.raises(params.ConfigError, match="runs.jem.step.radios: unknown key"):
        params.run("jem", "quick", tree)
    common["step"] = {"kind": "sgld", "K": 4, "alpha": 1.0}  # another cell: what only the old kind had goes with it
    assert params.run("jempp-m5", "quick", tree).step.model_dump() == params.run("at-ood", "quick", tree).step.model_dump()


def test_a_copy_with_other_settings_is_checked():
    run = params.run("jempp-m5", "smoke")
    assert run.but({"step.M": 9, "start.buffer.size": 7}).step.M == 9 and run.step.M == 5
    assert run.but({"start": {"kind": "data"}}).start.buffer is None
    with pytest.raises(ValueError, match="a chain needs both"):
        run.but({"step": None})


JEM = ("runs", "jem")
COMMON = ("scales", "quick", "common")


@pytest.mark.parametrize(
    "place, value, says",
    [
        (("scales",), 5, "scales: 5 is no section; expected keys and values"),
        (("scales", "quick"), None, "scales.quick: None is no section"),
        (COMMON, [1], "scales.quick.common: [1] is no section"),
        (("scales", "quick", "jem"), "x", "scales.quick.jem: 'x' is no section"),
        (("runs",), 5, "runs: 5 is no section"),
        ((*JEM, "size"), ["jem"], "scales.quick: no ['jem'] (did you mean 'jem'?); it has data, "),
        ((*JEM, 1), 2, "runs.jem.1: Keys should be strings"),
        ((*COMMON, None), 2, "runs.jem.None: Keys should be strings"),
        ((*JEM, "name"), "other", "runs.jem.name: 'other'; a run's name is not set here: leave it out"),
        ((*COMMON, "profile"), "paper", "runs.jem.profile: 'paper'; a run's profile is not set here"),
        (
            (*JEM, "reference"),
            "softmx",
            "runs.jem.reference: no run 'softmx' (did you mean 'softmax'?); expected a classifier",
        ),
        ((*JEM, "seeds"), [], "runs.jem.seeds: Tuple should have at least 1 item"),
        ((*JEM, "seeds"), [0, 0], "runs.jem.seeds: expected different numbers; got (0, 0)"),
        ((*JEM, "seeds"), [-1], "runs.jem.seeds: Input should be greater than or equal to 0; got -1"),
        ((*JEM, "input_noise"), float("inf"), "runs.jem.input_noise: Input should be a finite number; got inf"),
        ((*JEM, "step", "alpha"), float("inf"), "runs.jem.step.alpha: Input should be a finite number"),
        ((*JEM, "step", "alpha"), "1e-3", "got '1e-3'; YAML takes this for text: write a dot, as in 1.0e-3"),
        (
            (*JEM, "step", "clip"),
            [1, -1],
            "runs.jem.step.clip: expected true, false, or a range [low, high] with low < high; got (1, -1)",
        ),
        ((*JEM, "step", "clip"), [float("nan"), 1.0], "expected true, false, or a range [low, high] with low < high"),
        ((*JEM, "step", "clip"), [0], "runs.jem.step.clip: expected true, false, or a range"),
        ((*JEM, "update", "betas"), [0.9], "runs.jem.update.betas: too few values; got (0.9,)"),
        ((*JEM, "update", "betas"), [1.5, 0.9], "runs.jem.update.betas: Input should be less than 1; got 1.5"),
        ((*JEM, "loss", "r1"), {"weight": 0.0, "wieght": 1.0}, "runs.jem.loss.r1.wieght: unknown key"),
        (
            (*JEM, "start"),
            {"kind": "images", "images": 9, "of": {"noise": True}},
            "runs.jem.start.of.noise: Input should be",
        ),
        ((*JEM, "step", "a\nb"), 1, "runs.jem.step.a b: unknown key"),
    ],
)
def test_what_no_section_or_number_can_be_is_one_clear_line(tree, place, value, says):
    tree = copy.deepcopy(tree)
    tree["runs"]["jem"] = copy.deepcopy(tree["runs"]["jem"])  # YAML's anchors share sections
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(params.ConfigError) as e:
        params.run("jem", "quick", tree)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_names_of_runs_that_are_no_section_are_one_clear_line():
    with pytest.raises(params.ConfigError, match="runs: None is no section"):
        params.runs({"runs": None})


@pytest.mark.parametrize("kind", ["uniform", "gaussians", "data"])
def test_generation_begins_at_images_of_another_kind(tree, kind):
    tree["runs"]["at"]["start"] = {"kind": kind}
    with pytest.raises(params.ConfigError, match=f"generation: .*expected start kind images, not {kind}"):
        params.run("at", "quick", tree)


def test_a_key_that_is_twice_in_a_section_is_one_clear_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [{x: 1}, {x: 2}]\n", encoding="utf-8")
    assert params.load(path)["b"] == {"x": 2}, "a merged key may be given anew"
    path = tmp_path / "twice.yaml"
    path.write_text("runs:\n  jem: {lr: 1}\n  at: {}\n  jem: {lr: 2}\n", encoding="utf-8")
    with pytest.raises(params.ConfigError, match="'jem' is twice in one section; expected it once.*line 4") as e:
        params.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"step.alpha": "much"}, "step.alpha: Input should be a valid number; got 'much'"),
        ({"start.buffer.size": 0}, "start.buffer.size: Input should be greater"),
        ({"step.kind": "pgd"}, "step.kind: Input should be 'sgld'"),
        ({"stp.K": 3}, "stp: None is no section with K"),
        ({"stp": 3}, "stp: unknown key (did you mean 'step'?)"),
        ({"step.K.x": 3}, "step.K: 20 is no section with x"),
        ({"step": None, "step.K": 3}, "step: None is no section with K"),
        ({"loss.r1.weight": 1.0}, "loss.r1: None is no section with weight; give loss.r1 itself"),
        ({"loss.contrastive.weight": 0.0}, "makes samples that loss (cross_entropy) never sees"),
        ({5: 1}, "5: "),
    ],
)
def test_a_copy_that_cannot_be_is_one_clear_line(changes, says):
    with pytest.raises(params.ConfigError) as e:
        params.run("jem", "smoke").but(changes)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_copy_takes_lists_as_params_yaml_does():
    run = params.run("jem", "smoke").but({"seeds": [3, 4], "step.clip": [0, 1]})
    assert (run.seeds, run.step.clip) == ((3, 4), (0.0, 1.0))
