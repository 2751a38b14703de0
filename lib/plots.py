"""Every picture that the notebooks show, in one style: seaborn, colour-blind safe, legible when projected.

Functions take arrays and return a matplotlib figure; they neither load nor save.
"""
from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from torch import Tensor

from lib.energy import gradient

PALETTE = sns.color_palette("colorblind")
HEAT = "viridis"                 # perceptually uniform, readable in grey
REAL, SAMPLE = PALETTE[2], PALETTE[3]        # data green, samples red-orange, in every figure


def style() -> None:
    """Set the project's style; every notebook calls it once."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=1.05)
    matplotlib.rcParams.update({"figure.dpi": 80, "savefig.dpi": 120, "figure.constrained_layout.use": True,
                                "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
                                "legend.frameon": False, "image.interpolation": "nearest", "figure.autolayout": False})


# --------------------------------------------------------------------------------------------------- images
def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """uint8 (n, C, H, W) -> one picture (rows, columns, 3) with white gaps; a short last row is padded white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images.cpu().numpy()):
        r, k = divmod(i, columns)
        y, x = gap + r * (h + gap), gap + k * (w + gap)
        sheet[y:y + h, x:x + w] = np.broadcast_to(image.transpose(1, 2, 0), (h, w, 3))
    return sheet


def show_tiles(ax, images: Tensor, columns: int, title: str = "") -> None:
    """Draw a grid of uint8 images on an axis, without ticks."""
    ax.imshow(tile(images, columns))
    ax.set_axis_off()
    ax.set_title(title)


def grids(panels: dict[str, Tensor], columns: int = 10, width: float = 4.6) -> plt.Figure:
    """Several grids side by side: title -> uint8 images (n, C, H, W)."""
    rows = max(-(-len(p) // columns) for p in panels.values())
    fig, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), width * rows / columns + 0.35), squeeze=False)
    for ax, (title, images) in zip(axes[0], panels.items()):
        show_tiles(ax, images, columns, title)
    return fig


def class_grid(images: Tensor, labels: Tensor, names, columns: int = 10, title: str = "", ax=None) -> plt.Figure:
    """One row per class, its first `columns` images in the given order; the class's name stands at the left.
    A class with too few images leaves white places."""
    blank = torch.full_like(images[:1], 255)
    rows = []
    for c in range(len(names)):
        own = images[labels == c][:columns]
        rows.append(torch.cat([own, blank.expand(columns - len(own), -1, -1, -1)]) if len(own) < columns else own)
    size, gap = images.shape[-1], 1
    if ax is None:
        _, ax = plt.subplots(figsize=(0.5 * columns + 1.2, 0.5 * len(names) + 0.4))
    ax.imshow(tile(torch.cat(rows), columns, gap))
    ax.set_yticks([gap + (size + gap) * (c + 0.5) for c in range(len(names))], names)
    ax.set_xticks([])
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    ax.set_title(title)
    return ax.figure


def filmstrip(frames: list[Tensor], titles: list[str], columns: int = 4, width: float = 1.9) -> plt.Figure:
    """A chain over time: one small grid per frame, left to right."""
    fig, axes = plt.subplots(1, len(frames), figsize=(width * len(frames), width + 0.45), squeeze=False)
    for ax, frame, title in zip(axes[0], frames, titles):
        show_tiles(ax, frame, columns, title)
    return fig


# --------------------------------------------------------------------------------------------------- curves
def curves(tables: dict, y: str, x: str = "iteration", ylabel: str = "", xlabel: str = "", smooth: int = 1,
           ends: dict | None = None, ax=None, ylim=None, log: bool = False, dashed: str | None = None) -> plt.Figure:
    """One line per run. tables: label -> DataFrame with columns x and y. ends: label -> x at which a run diverged
    (marked with a cross). smooth: rows in a centred running mean. dashed: labels that contain it are drawn so,
    for curves that may lie on each other."""
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4))
    for i, (label, table) in enumerate(tables.items()):
        kept = table[[x, y]].dropna()
        values = kept[y].rolling(smooth, center=True, min_periods=1).mean() if smooth > 1 else kept[y]
        colour = PALETTE[i % len(PALETTE)]
        ax.plot(kept[x], values, color=colour, label=label, lw=2, marker="o" if len(kept) < 25 else None, ms=4,
                ls=(0, (2, 2)) if dashed and dashed in label else "-")
        if ends and ends.get(label) is not None and len(kept):
            ax.plot([ends[label]], [values.iloc[-1]], "X", color=colour, ms=12, mec="black", clip_on=False)
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y, ylim=ylim)
    if log:
        ax.set_yscale("log")
    ax.legend()
    return ax.figure


# -------------------------------------------------------------------------------------------- two dimensions
def lattice(box: float = 3.0, n: int = 121) -> tuple[np.ndarray, Tensor]:
    """Points of a square grid: the axis (n,) and the points (n * n, 2), for maps of 2D functions."""
    axis = np.linspace(-box, box, n, dtype=np.float32)
    a, b = np.meshgrid(axis, axis)
    return axis, torch.from_numpy(np.stack([a.ravel(), b.ravel()], 1))


