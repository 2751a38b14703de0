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
    assert (run.start.buffer, run.start.reinit, run.update.lr, run.update.epochs) == (10_000, 0.05, 0.1, 150)
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
        (lambda t: t["runs"]["jem"]["step"].pop("K"), "needs ['K']"),
        (lambda t: t["runs"]["jem"]["step"].update(M=3), "takes no ['M']"),
        (lambda t: t["runs"]["jem"]["start"].update(reinit=1.5), "runs.jem.start.reinit"),
        (lambda t: t["runs"]["jem"].pop("start"), "needs both a start and a step"),
        (lambda t: t["runs"]["jem"].update(size="jam"), "no 'jam' (did you mean 'jem'?)"),
        (lambda t: t["runs"]["softmax"]["loss"].update(generate=1.0), "needs samples"),
        (lambda t: t["runs"]["jem"]["update"].update(epochs=3), "exactly one of iterations and epochs"),
        (lambda t: t["runs"]["jem"].update(update="fast"), "runs.jem"),
        (lambda t: t["runs"]["jem"].update(adversary={"radius": 8, "steps": 7}), "adversary is for classifiers"),
    ],
)
def test_mistakes_are_one_clear_line(tree, break_it, says):
    for section in ("common", "jem"):  # the scale would overrule what the test breaks
        for key in ("lr", "epochs"):
            tree["scales"]["quick"][section].get("update", {}).pop(key, None)
    break_it(tree)
    with pytest.raises(params.ConfigError) as e:
        params.run("softmax" if "samples" in says else "jem", "quick", tree)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "run, section, change, says",
    [
        ("at", ("step", "progress"), {"first": 99}, "progress.first: 99 is beyond K: 25; expected at most K"),
        ("at-linear", ("step", "progress"), {"first": 2}, "first: 2 for kind linear, which begins at 0"),
        ("at", ("update",), {"nesterov": True}, "nesterov for adam"),
        ("softmax", ("update",), {"nesterov": True, "momentum": 0.0}, "nesterov for sgd with momentum 0"),
        (
            "jempp-m5",
            ("start",),
            {"augment": {"kind": "crop_flip"}},
            "start.augment of kind 'crop_flip' for start kind 'gaussians'",
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
        ("at", ("start",), {"augment": {"kind": "crop_flip", "fill": [300]}}, "runs.at.start.augment.fill"),
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
        assert run.augment.model_dump() | real == run.augment.model_dump() and run.augment.noise == 0, name
        assert run.start.augment.model_dump() | p0 == run.start.augment.model_dump(), name
        assert run.network.normalise == constants and run.initial is None, name
        assert run.update.nesterov == (name == "at-ood") and run.update.weight_decay == 0, name
        assert run.step.progress is None or run.step.progress.first == (10 if name == "at-cats" else 0), name
        for profile in ("smoke", "quick", "gpu"):
            run = params.run(name, profile)
            assert run.augment.kind == "none" and not run.start.augment and not run.network.normalise, (profile, name)
            assert not run.update.nesterov and (run.step.progress is None or not run.step.progress.first), (profile, name)


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
                "loss": {"generate": 0.0},
                "update": {"optimizer": "sgd", "lr": 0.1},
            }
        },
    }
    assert params.run("a", "quick", small).update.sam is None
    small["runs"]["a"]["update"]["sam"] = {"rho": 0.2}
    assert params.run("a", "quick", small).update.sam.rho == 0.1
