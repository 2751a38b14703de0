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
    ax.errorbar(at, values, yerr=[values - lows, highs - values], fmt="none", ecolor="grey", capsize=4, lw=1.5)
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
def landscape_lines(at, lines: dict, ylabel: str = "rise of mean E (nats)", common: str = "log", columns: int = 3,
                    xlabel: str = "step $a$ along a direction") -> plt.Figure:
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
    columns = min(columns, len(rises) + 1)
    rows = -(-(len(rises) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.3 * rows), squeeze=False)
    last = axes.flat[len(rises)]
    for i, ((label, rise), ax) in enumerate(zip(rises.items(), axes.flat)):
        colour = PALETTE[i % len(PALETTE)]
        ax.axhline(0, color="grey", lw=1)
        ax.plot(at, rise.T, color=colour, lw=2)
        ax.set(title=label, xlabel=xlabel, ylabel=ylabel)
        for k, one in enumerate(rise):
            name = label if k == 0 else None
            if common == "linear":
                last.plot(at, one, color=colour, lw=2, label=name)
                continue
            size = np.where(one == 0, np.nan, np.abs(one))                  # the centre has no logarithm
            last.plot(at, size, color=colour, lw=2, ls=(0, (2, 2)))
            last.plot(at, np.where(one > 0, size, np.nan), color=colour, lw=2, label=name)
    last.set(title="all, one scale", xlabel=xlabel, ylabel=f"|{ylabel}|" if common == "log" else ylabel, yscale=common)
    last.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for ax in axes.flat[len(rises) + 1:]:
        ax.set_axis_off()
    plt.close(fig)
    return fig


def landscape_surfaces(at, surfaces: dict, zlabel: str = "mean E (nats)", columns: int = 3, width: float = 4.6,
                       elev: float = 28, azim: float = -55) -> plt.Figure:
    """One 3D surface per model, each on its own z scale: the title gives the range, in the unit of zlabel.

    at: (K,), of both directions.   surfaces: label -> (K, K), [i, j] at at[i] d1 + at[j] d2 (`landscape.plane`).
    """
    a, b = np.meshgrid(np.asarray(at, float), np.asarray(at, float), indexing="ij")
    columns = min(columns, len(surfaces))
    rows = -(-len(surfaces) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, width * rows), squeeze=False,
                             subplot_kw={"projection": "3d"}, layout="none")
    fig.subplots_adjust(0.01, 0.03, 0.95, 0.93, wspace=0.08, hspace=0.14)
    for ax, (label, z) in zip(axes.flat, surfaces.items()):
        z = np.ma.masked_invalid(np.asarray(z, float))
        ax.plot_surface(a, b, z, cmap=HEAT, rcount=41, ccount=41, lw=0.2, edgecolor=(1, 1, 1, 0.35), antialiased=True)
        ax.set_title(f"{label}\nrange {z.max() - z.min():.3g}", y=0.98)
        ax.set(xlabel="$a_1$", ylabel="$a_2$")
        ax.set_zlabel(zlabel, labelpad=9)
        for axis, bins in ((ax.xaxis, 4), (ax.yaxis, 4), (ax.zaxis, 4)):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(bins))
            axis.pane.set_facecolor("white")
        ax.view_init(elev, azim)
        ax.set_box_aspect((1, 1, 0.8), zoom=0.88)
    for ax in axes.flat[len(surfaces):]:
        ax.set_axis_off()
    plt.close(fig)
    return fig