def energy_map(E, ax=None, box: float = 3.0, points: dict | None = None, field: bool = False, title: str = "",
               density: bool = False, label: str | None = None, levels: int = 20) -> plt.Figure:
    """Filled contours of a 2D energy E: (n, 2) -> (n,), or of the density exp(-E)/Z on the box.

    points: label -> (n, 2), at most four sets.   field: arrows along -dE/dx, the way a chain moves, all of one length.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4.2))
    axis, xy = lattice(box)
    with torch.no_grad():
        z = E(xy).double().numpy().reshape(len(axis), -1)
    if density:
        z = np.exp(-(z - z.min()))
        z /= z.sum() * (axis[1] - axis[0]) ** 2
    shown = ax.contourf(axis, axis, z, levels=levels, cmap=HEAT if density else HEAT + "_r")
    ax.figure.colorbar(shown, ax=ax, label=label or ("density p(x)" if density else "energy E(x)"), shrink=0.9)
    if field:
        _, coarse = lattice(box, 17)
        g = -gradient(E, coarse)
        g = (g / g.norm(dim=1, keepdim=True).clamp_min(1e-9)).numpy()
        ax.quiver(*coarse.numpy().T, *g.T, color="white", alpha=0.8, scale=32, width=0.004)
    colours = ("white", PALETTE[3], PALETTE[1], PALETTE[4])
    for (name, p), colour in zip((points or {}).items(), colours):
        ax.scatter(*np.asarray(p).T, s=7, color=colour, edgecolor="black", linewidth=0.3, label=name)
    if points:
        ax.legend(loc="upper right", frameon=True, fontsize="small")
    ax.set(xlim=(-box, box), ylim=(-box, box), xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title=title)
    return ax.figure


def bars_with_intervals(labels, values, lows, highs, ylabel: str, ax=None, colours=None) -> plt.Figure:
    """Dots with intervals, one per run: differences smaller than the intervals are seen to be none."""
    if ax is None:
        _, ax = plt.subplots(figsize=(0.95 * len(labels) + 1.6, 3.6))
    at = np.arange(len(labels))
    values, lows, highs = (np.asarray(v, float) for v in (values, lows, highs))
    span = [np.maximum(values - lows, 0), np.maximum(highs - values, 0)]        # a basic interval of few images can miss
    ax.errorbar(at, values, yerr=span, fmt="none", ecolor="grey", capsize=4, lw=1.5)
    ax.scatter(at, values, color=colours or PALETTE[0], s=60, zorder=3)
    ax.set_xticks(at, labels, rotation=20, ha="right")
    ax.set_ylabel(ylabel)
    return ax.figure


def maps(panels: list[dict], width: float = 4.6, **common) -> plt.Figure:
    """A row of `energy_map`s: one dict of its arguments per panel; `common` holds for all. The figure is closed,
    so that a cell ending in it shows it once."""
    fig, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), width * 0.8), squeeze=False)
    for ax, panel in zip(axes[0], panels):
        energy_map(ax=ax, **{**common, **panel})
        sets = len({**common, **panel}.get("points") or {})
        if sets:                                            # one set needs no name; several are named below the map
            ax.get_legend().remove()
        if sets > 1:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=sets, markerscale=2.5, facecolor="0.85",
                      frameon=True, fontsize="small")
    plt.close(fig)
    return fig


def step_sizes(alphas, measured, target: float, limit: float, paths: dict) -> plt.Figure:
    """The unadjusted Langevin chain on a quadratic. Left: stationary variance along the stiffest direction against
    alpha / limit, closed form target / (1 - alpha / limit) and measured dots. Right: paths label -> (K,), one chain each."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    u = np.linspace(0, 0.95, 200)
    left.plot(u, target / (1 - u), color=PALETTE[0], lw=2, label="closed form")
    left.plot(np.asarray(alphas) / limit, measured, "o", color=PALETTE[3], ms=7, label="measured")
    left.axhline(target, color="grey", ls="--", lw=1.5, label="true variance")
    left.axvline(1, color="black", ls=":", lw=1.5, label="stability limit")
    left.set(xlabel=r"step size $\alpha\,/\,(2/\lambda_{\max})$", ylabel="stationary variance", ylim=(0, 13 * target),
             title="variance, stiffest direction")
    left.legend(loc="upper left")
    for i, (name, path) in enumerate(paths.items()):
        right.plot(np.abs(path) + 1e-3, lw=1.5, color=PALETTE[i], label=name)
    right.set(xlabel="step", ylabel="distance from the mode", yscale="log", title="one chain, stiffest direction")
    right.legend(loc="upper left")
    plt.close(fig)
    return fig


def against_reference(tables: dict, y: str, reference: float, name: str, **keywords) -> plt.Figure:
    """`curves` with a dashed horizontal line at a known value."""
    fig = curves(tables, y, **keywords)
    fig.axes[0].axhline(reference, color="black", ls="--", lw=1.5, label=name)
    fig.axes[0].legend(loc="center right")
    plt.close(fig)
    return fig


