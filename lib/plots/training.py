"""AT-EBM's training: starts, steps, growing K, R1, overflow (notebook 11)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from lib.plots.images import show_tiles
from lib.plots.lines import bars_with_intervals, chain_lines, curves
from lib.plots.theme import HEAT, PALETTE, REAL, SAMPLE


def starts(labels, groups: dict, grid, rows, columns, own) -> plt.Figure:
    """What p0 is worth. Left: FD-clf with intervals of each model (labels); groups: name -> (values, lows, highs), where the
    chains start. Right: of every row from every kind of start (columns), grid (rows, columns); own: (row, column) pairs to
    frame, where a model starts from what it was trained on."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), gridspec_kw={"width_ratios": [1, 1.4]})
    for i, ((name, (values, lows, highs)), shift) in enumerate(
        zip(groups.items(), np.linspace(-0.12, 0.12, len(groups)), strict=True)
    ):
        span = np.abs(np.array([lows, highs], float) - np.asarray(values, float))
        left.errorbar(
            np.arange(len(labels)) + shift,
            values,
            yerr=span,
            fmt="osD^"[i % 4],
            ms=9,
            capsize=5,
            lw=2,
            color=PALETTE[i],
            label=name,
        )
    left.set_xticks(range(len(labels)), labels)
    left.set(ylabel="FD-clf, lower is better", xlabel="$p_0$ in training", xlim=(-0.5, len(labels) - 0.5), ylim=(0, None))
    left.legend(loc="lower left")
    sns.heatmap(
        np.asarray(grid),
        annot=True,
        fmt=".1f",
        cmap=HEAT + "_r",
        ax=right,
        xticklabels=columns,
        yticklabels=rows,
        cbar_kws={"label": "FD-clf"},
    )
    for r, c in own:
        right.add_patch(plt.Rectangle((c, r), 1, 1, fill=False, ec=SAMPLE, lw=3.5, clip_on=False))
    right.set(xlabel="chains start from", title="every model from every start (framed: its own)")
    right.tick_params(length=0, rotation=0)
    plt.close(fig)
    return fig


def steps_and_quality(labels, values, lows, highs, at, lines: dict, marks) -> plt.Figure:
    """Left: FD-clf with intervals, one dot per training K. Right: lines label -> (len(at),) over the number of generation
    steps `at`; a star where that number is the run's own K (marks)."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    bars_with_intervals(labels, values, lows, highs, "FD-clf, lower is better", ax=left, colours=PALETTE[: len(labels)])
    left.set(ylim=(0, 1.12 * max(highs)), xlim=(-0.5, len(labels) - 0.5), title="all generate with the same number of steps")
    left.set_xticks(range(len(labels)), labels, rotation=0, ha="center")
    chain_lines(right, lines, "FD-clf", "PGD steps of generation", x=np.asarray(at))
    for i, (line, mark) in enumerate(zip(lines.values(), marks, strict=True)):
        right.plot(mark, np.interp(mark, at, line), "*", ms=19, color=PALETTE[i], mec="black")
    right.set(ylim=(0, None), title="star: the K of training")
    right.legend(title="trained with")
    plt.close(fig)
    return fig


def growing_k(quality: dict, training: dict, threshold: float) -> plt.Figure:
    """Progressive against fixed K. quality: label -> table with iteration, seconds, fd_clf; training: label -> table with
    iteration, K, auc; threshold: of the AUC rule."""
    fig, axes = plt.subplots(2, 2, figsize=(12, 7.2))
    for ax, x in zip(axes[0], ("iteration", "seconds"), strict=True):
        curves(quality, "fd_clf", x, "FD-clf, lower is better", ax=ax)
    axes[0, 1].set_xlabel("seconds of one undisturbed core")
    for ax, y, label in zip(
        axes[1], ("K", "auc"), ("K, PGD steps of an iteration", "AUC, real against perturbed"), strict=True
    ):
        curves(training, y, "iteration", label, smooth=3, ax=ax)
    low, high = axes[1, 1].get_ylim()  # the rule's line and its name in view, whatever the AUC is
    axes[1, 1].set_ylim(min(low, threshold - 0.05), max(high, threshold + 0.1))
    axes[1, 1].axhline(threshold, color="black", ls=":", lw=1.5)
    axes[1, 1].annotate(
        "K rises above this",
        (0.99, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize="small",
    )
    handles, names = axes[0, 0].get_legend_handles_labels()
    for ax in axes.flat:
        ax.get_legend().remove()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    plt.close(fig)
    return fig


def r1_effect(rows: dict, columns: int = 8) -> plt.Figure:
    """R1's effect, a row per setting. rows: title -> {label: dict of table (iteration, detection_accuracy, share), starts
    and ends, uint8 (n, C, H, W)}, two labels. Accuracy of D, distance over K alpha, and starts above ends for both."""
    fig, axes = plt.subplots(
        len(rows), 4, figsize=(16, 3.5 * len(rows)), squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1.15, 1.15]}
    )
    for row, (title, runs) in zip(axes, rows.items(), strict=True):
        tables = {label: r["table"] for label, r in runs.items()}
        curves(tables, "detection_accuracy", ylabel="accuracy of D at 1/2", smooth=3, ax=row[0], ylim=(0.4, 1.02))
        curves(tables, "share", ylabel=r"distance / $K\alpha$", smooth=3, ax=row[1], ylim=(0, 1.02))
        row[0].set_title(title)
        row[1].get_legend().remove()
        for ax, (label, r) in zip(row[2:], runs.items(), strict=True):
            n = 2 * columns  # two rows of starts, each above its ends
            pairs = torch.stack([r["starts"][:n].unflatten(0, (2, columns)), r["ends"][:n].unflatten(0, (2, columns))], 1)
            show_tiles(ax, pairs.flatten(0, 2), columns, f"{label}: starts above ends")
    plt.close(fig)
    return fig


def overflow(recorded: dict, live: dict, limit: float, f, weights: dict) -> plt.Figure:
    """Two objectives. recorded and live: label -> table with iteration, loss, size (mean |f|), on log axes; limit: the
    loss at which a run counts as diverged; weights: at most three labels -> (len(f),), of a sample's gradient over f."""
    fig, axes = plt.subplots(1, 3, figsize=(15.5, 4.3))
    for ax, tables, title in zip(axes[:2], (recorded, live), ("the runs", "live: a higher rate"), strict=True):
        for (label, t), colour in zip(tables.items(), (PALETTE[3], PALETTE[0]), strict=True):
            ax.plot(t["iteration"], t["loss"].abs(), color=colour, lw=2, label=f"{label}: |loss|")
            ax.plot(t["iteration"], t["size"], color=colour, lw=2, ls=(0, (2, 1)), label=f"{label}: mean |f(x)|")
        ax.axhline(limit, color="black", ls=":", lw=1.5, label="counts as diverged")
        ax.set(xlabel="iteration", yscale="log", title=title)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5)
    for (label, w), style in zip(weights.items(), ("-", "-", "--"), strict=False):
        axes[2].plot(f, w, ls=style, lw=2.5, label=label, color={"real": REAL, "pert": SAMPLE}.get(label[:4], "black"))
    axes[2].set(xlabel="f(x)", ylabel=r"weight of $\nabla_\theta f$", title="Eq. 14 against Eq. 2")
    axes[2].legend(fontsize="small", loc="center left", bbox_to_anchor=(0, 0.62))
    plt.close(fig)
    return fig
