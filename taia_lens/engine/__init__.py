"""The engine: the only place that registers hooks or touches weights. Many recipes and a batch go in, numbers come out."""

from taia_lens.engine.reads import padded, run_greedy, run_logprobs, run_reads
from taia_lens.engine.run import Readout, Run, applied, check_recipe, evaluate, run_plain
from taia_lens.engine.scaled import frozen, scaled
from taia_lens.engine.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Readout",
    "Run",
    "applied",
    "check_recipe",
    "evaluate",
    "frozen",
    "padded",
    "run_greedy",
    "run_logprobs",
    "run_plain",
    "run_reads",
    "scaled",
]
