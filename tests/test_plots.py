"""Pictures: what they show is in view, and their layout fits at every size."""

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lib import plots


@pytest.fixture(autouse=True)
def styled():
    import matplotlib

    with matplotlib.rc_context():
        plots.style()
        yield


@pytest.mark.parametrize("auc", [0.0, 0.5, 1.0, np.nan])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_the_threshold_of_growing_k_is_in_view_whatever_the_auc(auc, rows):
    at = np.arange(1, rows + 1)
    quality = {k: pd.DataFrame({"iteration": at, "seconds": at * 1e-3, "fd_clf": 4.0 / at}) for k in ("K=5", "K=25")}
    training = {k: pd.DataFrame({"iteration": at, "K": at % 5, "auc": auc}) for k in quality}
    fig = plots.growing_k(quality, training, threshold=0.8)
    canvas = FigureCanvasAgg(fig)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is a warning of matplotlib's
        canvas.draw()
    panel = fig.axes[3]
    (name,) = panel.texts
    inside, text = panel.get_window_extent(), name.get_window_extent(canvas.get_renderer())
    assert inside.y0 <= text.y0 and text.y1 <= inside.y1
    assert all(low < high for low, high in (ax.get_window_extent().intervaly for ax in fig.axes))
