"""Every picture that the notebooks show, in one style: seaborn, colour-blind safe, legible when projected.

Functions take arrays and return a matplotlib figure (or draw on an axis); they neither load nor save. They lie in rooms by
purpose and are called from here: `plots.curves(...)`.
"""

from lib.plots.images import captioned_rows, class_grid, filmstrip, grids, row_panels, show_tiles, sources_above, tile
from lib.plots.lines import (
    against_reference,
    along_chain,
    along_path,
    bars_with_intervals,
    chain_lines,
    curves,
    overlaid,
    pairs_of_bars,
)
from lib.plots.measures import benchmark, class_shares, radius_curves, reliability_panels, score_histograms, tradeoff
from lib.plots.planes import (
    animate,
    decision_maps,
    energy_map,
    lattice,
    loss_and_likelihood,
    maps,
    step_sizes,
    support_and_density,
)
from lib.plots.sharpness import (
    ascent_steps,
    descents,
    landscape_lines,
    landscape_surfaces,
    radius_sweep,
    sharp_and_flat,
    sharpness_curves,
)
from lib.plots.theme import HEAT, PALETTE, REAL, SAMPLE, style
from lib.plots.training import growing_k, overflow, r1_effect, starts, steps_and_quality
