"""Figures: a result's summary in, a plotly Figure out. No I/O, no torch, no global theme."""

from taia_lens.plots.anatomy import anatomy_figure
from taia_lens.plots.arms import heads_figure
from taia_lens.plots.attribution import attribution_figure, check_figure
from taia_lens.plots.drift import drift_figure
from taia_lens.plots.grid import compare_figure
from taia_lens.plots.heads import agreement_figure, head_maps_figure
from taia_lens.plots.layers import layers_figure
from taia_lens.plots.maps import DIVERGING
from taia_lens.plots.patching import COLOURS, patch_figure
from taia_lens.plots.steering import steering_figure
from taia_lens.plots.transfer import transfer_figure

__all__ = [
    "COLOURS",
    "DIVERGING",
    "agreement_figure",
    "anatomy_figure",
    "attribution_figure",
    "check_figure",
    "compare_figure",
    "drift_figure",
    "head_maps_figure",
    "heads_figure",
    "layers_figure",
    "patch_figure",
    "steering_figure",
    "transfer_figure",
]