def loss_and_likelihood(losses, nll, floor: float) -> plt.Figure:
    """Left: the contrastive loss (n,) per iteration. Right: the exact negative log-likelihood, nll (m, 2) with columns
    iteration and value, and the data's entropy, which no model goes below."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.plot(losses, color=PALETTE[0], lw=0.8)
    left.axhline(0, color="black", lw=1)
    left.set(xlabel="iteration", ylabel="contrastive loss", title="what the optimiser is given")
    right.plot(*np.asarray(nll).T, color=PALETTE[0], lw=2, label="exact NLL (quadrature)")
    right.axhline(floor, color="black", ls="--", lw=1.5, label="entropy of the data")
    right.set(xlabel="iteration", ylabel="nats", title="what it minimises")
    right.legend(loc="upper right")
    plt.close(fig)
    return fig


# ------------------------------------------------------------------------------------------------- landscapes
def landscape_lines(at, lines: dict, quantity: str = "mean E", unit: str = "nats", common: str = "log",
                    columns: int | None = None, xlabel: str = "step $a$ along a direction") -> plt.Figure:
    """One panel per model, each with its own y axis, and a last one with all on one.

    at: (K,), with 0 in it.   lines: label -> values (K,) or (directions, K); drawn is their rise over the centre.
    common: 'log' shows |rise| (dashed where it is a fall), 'linear' the rise itself.
    Raises: ValueError where `at` has no 0 to measure from, or for another `common`.
    """
    at = np.asarray(at, float)
    if np.abs(at).min() > 1e-6 or common not in ("log", "linear"):
        raise ValueError(f"at from {at.min():g} to {at.max():g}, common {common!r}: expected a grid with 0 in it, "
                         "such as torch.linspace(-1, 1, 21), and 'log' or 'linear'")
    centre, rises = np.abs(at).argmin(), {}
    for label, values in lines.items():
        values = np.atleast_2d(np.asarray(values, float))
        rises[label] = values - values[:, centre:centre + 1]
    columns = columns or (2 if len(rises) in (1, 3) else 3)
    rows = -(-(len(rises) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows + 0.3), squeeze=False)
    last = axes.flat[len(rises)]
    for i, ((label, rise), ax) in enumerate(zip(rises.items(), axes.flat)):
        colour = PALETTE[i % len(PALETTE)]
        ax.axhline(0, color="grey", lw=1)
        ax.plot(at, rise.T, color=colour, lw=2)
        ax.set(title=label, xlabel=xlabel, ylabel=f"rise of {quantity} ({unit})")
        for k, one in enumerate(rise):
            name = label if k == 0 else None
            if common == "linear":
                last.plot(at, one, color=colour, lw=2, label=name)
                continue
            size = np.where(one == 0, np.nan, np.abs(one))                  # the centre has no logarithm
            last.plot(at, size, color=colour, lw=2, ls=(0, (2, 2)))
            last.plot(at, np.where(one > 0, size, np.nan), color=colour, lw=2, label=name)
    last.set(title="all, one scale", xlabel=xlabel, ylabel=f"rise of {quantity} ({unit})", yscale=common)
    if common == "log":                                             # without a floor, a crossing of zero sets the scale
        last.set(title="all, one scale (dashed: falls)", ylabel=f"|rise| ({unit})")
        largest = [np.nanmax(np.abs(rise[np.isfinite(rise)]), initial=0) for rise in rises.values()]
        last.set_ylim(bottom=min([m for m in largest if m > 0], default=1.0) / 100)
    fig.legend(loc="outside lower center", ncols=min(len(rises), 2 * columns))
    for ax in axes.flat[len(rises) + 1:]:
        ax.set_axis_off()
    plt.close(fig)
    return fig


def landscape_surfaces(at, surfaces: dict, quantity: str = "mean E", unit: str = "nats", columns: int = 3,
                       width: float = 4.6, elev: float = 28, azim: float = -55) -> plt.Figure:
    """One 3D surface per model, each on its own z scale: the title gives its range, maximum minus minimum.

    at: (K,), of both directions.   surfaces: label -> (K, K), [i, j] at at[i] d1 + at[j] d2 (`landscape.plane`).
    """
    a, b = np.meshgrid(np.asarray(at, float), np.asarray(at, float), indexing="ij")
    columns = min(columns, len(surfaces))
    rows = -(-len(surfaces) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, 0.92 * width * rows), squeeze=False,
                             subplot_kw={"projection": "3d"}, layout="none")
    fig.subplots_adjust(0, 0.04, 1 - 0.2 / columns, 1 - 0.14 / rows, wspace=0.08, hspace=0.2)
    for ax, (label, z) in zip(axes.flat, surfaces.items()):
        z = np.ma.masked_invalid(np.asarray(z, float))
        ax.plot_surface(a, b, z, cmap=HEAT, rcount=41, ccount=41, lw=0.2, edgecolor=(1, 1, 1, 0.35), antialiased=True)
        span = float(z.max() - z.min())
        ax.set_title(f"{label}\nrange {span:{',.0f' if span >= 100 else '.3g'}} {unit}", y=1.0)
        ax.set(xlabel="step $a_1$", ylabel="step $a_2$", xticks=[a.min(), 0, a.max()], yticks=[a.min(), 0, a.max()])
        ax.set_zlabel(f"{quantity} ({unit})", labelpad=14)
        ax.tick_params(axis="z", pad=6)
        ax.zaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.pane.set_facecolor("white")
        ax.view_init(elev, azim)
        ax.set_box_aspect((1, 1, 0.8), zoom=0.95)
    for ax in axes.flat[len(surfaces):]:
        ax.set_axis_off()
    plt.close(fig)
    return fig


# ---------------------------------------------------------------------------- calibration, detection, robustness
def reliability_panels(panels: dict, width: float = 3.1) -> plt.Figure:
    """Reliability diagrams side by side. panels: title -> dict with `accuracy` and `count`, one number (or None) per
    bin of equal width. Bars: accuracy; orange line: where the images are; dashed: calibrated."""
    fig, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), 3.7), sharey=True, squeeze=False)
    for ax, (title, p) in zip(axes[0], panels.items()):
        bins = len(p["accuracy"])
        heights = [np.nan if v is None else v for v in p["accuracy"]]
        ax.bar((np.arange(bins) + 0.5) / bins, heights, 1 / bins, color=PALETTE[0], edgecolor="white", label="accuracy")
        ax.stairs(np.array(p["count"][:bins]) / sum(p["count"]), np.linspace(0, 1, bins + 1), color=PALETTE[1], lw=2,
                  label="share of images")
        ax.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="calibrated")
        ax.set(xlabel="confidence", title=title, xlim=(0, 1), ylim=(0, 1))
    axes[0][0].set_ylabel("accuracy, share")
    axes[0][0].legend(loc="upper left", fontsize="small")
    plt.close(fig)
    return fig


def score_histograms(rows: dict, others, inside: str = "test images", xlabel: str = "log p(x) + log Z, nats") -> plt.Figure:
    """A score's histograms in and out of distribution: a row per model, a column per set of outsiders.
    rows: label -> dict with `edges` (bins + 1,) and `count`, a dict with 'inside' and each of `others` -> (bins,)."""
    fig, axes = plt.subplots(len(rows), len(others), figsize=(3.1 * len(others), 1.8 * len(rows) + 0.9), squeeze=False,
                             sharex="row")
    for row, (label, h) in zip(axes, rows.items()):
        for ax, other in zip(row, others):
            for key, colour, name in (("inside", REAL, inside), (other, SAMPLE, "outsiders")):
                share = np.array(h["count"][key]) / max(sum(h["count"][key]), 1)
                ax.stairs(share, h["edges"], fill=True, alpha=0.55, color=colour, label=name)
            ax.set_yticks([])
        row[0].set_ylabel(label.replace(" (", "\n("))
    for ax, other in zip(axes[0], others):
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
            ax.fill_between(c["radii"], 100 * np.array(c["low"]), 100 * np.array(c["high"]), color=style["color"], alpha=0.12)
    ax.set(title=title, xlabel=xlabel, ylim=(-2, 102))


def captioned_rows(rows: dict, captions: dict, right: dict, width: float = 1.45) -> plt.Figure:
    """Images in rows with a caption under each, green where `right`, red elsewhere.
    rows: label -> uint8 (n, C, H, W);   captions: label -> n strings;   right: label -> n booleans."""
    n = len(next(iter(rows.values())))
    fig, axes = plt.subplots(len(rows), n, figsize=(width * n + 0.9, (width + 0.3) * len(rows)), squeeze=False)
    for row, (label, images) in zip(axes, rows.items()):
        for k, ax in enumerate(row):
            ax.imshow(tile(images[k:k + 1], 1, 0))
            ax.set(xticks=[], yticks=[])
            colour = PALETTE[2] if right[label][k] else PALETTE[3]
            ax.set_xlabel(captions[label][k], color=colour, fontsize="small", labelpad=2)
            for spine in ax.spines.values():
                spine.set(visible=True, color=colour, linewidth=2.5)
        row[0].set_ylabel(label)
    plt.close(fig)
    return fig


def along_chain(panels: dict, xlabel: str = "step of the chain", mark: int | None = None) -> plt.Figure:
    """Quantities along a chain, one panel each. panels: ylabel -> {label: (K + 1,) or (K + 1, n)}; of n values the
    median is drawn and the middle half shaded. mark: a step to mark with a dotted line."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 3.8), squeeze=False)
    for ax, (ylabel, lines) in zip(axes[0], panels.items()):
        chain_lines(ax, lines, ylabel, xlabel)
        if mark is not None:
            ax.axvline(mark, color="grey", ls=":", lw=1.5)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes[0][0].legend()
    plt.close(fig)
    return fig


