"""Figures: a result's summary in, a plotly Figure out. No I/O, no torch, no global theme."""

from taia_lens.plots.anatomy import anatomy_figure
from taia_lens.plots.arms import heads_figure
from taia_lens.plots.attention import attention_figure
from taia_lens.plots.attribution import attribution_figure, check_figure
from taia_lens.plots.drift import drift_figure
from taia_lens.plots.gains import gains_figure
from taia_lens.plots.grid import compare_figure
from taia_lens.plots.heads import agreement_figure, head_maps_figure
from taia_lens.plots.layers import cumulative_figure, layers_figure
from taia_lens.plots.lens import lens_figure
from taia_lens.plots.look import COLOURS, DIVERGING
from taia_lens.plots.patching import patch_figure
from taia_lens.plots.plane import plane_figure
from taia_lens.plots.recovered import recovered_figure
from taia_lens.plots.shapley import shapley_figure
from taia_lens.plots.steering import steering_figure
from taia_lens.plots.training import training_figure
from taia_lens.plots.transfer import transfer_figure

__all__ = [
    "COLOURS",
    "DIVERGING",
    "agreement_figure",
    "anatomy_figure",
    "attention_figure",
    "attribution_figure",
    "check_figure",
    "compare_figure",
    "cumulative_figure",
    "drift_figure",
    "gains_figure",
    "head_maps_figure",
    "heads_figure",
    "layers_figure",
    "lens_figure",
    "patch_figure",
    "plane_figure",
    "recovered_figure",
    "shapley_figure",
    "steering_figure",
    "training_figure",
    "transfer_figure",
]
