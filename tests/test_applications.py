"""Out-of-distribution sets and the summary of a classifier's side benefits."""

import numpy as np
import pytest
import torch

from lib import applications, data, evaluate, params, sources
from lib.parts.networks import WideResNet


@pytest.fixture
def prepared(monkeypatch):
    splits = {role: sources.prepare(params.data("smoke", role)) for role in ("primary", "second", "faces", "cats", "church")}
    monkeypatch.setattr(data, "load", lambda profile, role="primary": splits[role])
    return splits


def test_ood_sets_fit_the_data_and_are_not_the_data(prepared):
    sets = applications.ood_sets("smoke", "primary", 40)
    assert list(sets) == ["MNIST", "Interpolated", "Dead leaves", "Uniform noise"]
    own = {x.numpy().tobytes() for x in prepared["primary"].x_train} | {
        x.numpy().tobytes() for x in prepared["primary"].x_test
    }
    for name, x in sets.items():
        assert x.shape == (40, 1, 8, 8) and x.dtype == torch.uint8, name
        assert not own & {i.numpy().tobytes() for i in x}, name


def test_detection_and_robustness_have_the_promised_form(prepared):
    torch.manual_seed(0)
    model, split = WideResNet(10, 1, channels=1).eval(), prepared["primary"]
    trained = evaluate.Trained(params.run("jempp-m5", "smoke"), 0, model, None, {}, {}, None)
    d = applications.detection(trained, split.x_test, applications.ood_sets("smoke", "primary", 30))
    for scores in d["auroc"].values():
        for s in scores.values():
            assert 0 <= s["low"] <= s["value"] <= s["high"] <= 1
    assert all(sum(c) == n for c, n in zip(d["histogram"]["count"].values(), d["images"].values()))
    r = applications.robustness(model, split.x_test[:20], split.y_test[:20], {"steps": 2, "linf": [0, 8], "l2": [0]})
    clean = (model(data.to_range(split.x_test[:20])).argmax(1) == split.y_test[:20]).float().mean().item()
    assert r["linf"]["accuracy"][0] == pytest.approx(clean) == r["l2"]["accuracy"][0]
    assert np.all(np.array(r["linf"]["low"]) <= r["linf"]["accuracy"])


def test_attacked_outliers_pass_for_data_more_often(prepared):
    torch.manual_seed(0)
    split, outside = prepared["primary"], applications.ood_sets("smoke", "primary", 20)
    sizes = {"worst_case": {"images": 20, "steps": 8, "restarts": 1, "radius": 0.5}}
    for name, outputs, scores in (("jempp-m5", 10, 2), ("at", 1, 1)):
        model = WideResNet(10, 1, outputs, channels=1).eval()
        trained = evaluate.Trained(params.run(name, "smoke"), 0, model, None, {}, {}, None)
        found = applications.worst_case(trained, split.x_test, outside, sizes)["auroc"]
        assert len(found) == scores
        for by_kind in found.values():
            assert list(by_kind) == list(outside)
            assert all(0 <= v["worst"] <= v["standard"] <= 1 for v in by_kind.values())
            assert sum(v["standard"] - v["worst"] for v in by_kind.values()) > 0.2


def test_an_unknown_measurement_is_named():
    with pytest.raises(params.ConfigError, match="measure .'robustnes'.: expected some of robustness, ood"):
        applications.apply("softmax", ["robustnes"], "smoke")


@pytest.mark.parametrize("what", [["robustness"], ["ood", "purified"]])
def test_what_needs_classes_is_refused_where_there_are_none(what):
    with pytest.raises(params.ConfigError, match="of at: it has one logit and no classes; expected some of ood, worst_case"):
        applications.apply("at", what, "smoke")