def tradeoff(hybrid: dict[str, dict], unlabelled: dict[str, float], classifiers: dict[str, float]) -> plt.Figure:
    """Accuracy against FD-clf (log scale), with intervals: title -> metrics of a hybrid model. `unlabelled` have an FD-clf
    alone, a tick below; `classifiers` an accuracy alone, a dashed line."""
    fig, ax = plt.subplots(figsize=(8.5, 4.8))
    marks = "osD^vP*Xp<>"
    for i, (title, m) in enumerate(hybrid.items()):
        b = m["buffer"]
        x, y = b["fd_clf"], 100 * m["accuracy"]
        ax.errorbar(x, y, xerr=[[max(0, x - b["fd_low"])], [max(0, b["fd_high"] - x)]],
                    yerr=[[y - 100 * m["accuracy_low"]], [100 * m["accuracy_high"] - y]], fmt=marks[i % len(marks)], ms=9,
                    color=PALETTE[i % len(PALETTE)], ecolor="0.6", capsize=3, label=title)
    for i, (title, y) in enumerate(classifiers.items()):
        ax.axhline(y, color="black", ls=("--", ":")[i % 2], lw=1.5, label=f"{title} (no samples)")
    ax.set(xscale="log", xlabel="FD-clf of samples (log scale), lower is better", ylabel="test accuracy, %")
    for title, x in unlabelled.items():
        ax.plot([x], [0], marker=10, ms=13, color="black", ls="none", clip_on=False, transform=ax.get_xaxis_transform(),
                label=f"{title} (no labels)")
    ax.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    plt.close(fig)
    return fig


# ------------------------------------------------------------------------------- adversarial training in two dimensions
DOTS = {"data": dict(color=REAL, s=9, lw=0.3), "$p_0$": dict(color="white", s=11, lw=0.5),
        "perturbed $p_0$": dict(color=PALETTE[8], s=13, lw=0.5), "unvisited maximum": dict(color=PALETTE[4], s=170, lw=1, marker="*")}


