"""Energy landscapes and sharpness-aware minimisation (notebook 07)."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from lib.plots.theme import HEAT, PALETTE


def landscape_lines(
    at,
    lines: dict,
    quantity: str = "mean E",
    unit: str = "nats",
    common: str = "log",
    columns: int | None = None,
    xlabel: str = "step $a$ along a direction",
) -> plt.Figure:
    """One panel per model, each with its own y axis, and a last one with all on one.

    at: (K,), with 0 in it.   lines: label -> values (K,) or (directions, K); drawn is their rise over the centre.
    common: 'log' shows |rise| (dashed where it is a fall), 'linear' the rise itself.
    Raises: ValueError where `at` has no 0 to measure from, or for another `common`.
    """
    at = np.asarray(at, float)
    if np.abs(at).min() > 1e-6 or common not in ("log", "linear"):
        raise ValueError(
            f"at from {at.min():g} to {at.max():g}, common {common!r}: expected a grid with 0 in it, "
            "such as torch.linspace(-1, 1, 21), and 'log' or 'linear'"
        )
    centre, rises = np.abs(at).argmin(), {}
    for label, values in lines.items():
        values = np.atleast_2d(np.asarray(values, float))
        rises[label] = values - values[:, centre : centre + 1]
    columns = columns or (2 if len(rises) in (1, 3) else 3)
    rows = -(-(len(rises) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows + 0.3), squeeze=False)
    last = axes.flat[len(rises)]
    for i, ((label, rise), ax) in enumerate(zip(rises.items(), axes.flat, strict=False)):
        colour = PALETTE[i % len(PALETTE)]
        ax.axhline(0, color="grey", lw=1)
        ax.plot(at, rise.T, color=colour, lw=2)
        ax.set(title=label, xlabel=xlabel, ylabel=f"rise of {quantity} ({unit})")
        for k, one in enumerate(rise):
            name = label if k == 0 else None
            if common == "linear":
                last.plot(at, one, color=colour, lw=2, label=name)
                continue
            size = np.where(one == 0, np.nan, np.abs(one))  # the centre has no logarithm
            last.plot(at, size, color=colour, lw=2, ls=(0, (2, 2)))
            last.plot(at, np.where(one > 0, size, np.nan), color=colour, lw=2, label=name)
    last.set(title="all, one scale", xlabel=xlabel, ylabel=f"rise of {quantity} ({unit})", yscale=common)
    if common == "log":  # without a floor, a crossing of zero sets the scale
        last.set(title="all, one scale (dashed: falls)", ylabel=f"|rise| ({unit})")
        largest = [np.nanmax(np.abs(rise[np.isfinite(rise)]), initial=0) for rise in rises.values()]
        last.set_ylim(bottom=min([m for m in largest if m > 0], default=1.0) / 100)
    fig.legend(loc="outside lower center", ncols=min(len(rises), 2 * columns))
    for ax in axes.flat[len(rises) + 1 :]:
        ax.set_axis_off()
    plt.close(fig)
    return fig


def landscape_surfaces(
    at,
    surfaces: dict,
    quantity: str = "mean E",
    unit: str = "nats",
    columns: int = 3,
    width: float = 4.6,
    elev: float = 28,
    azim: float = -55,
) -> plt.Figure:
    """One 3D surface per model, each on its own z scale: the title gives its range, maximum minus minimum.

    at: (K,), of both directions.   surfaces: label -> (K, K), [i, j] at at[i] d1 + at[j] d2 (`landscape.plane`).
    """
    a, b = np.meshgrid(np.asarray(at, float), np.asarray(at, float), indexing="ij")
    columns = min(columns, len(surfaces))
    rows = -(-len(surfaces) // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, 0.92 * width * rows),
        squeeze=False,
        subplot_kw={"projection": "3d"},
        layout="none",
    )
    fig.subplots_adjust(0, 0.04, 1 - 0.2 / columns, 1 - 0.14 / rows, wspace=0.08, hspace=0.2)
    for ax, (label, z) in zip(axes.flat, surfaces.items(), strict=False):
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
    for ax in axes.flat[len(surfaces) :]:
        ax.set_axis_off()
    plt.close(fig)
    return fig


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
    ax.plot(
        [-a, a, a, -a, -a], [-b, -b, b, b, -b], color="grey", ls="--", lw=1.5, label=r"$\|T^{-1}\epsilon\|_\infty = \rho$"
    )
    x, y = np.meshgrid(np.linspace(-1.3 * a, 1.3 * a, 50), np.linspace(-1.3 * a, 1.3 * a, 50))
    ax.contour(x, y, g[0] * x + g[1] * y, levels=15, colors="0.75", linewidths=0.8, linestyles="-")
    for i, (name, e) in enumerate(steps.items()):
        ax.annotate("", xy=e, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[i], "lw": 3})
        ax.plot([], [], color=PALETTE[i], lw=3, label=name)
    ax.set(
        xlabel=r"$\epsilon_1$",
        ylabel=r"$\epsilon_2$",
        aspect="equal",
        xlim=(-1.2 * a, 1.2 * a),
        ylim=(-1.2 * b, max(1.2 * b, 1.1 * max(e[1] for e in steps.values()))),
    )
    ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    plt.close(fig)
    return fig


def sharpness_curves(radii, panels: dict) -> plt.Figure:
    """What SAM climbs: the rise of the training loss at the worst point, to first order, over the radius.
    panels: title -> {label: (batches, len(radii))}; the mean over batches and its 95 % interval; both axes logarithmic."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.7), squeeze=False)
    for ax, (title, pair) in zip(axes[0], panels.items(), strict=True):
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
        for ax, key, scale in zip(axes[:, i], ("accuracy", "fd"), (100, 1), strict=True):
            value, low, high = (scale * np.array([r[key][k] for r in rows], float) for k in range(3))
            ax.errorbar(
                rho,
                value,
                [np.maximum(value - low, 0), np.maximum(high - value, 0)],
                fmt="o-",
                lw=2,
                ms=7,
                capsize=4,
                color=PALETTE[i],
            )
            ax.plot(
                rho[np.isnan(value)],
                np.full(np.isnan(value).sum(), 0.05),
                "X",
                ms=12,
                color=PALETTE[3],
                mec="black",
                transform=ax.get_xaxis_transform(),
            )
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
