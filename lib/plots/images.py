"""Grids of uint8 images (n, C, H, W): side by side, by class, along a chain, above and below each other."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from torch import Tensor

from lib.plots.theme import PALETTE


def tile(images: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """uint8 (n, C, H, W) -> one picture (rows, columns, 3) with white gaps; a short last row is padded white."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images.cpu().numpy()):
        r, k = divmod(i, columns)
        y, x = gap + r * (h + gap), gap + k * (w + gap)
        sheet[y : y + h, x : x + w] = np.broadcast_to(image.transpose(1, 2, 0), (h, w, 3))
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
    for ax, (title, images) in zip(axes[0], panels.items(), strict=True):
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
    for ax, frame, title in zip(axes[0], frames, titles, strict=True):
        show_tiles(ax, frame, columns, title)
    return fig


def row_panels(panels: dict, below: int = 0, width: float = 4.6, height: float = 3.3) -> plt.Figure:
    """Pictures in named rows, panels side by side: title -> {row name: uint8 (n, C, H, W)}; rows that all panels share
    are named once. `below`: that many empty axes under the pictures, the last of fig.axes, for curves."""
    sheets = {t: tile(torch.cat(list(rows.values())), len(next(iter(rows.values())))) for t, rows in panels.items()}
    top = width * max(s.shape[0] / s.shape[1] for s in sheets.values()) + 0.4
    fig = plt.figure(figsize=(width * len(panels) + 0.9, top + bool(below) * height))
    parts = fig.subfigures(1 + bool(below), 1, height_ratios=[top, height][: 1 + bool(below)], squeeze=False)[:, 0]
    names = [tuple(rows) for rows in panels.values()]
    for k, (ax, (title, sheet)) in enumerate(
        zip(parts[0].subplots(1, len(panels), squeeze=False)[0], sheets.items(), strict=True)
    ):
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


def captioned_rows(rows: dict, captions: dict, right: dict, width: float = 1.45) -> plt.Figure:
    """Images in rows with a caption under each, green where `right`, red elsewhere.
    rows: label -> uint8 (n, C, H, W);   captions: label -> n strings;   right: label -> n booleans."""
    n = len(next(iter(rows.values())))
    fig, axes = plt.subplots(len(rows), n, figsize=(width * n + 0.9, (width + 0.3) * len(rows)), squeeze=False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for k, ax in enumerate(row):
            ax.imshow(tile(images[k : k + 1], 1, 0))
            ax.set(xticks=[], yticks=[])
            colour = PALETTE[2] if right[label][k] else PALETTE[3]
            ax.set_xlabel(captions[label][k], color=colour, fontsize="small", labelpad=2)
            for spine in ax.spines.values():
                spine.set(visible=True, color=colour, linewidth=2.5)
        row[0].set_ylabel(label)
    plt.close(fig)
    return fig


def sources_above(
    blocks: list[tuple[int, dict]], rows: tuple[str, ...] = ("$p_0$ images", "what they become"), width: float = 13.0
) -> plt.Figure:
    """Grids of sources above grids of what they become. blocks, drawn one below the other: (columns, title -> one uint8
    (n, C, H, W) for each of `rows`), `columns` images in a line."""
    lines = [-(-len(next(iter(part.values()))[0]) // columns) for columns, part in blocks]
    heights = [
        len(rows) * (width * n / (columns * len(part)) + 0.1) + 0.3 for n, (columns, part) in zip(lines, blocks, strict=True)
    ]
    fig = plt.figure(figsize=(width, sum(heights)))
    for sub, (columns, part) in zip(
        fig.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0], blocks, strict=True
    ):
        axes = sub.subplots(len(rows), len(part), squeeze=False)
        for column, (title, grid) in zip(axes.T, part.items(), strict=True):
            for ax, images in zip(column, grid, strict=True):
                ax.imshow(tile(images, columns))
                ax.set(xticks=[], yticks=[])
                sns.despine(ax=ax, left=True, bottom=True)
            column[0].set_title(title)
        for ax, name in zip(axes[:, 0], rows, strict=True):
            ax.set_ylabel(name)
    plt.close(fig)
    return fig