def decision_maps(panels: list[dict], columns: int = 4, width: float = 3.6, box: float = 3.0, field: bool = True) -> plt.Figure:
    """Maps of D = sigmoid(f) on one scale: white is 1/2 (also a black line), red calls a point data, blue perturbed.

    panels: dicts of f (n * n,) on `lattice(box, n)`, title, and points: a name of DOTS -> (m, 2).   field: arrows
    along the gradient of D, all of one length.
    """
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns + 0.7, width * rows), squeeze=False, sharex=True, sharey=True)
    handles = {}
    for ax, panel in zip(axes.flat, panels):
        f = np.asarray(panel["f"], float).reshape(int(np.sqrt(len(panel["f"]))), -1)
        axis, D = np.linspace(-box, box, len(f)), 1 / (1 + np.exp(-f))
        shown = ax.contourf(axis, axis, D, levels=np.linspace(0, 1, 21), cmap="RdBu_r")
        ax.contour(axis, axis, D, levels=[0.5], colors="black", linewidths=1)
        if field:
            _arrows(ax, axis, f)
        for name, p in panel.get("points", {}).items():
            handles[name] = ax.scatter(*np.asarray(p).T, edgecolor="black", zorder=3, clip_on=False, **DOTS[name])
        ax.set(xlim=(-box, box), ylim=(-box, box), aspect="equal", title=panel.get("title", ""))
    plt.setp(axes[-1], xlabel="$x_1$"), plt.setp(axes[:, 0], ylabel="$x_2$")
    fig.colorbar(shown, ax=axes, label="D(x)", shrink=0.85, ticks=[0, 0.25, 0.5, 0.75, 1])
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, markerscale=1.3)
    plt.close(fig)
    return fig


def _arrows(ax, axis, f) -> None:
    """The direction of df/dx, which is that of dD/dx, on every n/12-th point of the lattice."""
    k = slice(len(f) // 24, None, len(f) // 12)
    v, u = (g[k, k] for g in np.gradient(f, axis, axis))
    size = np.maximum(np.hypot(u, v), 1e-12)
    ax.quiver(axis[k], axis[k], u / size, v / size, color="0.25", scale=26, width=0.005)


def animate(frames: list[list[dict]], path, width: float = 3.4, fps: int = 4) -> bytes:
    """`decision_maps` of each frame's panels as a GIF that repeats, 96 colours: written to path, returned as bytes."""
    import io

    from PIL import Image
    pages = []
    for panels in frames:
        fig, buffer = decision_maps(panels, len(panels), width, field=False), io.BytesIO()
        fig.savefig(buffer, dpi=75)
        pages.append(Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE))
    times = [1000 // fps] * (len(pages) - 1) + [2500]                    # the last one stays
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=times, loop=0, optimize=True)
    with open(path, "rb") as file:
        return file.read()


def support_and_density(x, support: float, outputs: dict, densities: dict) -> plt.Figure:
    """Two slices along x (n,), the support |x| <= support shaded. outputs: label -> D (n,). densities: label -> (n,), three
    at most, the true one first."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for ax in (left, right):
        ax.axvspan(-support, support, color="0.92", label="support of $p_{\\rm data}$")
        ax.set(xlabel="$x_1$, at $x_2 = 0$", xlim=(min(x), max(x)))
    left.axhline(0.5, color="black", lw=1, ls=":")
    for i, (name, D) in enumerate(outputs.items()):
        left.plot(x, D, lw=2.5, color=PALETTE[i], label=name)
    for i, (name, p) in enumerate(densities.items()):
        right.plot(x, p, lw=2.5, color=("black", PALETTE[0], PALETTE[2])[i], ls="-" if i else "--", label=name)
    left.set(ylabel="D(x)", ylim=(-0.02, 1.02), title="what is learned")
    right.set(ylabel="density on the slice", ylim=(0, None), title="$e^{f}/Z$, had it been a density")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="small")
    plt.close(fig)
    return fig


# ------------------------------------------------------------------------- rows of pictures, and curves below them
def row_panels(panels: dict, below: int = 0, width: float = 4.6, height: float = 3.3) -> plt.Figure:
    """Pictures in named rows, panels side by side: title -> {row name: uint8 (n, C, H, W)}; rows that all panels share
    are named once. `below`: that many empty axes under the pictures, the last of fig.axes, for curves."""
    sheets = {t: tile(torch.cat(list(rows.values())), len(next(iter(rows.values())))) for t, rows in panels.items()}
    top = width * max(s.shape[0] / s.shape[1] for s in sheets.values()) + 0.4
    fig = plt.figure(figsize=(width * len(panels) + 0.9, top + bool(below) * height))
    parts = fig.subfigures(1 + bool(below), 1, height_ratios=[top, height][:1 + bool(below)], squeeze=False)[:, 0]
    names = [tuple(rows) for rows in panels.values()]
    for k, (ax, (title, sheet)) in enumerate(zip(parts[0].subplots(1, len(panels), squeeze=False)[0], sheets.items())):
        ax.imshow(sheet)
        step = (sheet.shape[0] - 1) / len(names[k])
        shown = k == 0 or names[k] != names[0]
        ax.set(title=title, xticks=[], yticks=[step * (r + 0.5) + 0.5 for r in range(len(names[k]))] if shown else [])
        ax.set_yticklabels(names[k] if shown else [])
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
    if below:
        parts[1].subplots(1, below, squeeze=False)
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


def overlaid(ax, groups: dict, xlabel: str, bins: int = 30) -> None:
    """Histograms of several sets of numbers on common bins, as shares: label -> (n,)."""
    every = np.concatenate([np.asarray(v, float) for v in groups.values()])
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    for label, values, colour in zip(groups, groups.values(), (REAL, SAMPLE, PALETTE[0], PALETTE[1])):
        ax.hist(values, edges, weights=np.full(len(values), 100 / len(values)), alpha=0.55, color=colour, label=label)
    ax.set(xlabel=xlabel, ylabel="share of images, %")


# ------------------------------------------------------------------------------------- sharpness-aware minimisation
def sharp_and_flat(theta, losses: dict, paths: dict, radii, shares) -> plt.Figure:
    """One dimension. Left: losses label -> (K,) over theta (K,), a dot at each minimum. Middle: paths label ->
    (steps + 1,). Right: the share of starts that end in the flat minimum over the radius rho."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.9))
    for i, (name, values) in enumerate(losses.items()):
        values, colour = np.asarray(values), ("black", PALETTE[4])[i]
        left.plot(theta, values, color=colour, lw=2, ls=("-", "--")[i], label=name)
        left.plot(theta[values.argmin()], values.min(), "o", color=colour, ms=9)
    left.set(xlabel=r"$\theta$", ylabel="loss", title="dots: the minima")
    for i, (name, path) in enumerate(paths.items()):
        middle.plot(path, lw=2, color=PALETTE[i], label=name)
    middle.set(xlabel="step", ylabel=r"$\theta$", title="from one start")
    right.plot(radii, shares, "o-", lw=2, color=PALETTE[1])
    right.set(xlabel=r"radius $\rho$ (0: SGD)", ylabel="share that ends flat", ylim=(-0.04, 1.04), title="from many starts")
    for ax in (left, middle):
        ax.legend(fontsize="small", loc="best")
    plt.close(fig)
    return fig


