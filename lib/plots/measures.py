"""What was measured of trained models: calibration, detection, robustness, accuracy against samples, speed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from lib.plots.theme import PALETTE, REAL, SAMPLE


def reliability_panels(panels: dict, width: float = 3.1) -> plt.Figure:
    """Reliability diagrams side by side. panels: title -> dict with `accuracy` and `count`, one number (or None) per
    bin of equal width. Bars: accuracy; orange line: where the images are; dashed: calibrated."""
    fig, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), 3.7), sharey=True, squeeze=False)
    for ax, (title, p) in zip(axes[0], panels.items(), strict=True):
        bins = len(p["accuracy"])
        heights = [np.nan if v is None else v for v in p["accuracy"]]
        ax.bar((np.arange(bins) + 0.5) / bins, heights, 1 / bins, color=PALETTE[0], edgecolor="white", label="accuracy")
        ax.stairs(
            np.array(p["count"][:bins]) / sum(p["count"]),
            np.linspace(0, 1, bins + 1),
            color=PALETTE[1],
            lw=2,
            label="share of images",
        )
        ax.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="calibrated")
        ax.set(xlabel="confidence", title=title, xlim=(0, 1), ylim=(0, 1))
    axes[0][0].set_ylabel("accuracy, share")
    axes[0][0].legend(loc="upper left", fontsize="small")
    plt.close(fig)
    return fig


def score_histograms(rows: dict, others, inside: str = "test images", xlabel: str = "log p(x) + log Z, nats") -> plt.Figure:
    """A score's histograms in and out of distribution: a row per model, a column per set of outsiders.
    rows: label -> dict with `edges` (bins + 1,) and `count`, a dict with 'inside' and each of `others` -> (bins,)."""
    fig, axes = plt.subplots(
        len(rows), len(others), figsize=(3.1 * len(others), 1.8 * len(rows) + 0.9), squeeze=False, sharex="row"
    )
    for row, (label, h) in zip(axes, rows.items(), strict=True):
        for ax, other in zip(row, others, strict=True):
            for key, colour, name in (("inside", REAL, inside), (other, SAMPLE, "outsiders")):
                share = np.array(h["count"][key]) / max(sum(h["count"][key]), 1)
                ax.stairs(share, h["edges"], fill=True, alpha=0.55, color=colour, label=name)
            ax.set_yticks([])
        row[0].set_ylabel(label.replace(" (", "\n("))
    for ax, other in zip(axes[0], others, strict=True):
        ax.set_title(other)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    plt.close(fig)
    return fig


def radius_curves(ax, curves: dict, title: str = "", xlabel: str = "radius, 255ths", bands: bool = True) -> None:
    """Accuracy over an attack's radius, %. curves: label -> dict with `radii`, `accuracy` in [0, 1] and, for the band,
    `low` and `high`; `style` (arguments of plot) where given. Markers tell coinciding curves apart."""
    for i, (label, c) in enumerate(curves.items()):
        style = {"color": PALETTE[i % len(PALETTE)], "marker": "osD^vPX"[i % 7], "ms": 7, "lw": 2} | c.get("style", {})
        ax.plot(c["radii"], 100 * np.array(c["accuracy"]), label=label, **style)
        if bands and "low" in c:
            ax.fill_between(
                c["radii"], 100 * np.array(c["low"]), 100 * np.array(c["high"]), color=style["color"], alpha=0.12
            )
    ax.set(title=title, xlabel=xlabel, ylim=(-2, 102))


def tradeoff(hybrid: dict[str, dict], unlabelled: dict[str, float], classifiers: dict[str, float]) -> plt.Figure:
    """Accuracy against FD-clf (log scale), with intervals: title -> metrics of a hybrid model. `unlabelled` have only an
    FD-clf, a tick below; `classifiers` only an accuracy, a dashed line."""
    fig, ax = plt.subplots(figsize=(8.5, 4.8))
    marks = "osD^vP*Xp<>"
    for i, (title, m) in enumerate(hybrid.items()):
        b = m["buffer"]
        x, y = b["fd_clf"], 100 * m["accuracy"]
        ax.errorbar(
            x,
            y,
            xerr=[[max(0, x - b["fd_low"])], [max(0, b["fd_high"] - x)]],
            yerr=[[y - 100 * m["accuracy_low"]], [100 * m["accuracy_high"] - y]],
            fmt=marks[i % len(marks)],
            ms=9,
            color=PALETTE[i % len(PALETTE)],
            ecolor="0.6",
            capsize=3,
            label=title,
        )
    for i, (title, y) in enumerate(classifiers.items()):
        ax.axhline(y, color="black", ls=("--", ":")[i % 2], lw=1.5, label=f"{title} (no samples)")
    ax.set(xscale="log", xlabel="FD-clf of samples (log scale), lower is better", ylabel="test accuracy, %")
    for title, x in unlabelled.items():
        ax.plot(
            [x],
            [0],
            marker=10,
            ms=13,
            color="black",
            ls="none",
            clip_on=False,
            transform=ax.get_xaxis_transform(),
            label=f"{title} (no labels)",
        )
    ax.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    plt.close(fig)
    return fig


def class_shares(classes, before, after, low, high, kinds, table) -> plt.Figure:
    """What a classifier calls images, in per cent. Left: shares (C,) of sources and of samples with their interval,
    against uniform. Right: of the samples from each kind of source, table (kinds, C), rows add up to 100."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(13.5, 4.2), gridspec_kw={"width_ratios": [1, 1.15]})
    at = np.arange(len(classes))
    left.bar(at, after, 0.75, color=SAMPLE, label="samples")
    left.errorbar(
        at, after, [np.maximum(after - low, 0), np.maximum(high - after, 0)], fmt="none", ecolor="black", capsize=3
    )
    left.plot(at, before, "_", color="black", ms=17, mew=3, label="their sources")
    left.axhline(100 / len(classes), color=REAL, ls="--", lw=2, label="data: uniform")
    left.set_xticks(at, classes, rotation=40, ha="right")
    left.set(ylabel="called so, % of images")
    left.legend()
    sns.heatmap(
        table,
        ax=right,
        cmap="Reds",
        vmin=0,
        vmax=max(50, table.max()),
        annot=True,
        fmt=".0f",
        cbar=False,
        linewidths=1,
        yticklabels=kinds,
    )
    right.set_xticks(at + 0.5, classes, rotation=40, ha="right")
    right.set_yticklabels(kinds, rotation=0)
    right.set(title="samples from each kind of source, % of the row", xlabel="")
    plt.close(fig)
    return fig


