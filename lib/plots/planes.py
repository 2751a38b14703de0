"""Energies, samplers and adversarial training in two dimensions (notebooks 01, 02, 04, 10)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from lib import files
from lib.parts.energy import gradient
from lib.plots.theme import HEAT, PALETTE, REAL


def lattice(box: float = 3.0, n: int = 121) -> tuple[np.ndarray, Tensor]:
    """Points of a square grid: the axis (n,) and the points (n * n, 2), for maps of 2D functions."""
    axis = np.linspace(-box, box, n, dtype=np.float32)
    a, b = np.meshgrid(axis, axis)
    return axis, torch.from_numpy(np.stack([a.ravel(), b.ravel()], 1))


def energy_map(
    E,
    ax=None,
    box: float = 3.0,
    points: dict | None = None,
    field: bool = False,
    title: str = "",
    density: bool = False,
    label: str | None = None,
    levels: int = 20,
) -> plt.Figure:
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
    for (name, p), colour in zip((points or {}).items(), colours, strict=False):
        ax.scatter(*np.asarray(p).T, s=7, color=colour, edgecolor="black", linewidth=0.3, label=name)
    if points:
        ax.legend(loc="upper right", frameon=True, fontsize="small")
    ax.set(xlim=(-box, box), ylim=(-box, box), xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title=title)
    return ax.figure


def maps(panels: list[dict], width: float = 4.6, **common) -> plt.Figure:
    """A row of `energy_map`s: one dict of its arguments per panel; `common` holds for all. The figure is closed,
    so that a cell ending in it shows it once."""
    fig, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), width * 0.8), squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        energy_map(ax=ax, **{**common, **panel})
        sets = len({**common, **panel}.get("points") or {})
        if sets:  # one set needs no name; several are named below the map
            ax.get_legend().remove()
        if sets > 1:
            ax.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.18),
                ncols=sets,
                markerscale=2.5,
                facecolor="0.85",
                frameon=True,
                fontsize="small",
            )
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
    left.set(
        xlabel=r"step size $\alpha\,/\,(2/\lambda_{\max})$",
        ylabel="stationary variance",
        ylim=(0, 13 * target),
        title="variance, stiffest direction",
    )
    left.legend(loc="upper left")
    for i, (name, path) in enumerate(paths.items()):
        right.plot(np.abs(path) + 1e-3, lw=1.5, color=PALETTE[i], label=name)
    right.set(xlabel="step", ylabel="distance from the mode", yscale="log", title="one chain, stiffest direction")
    right.legend(loc="upper left")
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


DOTS = {
    "data": dict(color=REAL, s=9, lw=0.3),
    "$p_0$": dict(color="white", s=11, lw=0.5),
    "perturbed $p_0$": dict(color=PALETTE[8], s=13, lw=0.5),
    "unvisited maximum": dict(color=PALETTE[4], s=170, lw=1, marker="*"),
}


def decision_maps(
    panels: list[dict], columns: int = 4, width: float = 3.6, box: float = 3.0, field: bool = True
) -> plt.Figure:
    """Maps of D = sigmoid(f) on one scale: white is 1/2 (also a black line), red calls a point data, blue perturbed.

    panels: dicts of f (n * n,) on `lattice(box, n)`, title, and points: a name of DOTS -> (m, 2).   field: arrows
    along the gradient of D, all of one length.
    """
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(width * columns + 0.7, width * rows), squeeze=False, sharex=True, sharey=True
    )
    handles = {}
    for ax, panel in zip(axes.flat, panels, strict=False):
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
    times = [1000 // fps] * (len(pages) - 1) + [2500]  # the last one stays
    out = io.BytesIO()
    pages[0].save(out, format="GIF", save_all=True, append_images=pages[1:], duration=times, loop=0, optimize=True)
    files.write_bytes(Path(path), out.getvalue())
    return out.getvalue()


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