def descents(u, v, z, paths: dict, sharpness: dict, floor: float, xlabel: str = "$u$", ylabel: str = "$v$") -> plt.Figure:
    """Two dimensions. Left: contours of z (len(v), len(u)), logarithmic, and paths label -> (steps + 1, 2) on them.
    Right: sharpness label -> (steps + 1,), and the least that there is (floor)."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
    shown = left.contourf(u, v, np.log10(z + 1e-3), levels=20, cmap=HEAT + "_r")
    fig.colorbar(shown, ax=left, label=r"$\log_{10} L$")
    for i, (name, path) in enumerate(paths.items()):
        left.plot(*np.asarray(path).T, lw=2.5, color=("white", PALETTE[1], PALETTE[4])[i % 3])
        left.plot(*path[-1], "osD"[i % 3], ms=10, color=("white", PALETTE[1], PALETTE[4])[i % 3], mec="black", label=name)
        right.plot(sharpness[name], lw=2, color=("black", PALETTE[1], PALETTE[4])[i % 3], label=name)
    left.plot(*next(iter(paths.values()))[0], "X", ms=11, color="white", mec="black", label="start")
    left.legend(frameon=True, facecolor="0.85", fontsize="small", loc="lower left")
    left.set(xlabel=xlabel, ylabel=ylabel, xlim=(u[0], u[-1]), ylim=(v[0], v[-1]), title="the path")
    right.axhline(floor, color="grey", ls="--", lw=1.5, label="flattest minimum")
    right.set(xlabel="step", ylabel=r"largest eigenvalue of $\nabla^2 L$", title="sharpness along the path", ylim=(0, None))
    right.legend()
    plt.close(fig)
    return fig


def ascent_steps(T, g, rho: float, steps: dict) -> plt.Figure:
    """ASAM's ball |T^-1 e| <= rho in two dimensions (an ellipse), the box of the maximum norm around it, and steps
    label -> (2,) from theta; straight lines: where the first-order loss g.e is constant."""
    T, g = np.asarray(T, float), np.asarray(g, float)
    fig, ax = plt.subplots(figsize=(7.4, 4.6))
    at, (a, b) = np.linspace(0, 2 * np.pi, 200), rho * T
    ax.plot(a * np.cos(at), b * np.sin(at), color="black", lw=2, label=r"$\|T^{-1}\epsilon\|_2 = \rho$")
    ax.plot([-a, a, a, -a, -a], [-b, -b, b, b, -b], color="grey", ls="--", lw=1.5, label=r"$\|T^{-1}\epsilon\|_\infty = \rho$")
    x, y = np.meshgrid(np.linspace(-1.3 * a, 1.3 * a, 50), np.linspace(-1.3 * a, 1.3 * a, 50))
    ax.contour(x, y, g[0] * x + g[1] * y, levels=15, colors="0.75", linewidths=0.8, linestyles="-")
    for i, (name, e) in enumerate(steps.items()):
        ax.annotate("", xy=e, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[i], "lw": 3})
        ax.plot([], [], color=PALETTE[i], lw=3, label=name)
    ax.set(xlabel=r"$\epsilon_1$", ylabel=r"$\epsilon_2$", aspect="equal", xlim=(-1.2 * a, 1.2 * a), ylim=(-1.2 * b, max(1.2 * b, 1.1 * max(e[1] for e in steps.values()))))
    ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    plt.close(fig)
    return fig


def climbs(radii, panels: dict) -> plt.Figure:
    """What SAM climbs: the rise of the training loss at the worst point, to first order, over the radius.
    panels: title -> {label: (batches, len(radii))}; the mean over batches and its 95 % interval; both axes logarithmic."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.7), squeeze=False)
    for ax, (title, pair) in zip(axes[0], panels.items()):
        for i, (label, rises) in enumerate(pair.items()):
            rises = np.asarray(rises, float)
            mean, half = rises.mean(0), 1.96 * rises.std(0, ddof=1) / len(rises) ** 0.5
            ax.plot(radii, mean, "os"[i % 2] + "-", lw=2, color=PALETTE[i], label=label)
            ax.fill_between(radii, np.maximum(mean - half, 1e-3 * np.abs(mean)), mean + half, color=PALETTE[i], alpha=0.15)
        ax.set(xscale="log", yscale="log", xlabel=r"radius $\rho$", title=title)
        ax.set_xticks(radii, [f"{r:g}" for r in radii])
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.legend(fontsize="small", loc="upper left")
    axes[0][0].set_ylabel("rise of the training loss (nats)")
    plt.close(fig)
    return fig