def benchmark(found: dict) -> plt.Figure:
    """What lib.bench measured: how many times faster than the plain transcription, where an update's time goes, and
    how images per second scale."""
    fig, (a, b, c) = plt.subplots(1, 3, figsize=(15, 4.2), width_ratios=[1.1, 1, 1.1])
    runs = found["runs"]
    at, ratio = np.arange(len(runs)), np.array([[r["ratio_low"], r["ratio"], r["ratio_high"]] for r in runs.values()]).T
    a.barh(at, ratio[1], xerr=np.abs(ratio[[0, 2]] - ratio[1]), color=PALETTE[0], height=0.65)
    for i, r in enumerate(runs.values()):
        a.text(0.1, i, f"{r['seconds']:.2f} s", color="white", va="center", fontsize=11)
    a.axvline(1, color="0.3", lw=1, ls=":")
    a.set(
        yticks=at,
        yticklabels=list(runs),
        xlabel="times as fast as the plain transcription",
        title=f"One update, {found['network']}, {found['data'].split(', ', 1)[1]}",
    )
    a.invert_yaxis()
    shown = ("data", "start", "chain, forward", "chain, backward", "loss, forward", "loss, backward", "update", "buffer")
    left = np.zeros(len(found["parts"]))
    for part, colour in zip(shown, sns.color_palette("colorblind", len(shown)), strict=True):
        width = np.array([max(0.0, p[part]) for p in found["parts"].values()])
        b.barh(list(found["parts"]), width, left=left, color=colour, height=0.5, label=part)
        left += width
    b.set(xlabel="seconds", title="Where an update's time goes")
    b.invert_yaxis()
    b.legend(ncols=2, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for what, marker in (("batch", "o"), ("width", "s"), ("M", "^"), ("pixels", "D")):
        own = [r for r in found["scaling"] if r["what"] == what]
        values, speed = [r["value"] for r in own], [r["images_per_second"] for r in own]
        c.plot(np.array(values) / min(values), speed, marker=marker, label=f"{what}: {', '.join(map(str, values))}")
    c.set(
        xscale="log",
        yscale="log",
        xlabel="as many times as the smallest",
        ylabel="images per second",
        title="Scaling of JEM++ (M=10)",
    )
    c.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    c.minorticks_off()
    c.legend(fontsize=10)
    return fig
