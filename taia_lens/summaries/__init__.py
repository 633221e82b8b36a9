"""Summaries: a study's result (every example kept) in, means, intervals, tests and the sentence out. Imports no torch."""

from taia_lens.summaries.adapters import adapters_summary
from taia_lens.summaries.attribution import attribution_summary
from taia_lens.summaries.drift import drift_summary
from taia_lens.summaries.grid import grid_summary, sentences
from taia_lens.summaries.heads import heads_summary
from taia_lens.summaries.heads_said import heads_sentences
from taia_lens.summaries.layers import layers_summary
from taia_lens.summaries.lofit import selection_summary, training_history
from taia_lens.summaries.lofit_paper import lofit_paper_summary
from taia_lens.summaries.patching import patch_summary
from taia_lens.summaries.steering import steering_summary
from taia_lens.summaries.transfer import transfer_sentences, transfer_summary

__all__ = [
    "adapters_summary",
    "attribution_summary",
    "drift_summary",
    "grid_summary",
    "heads_sentences",
    "heads_summary",
    "layers_summary",
    "lofit_paper_summary",
    "patch_summary",
    "selection_summary",
    "sentences",
    "steering_summary",
    "training_history",
    "transfer_sentences",
    "transfer_summary",
]