def radius_sweep(sweeps: dict, start: float) -> plt.Figure:
    """Accuracy and FD-clf over the radius, one column of panels per method: label -> list of dicts with rho, accuracy and
    fd (value, low, high each; NaN where the run diverged, which is marked with a cross). start: the FD-clf of p0."""
    fig, axes = plt.subplots(2, len(sweeps), figsize=(5.2 * len(sweeps), 5.6), sharey="row", sharex="col", squeeze=False)
    for i, (label, rows) in enumerate(sweeps.items()):
        rho = np.array([r["rho"] for r in rows])
        for ax, key, scale in zip(axes[:, i], ("accuracy", "fd"), (100, 1)):
            value, low, high = (scale * np.array([r[key][k] for r in rows], float) for k in range(3))
            ax.errorbar(rho, value, [np.maximum(value - low, 0), np.maximum(high - value, 0)], fmt="o-", lw=2, ms=7,
                        capsize=4, color=PALETTE[i])
            ax.plot(rho[np.isnan(value)], np.full(np.isnan(value).sum(), 0.05), "X", ms=12, color=PALETTE[3], mec="black",
                    transform=ax.get_xaxis_transform())
            ax.set(xscale="log", yscale="log" if key == "fd" else "linear", title=label if key == "accuracy" else "")
        axes[1, i].axhline(start, color="black", ls="--", lw=1.5, label="fresh draws from $p_0$")
        axes[1, i].set(xticks=rho, xticklabels=[f"{r:g}" for r in rho], xlabel=r"radius $\rho$ (a cross: diverged)")
        axes[1, i].xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes[1, i].yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes[1, i].yaxis.set(major_formatter="{x:g}", minor_formatter=matplotlib.ticker.NullFormatter())
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("FD-clf (log scale),\nlower is better")
    axes[1, 0].legend(fontsize="small")
    plt.close(fig)
    return fig


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


# ---------------------------------------------------------------------------------- adversarial training on images
def starts(labels, groups: dict, grid, rows, columns, own) -> plt.Figure:
    """What p0 is worth. Left: FD-clf with intervals of each model (labels); groups: name -> (values, lows, highs), where the
    chains start. Right: of every row from every kind of start (columns), grid (rows, columns); own: (row, column) pairs to
    frame, where a model starts from what it was trained on."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), gridspec_kw={"width_ratios": [1, 1.4]})
    for i, ((name, (values, lows, highs)), shift) in enumerate(zip(groups.items(), np.linspace(-0.12, 0.12, len(groups)))):
        span = np.abs(np.array([lows, highs], float) - np.asarray(values, float))
        left.errorbar(np.arange(len(labels)) + shift, values, yerr=span, fmt="osD^"[i % 4], ms=9, capsize=5, lw=2,
                      color=PALETTE[i], label=name)
    left.set_xticks(range(len(labels)), labels)
    left.set(ylabel="FD-clf, lower is better", xlabel="$p_0$ in training", xlim=(-0.5, len(labels) - 0.5), ylim=(0, None))
    left.legend(loc="lower left")
    sns.heatmap(np.asarray(grid), annot=True, fmt=".1f", cmap=HEAT + "_r", ax=right, xticklabels=columns, yticklabels=rows,
                cbar_kws={"label": "FD-clf"})
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
    bars_with_intervals(labels, values, lows, highs, "FD-clf, lower is better", ax=left, colours=PALETTE[:len(labels)])
    left.set(ylim=(0, 1.12 * max(highs)), xlim=(-0.5, len(labels) - 0.5), title="all generate with the same number of steps")
    left.set_xticks(range(len(labels)), labels, rotation=0, ha="center")
    chain_lines(right, lines, "FD-clf", "PGD steps of generation", x=np.asarray(at))
    for i, (line, mark) in enumerate(zip(lines.values(), marks)):
        right.plot(mark, np.interp(mark, at, line), "*", ms=19, color=PALETTE[i], mec="black")
    right.set(ylim=(0, None), title="star: the K of training")
    right.legend(title="trained with")
    plt.close(fig)
    return fig


def growing_k(quality: dict, training: dict, threshold: float) -> plt.Figure:
    """Progressive against fixed K. quality: label -> table with iteration, seconds, fd_clf; training: label -> table with
    iteration, K, auc; threshold: of the AUC rule."""
    fig, axes = plt.subplots(2, 2, figsize=(12, 7.2))
    for ax, x in zip(axes[0], ("iteration", "seconds")):
        curves(quality, "fd_clf", x, "FD-clf, lower is better", ax=ax)
    axes[0, 1].set_xlabel("seconds of one undisturbed core")
    for ax, y, label in zip(axes[1], ("K", "auc"), ("K, PGD steps of an iteration", "AUC, real against perturbed")):
        curves(training, y, "iteration", label, smooth=3, ax=ax)
    axes[1, 1].axhline(threshold, color="black", ls=":", lw=1.5)
    axes[1, 1].annotate("K rises above this", (0.99, threshold), xycoords=("axes fraction", "data"), xytext=(0, 4),
                        textcoords="offset points", ha="right", fontsize="small")
    handles, names = axes[0, 0].get_legend_handles_labels()
    for ax in axes.flat:
        ax.get_legend().remove()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    plt.close(fig)
    return fig


def travel(rows: dict, columns: int = 8) -> plt.Figure:
    """R1's effect, a row per setting. rows: title -> {label: dict of table (iteration, accuracy, share), starts and ends,
    uint8 (n, C, H, W)}, two labels. Accuracy of D, distance over K alpha, and starts above ends for both."""
    fig, axes = plt.subplots(len(rows), 4, figsize=(16, 3.5 * len(rows)), squeeze=False,
                             gridspec_kw={"width_ratios": [1, 1, 1.15, 1.15]})
    for row, (title, runs) in zip(axes, rows.items()):
        tables = {label: r["table"] for label, r in runs.items()}
        curves(tables, "accuracy", ylabel="accuracy of D at 1/2", smooth=3, ax=row[0], ylim=(0.4, 1.02))
        curves(tables, "share", ylabel=r"distance / $K\alpha$", smooth=3, ax=row[1], ylim=(0, 1.02))
        row[0].set_title(title)
        row[1].get_legend().remove()
        for ax, (label, r) in zip(row[2:], runs.items()):
            n = 2 * columns                                              # two rows of starts, each above its ends
            pairs = torch.stack([r["starts"][:n].unflatten(0, (2, columns)), r["ends"][:n].unflatten(0, (2, columns))], 1)
            show_tiles(ax, pairs.flatten(0, 2), columns, f"{label}: starts above ends")
    plt.close(fig)
    return fig


def overflow(recorded: dict, live: dict, limit: float, f, weights: dict) -> plt.Figure:
    """Two objectives. recorded and live: label -> table with iteration, loss, size (mean |f|), on log axes; limit: the
    loss at which a run counts as diverged; weights: label -> (len(f),), of a sample's gradient over f."""
    fig, axes = plt.subplots(1, 3, figsize=(15.5, 4.3))
    for ax, tables, title in zip(axes, (recorded, live), ("the runs", "live: a higher rate")):
        for (label, t), colour in zip(tables.items(), (PALETTE[3], PALETTE[0])):
            ax.plot(t["iteration"], t["loss"].abs(), color=colour, lw=2, label=f"{label}: |loss|")
            ax.plot(t["iteration"], t["size"], color=colour, lw=2, ls=(0, (2, 1)), label=f"{label}: mean |f(x)|")
        ax.axhline(limit, color="black", ls=":", lw=1.5, label="counts as diverged")
        ax.set(xlabel="iteration", yscale="log", title=title)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5)
    for (label, w), style in zip(weights.items(), ("-", "-", "--")):
        axes[2].plot(f, w, ls=style, lw=2.5, label=label, color={"real": REAL, "pert": SAMPLE}.get(label[:4], "black"))
    axes[2].set(xlabel="f(x)", ylabel=r"weight of $\nabla_\theta f$", title="Eq. 14 against Eq. 2")
    axes[2].legend(fontsize="small", loc="center left", bbox_to_anchor=(0, 0.62))
    plt.close(fig)
    return fig


