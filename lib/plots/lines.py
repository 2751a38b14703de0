"""Curves over training and along chains, dots and bars with intervals, histograms."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from lib.plots.theme import PALETTE, REAL, SAMPLE


def curves(
    tables: dict,
    y: str,
    x: str = "iteration",
    ylabel: str = "",
    xlabel: str = "",
    smooth: int = 1,
    ends: dict | None = None,
    ax=None,
    ylim=None,
    log: bool = False,
    dashed: str | None = None,
) -> plt.Figure:
    """One line per run. tables: label -> DataFrame with columns x and y. ends: label -> x at which a run diverged
    (marked with a cross). smooth: rows in a centred running mean. dashed: labels that contain it are drawn so,
    for curves that may lie on each other."""
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4))
    for i, (label, table) in enumerate(tables.items()):
        kept = table[[x, y]].dropna()
        values = kept[y].rolling(smooth, center=True, min_periods=1).mean() if smooth > 1 else kept[y]
        colour = PALETTE[i % len(PALETTE)]
        ax.plot(
            kept[x],
            values,
            color=colour,
            label=label,
            lw=2,
            marker="o" if len(kept) < 25 else None,
            ms=4,
            ls=(0, (2, 2)) if dashed and dashed in label else "-",
        )
        if ends and ends.get(label) is not None and len(kept):
            ax.plot([ends[label]], [values.iloc[-1]], "X", color=colour, ms=12, mec="black", clip_on=False)
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y, ylim=ylim)
    if log:
        ax.set_yscale("log")
    ax.legend()
    return ax.figure


def against_reference(tables: dict, y: str, reference: float, name: str, **keywords) -> plt.Figure:
    """`curves` with a dashed horizontal line at a known value."""
    fig = curves(tables, y, **keywords)
    fig.axes[0].axhline(reference, color="black", ls="--", lw=1.5, label=name)
    fig.axes[0].legend(loc="center right")
    plt.close(fig)
    return fig


def bars_with_intervals(labels, values, lows, highs, ylabel: str, ax=None, colours=None) -> plt.Figure:
    """Dots with intervals, one per run: differences smaller than the intervals are seen to be none."""
    if ax is None:
        _, ax = plt.subplots(figsize=(0.95 * len(labels) + 1.6, 3.6))
    at = np.arange(len(labels))
    values, lows, highs = (np.asarray(v, float) for v in (values, lows, highs))
    span = [np.maximum(values - lows, 0), np.maximum(highs - values, 0)]  # a basic interval of few images can miss
    ax.errorbar(at, values, yerr=span, fmt="none", ecolor="grey", capsize=4, lw=1.5)
    ax.scatter(at, values, color=colours or PALETTE[0], s=60, zorder=3)
    ax.set_xticks(at, labels, rotation=20, ha="right")
    ax.set_ylabel(ylabel)
    return ax.figure


def pairs_of_bars(labels, groups: dict, ylabel: str, title: str = "") -> plt.Figure:
    """Bars side by side, one group per label. groups: name -> one value per label, written above its bar."""
    fig, ax = plt.subplots(figsize=(1.9 * len(labels) + 2.2, 3.8))
    width, at = 0.8 / len(groups), np.arange(len(labels))
    for i, (name, values) in enumerate(groups.items()):
        drawn = ax.bar(at + (i - (len(groups) - 1) / 2) * width, values, width * 0.92, color=PALETTE[i], label=name)
        ax.bar_label(drawn, fmt="%.2f", fontsize="small")
    ax.set_xticks(at, labels)
    ax.margins(y=0.1)
    ax.set(ylabel=ylabel, title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    plt.close(fig)
    return fig


def chain_lines(ax, lines: dict, ylabel: str, xlabel: str = "step of the chain", x=None) -> None:
    """Quantities along a chain on one axis: label -> (K,) or (K, n); of n values the median is drawn and the middle half
    shaded. x (K,): 0, 1, ... where it is left out."""
    for i, (label, values) in enumerate(lines.items()):
        values = np.asarray(values, float)
        at = np.arange(len(values)) if x is None else x
        if values.ndim == 2:
            low, values, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
            ax.fill_between(at, low, high, color=PALETTE[i], alpha=0.15)
        ax.plot(at, values, color=PALETTE[i], lw=2, label=label, marker="o" if len(at) < 13 else None)
    if x is None:
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    ax.set(xlabel=xlabel, ylabel=ylabel)


def along_chain(panels: dict, xlabel: str = "step of the chain", mark: int | None = None) -> plt.Figure:
    """Quantities along a chain, one panel each. panels: ylabel -> {label: (K + 1,) or (K + 1, n)}; of n values the
    median is drawn and the middle half shaded. mark: a step to mark with a dotted line."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 3.8), squeeze=False)
    for ax, (ylabel, lines) in zip(axes[0], panels.items(), strict=True):
        chain_lines(ax, lines, ylabel, xlabel)
        if mark is not None:
            ax.axvline(mark, color="grey", ls=":", lw=1.5)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes[0][0].legend()
    plt.close(fig)
    return fig


def along_path(
    ax, paths: dict, xlabel: str, ylabel: str, mark: float | None = None, level: tuple | None = None, log: bool = True
) -> None:
    """A number measured now and then along chains: label -> (x, y), a dot each. mark: (x) where generation stops;
    level: (height, name) of a line to compare with."""
    for i, (label, (x, y)) in enumerate(paths.items()):
        ax.plot(x, y, "osD^v"[i % 5] + "-", lw=2, ms=6, color=PALETTE[i], label=label)
    if mark is not None:
        ax.axvline(mark, color="grey", ls=":", lw=1.5)
    if level:
        ax.axhline(level[0], color="black", ls="--", lw=1.5, label=level[1])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def overlaid(ax, groups: dict, xlabel: str, bins: int = 30) -> None:
    """Histograms of several sets of numbers on common bins, as shares: label -> (n,), at most four labels."""
    every = np.concatenate([np.asarray(v, float) for v in groups.values()])
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    for label, values, colour in zip(groups, groups.values(), (REAL, SAMPLE, PALETTE[0], PALETTE[1]), strict=False):
        ax.hist(values, edges, weights=np.full(len(values), 100 / len(values)), alpha=0.55, color=colour, label=label)
    ax.set(xlabel=xlabel, ylabel="share of images, %")
