"""LoFiT: which heads learning wants to scale, and offsets on those (arXiv 2406.01563), on any model that TransformerLens loads.

chosen = lofit.select(model, suite)                       # A on every head; chosen["norm"] is the paper's score
scales = lofit.tune(model, suite, lofit.top_heads(chosen["norm"], 16))
chosen, scales = lofit.fit(model, suite, "3%")            # both
"""

from taia_lens.lofit.forms import heads_of
from taia_lens.lofit.settings import Settings, bottom_heads, how_many, select_settings, ties, top_heads, tune_settings
from taia_lens.lofit.steps import fit, jola, select, train_scales, tune

__all__ = [
    "Settings",
    "bottom_heads",
    "fit",
    "heads_of",
    "how_many",
    "jola",
    "select",
    "select_settings",
    "ties",
    "top_heads",
    "train_scales",
    "tune",
    "tune_settings",
]