# ------------------------------------------------------------------------------------- generation from p0 images
def sources_above(blocks: list[tuple[int, dict]], rows: tuple[str, ...] = ("$p_0$ images", "what they become"),
                  width: float = 13.0) -> plt.Figure:
    """Grids of sources above grids of what they become. blocks, drawn one below the other: (columns, title -> one uint8
    (n, C, H, W) for each of `rows`), `columns` images in a line."""
    lines = [-(-len(next(iter(part.values()))[0]) // columns) for columns, part in blocks]
    heights = [len(rows) * (width * n / (columns * len(part)) + 0.1) + 0.3 for n, (columns, part) in zip(lines, blocks)]
    fig = plt.figure(figsize=(width, sum(heights)))
    for sub, (columns, part) in zip(fig.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0], blocks):
        axes = sub.subplots(len(rows), len(part), squeeze=False)
        for column, (title, grid) in zip(axes.T, part.items()):
            for ax, images in zip(column, grid):
                ax.imshow(tile(images, columns))
                ax.set(xticks=[], yticks=[])
                sns.despine(ax=ax, left=True, bottom=True)
            column[0].set_title(title)
        for ax, name in zip(axes[:, 0], rows):
            ax.set_ylabel(name)
    plt.close(fig)
    return fig


def along_path(ax, paths: dict, xlabel: str, ylabel: str, mark: float | None = None, level: tuple | None = None,
               log: bool = True) -> None:
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


def class_shares(classes, before, after, low, high, kinds, table) -> plt.Figure:
    """What a classifier calls images, in per cent. Left: shares (C,) of sources and of samples with their interval,
    against uniform. Right: of the samples from each kind of source, table (kinds, C), rows add up to 100."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(13.5, 4.2), gridspec_kw={"width_ratios": [1, 1.15]})
    at = np.arange(len(classes))
    left.bar(at, after, 0.75, color=SAMPLE, label="samples")
    left.errorbar(at, after, [np.maximum(after - low, 0), np.maximum(high - after, 0)], fmt="none", ecolor="black", capsize=3)
    left.plot(at, before, "_", color="black", ms=17, mew=3, label="their sources")
    left.axhline(100 / len(classes), color=REAL, ls="--", lw=2, label="data: uniform")
    left.set_xticks(at, classes, rotation=40, ha="right")
    left.set(ylabel="called so, % of images")
    left.legend()
    sns.heatmap(table, ax=right, cmap="Reds", vmin=0, vmax=max(50, table.max()), annot=True, fmt=".0f", cbar=False,
                linewidths=1, yticklabels=kinds)
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
    a.set(yticks=at, yticklabels=list(runs), xlabel="times as fast as the plain transcription",
          title=f"One update, {found['network']}, {found['data'].split(', ', 1)[1]}")
    a.invert_yaxis()
    shown = ("data", "start", "chain, forward", "chain, backward", "loss, forward", "loss, backward", "update", "buffer")
    left = np.zeros(len(found["parts"]))
    for part, colour in zip(shown, sns.color_palette("colorblind", len(shown))):
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
    c.set(xscale="log", yscale="log", xlabel="as many times as the smallest", ylabel="images per second",
          title="Scaling of JEM++ (M=10)")
    c.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    c.minorticks_off()
    c.legend(fontsize=10)
    return fig
