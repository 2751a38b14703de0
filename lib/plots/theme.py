"""Colours and settings that all pictures share."""

from __future__ import annotations

import matplotlib
import seaborn as sns

PALETTE = sns.color_palette("colorblind")
HEAT = "viridis"  # perceptually uniform, readable in grey
REAL, SAMPLE = PALETTE[2], PALETTE[3]  # data green, samples red-orange, in every figure


def style() -> None:
    """Set the project's style; every notebook calls it once."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=1.05)
    matplotlib.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 120,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "figure.autolayout": False,
        }
    )
