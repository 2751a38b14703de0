"""Every picture that the notebooks show, in one style: seaborn, colour-blind safe, legible when projected.

Functions take arrays and return a matplotlib figure (or draw on an axis); they neither load nor save. They lie in rooms by
purpose and are called from here: `plots.curves(...)`.
"""
from lib.plots.theme import PALETTE, HEAT, REAL, SAMPLE, style
from lib.plots.images import tile, show_tiles, grids, class_grid, filmstrip, row_panels, captioned_rows, sources_above
from lib.plots.lines import (
    curves, against_reference, bars_with_intervals, pairs_of_bars, chain_lines, along_chain, along_path, overlaid)
from lib.plots.planes import (
    lattice, energy_map, maps, step_sizes, loss_and_likelihood, decision_maps, animate, support_and_density)
from lib.plots.sharpness import (
    landscape_lines, landscape_surfaces, sharp_and_flat, descents, ascent_steps, climbs, radius_sweep)
from lib.plots.measures import reliability_panels, score_histograms, radius_curves, tradeoff, class_shares, benchmark
from lib.plots.training import starts, steps_and_quality, growing_k, travel, overflow
