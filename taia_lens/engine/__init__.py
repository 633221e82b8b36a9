"""The engine: the only place that registers hooks or touches weights. Many recipes and a batch go in, numbers come out."""

from taia_lens.engine.gradients import Gradients, run_gradients, run_last
from taia_lens.engine.moments import mean_squares
from taia_lens.engine.reads import Reads, label_logprobs, padded, run_greedy, run_logprobs, run_reads
from taia_lens.engine.run import Readout, Run, applied, check_recipe, evaluate, run_plain, run_recipes
from taia_lens.engine.scaled import frozen, run_scales, scaled
from taia_lens.engine.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Gradients",
    "Readout",
    "Reads",
    "Run",
    "applied",
    "check_recipe",
    "evaluate",
    "frozen",
    "label_logprobs",
    "mean_squares",
    "padded",
    "run_gradients",
    "run_greedy",
    "run_last",
    "run_logprobs",
    "run_plain",
    "run_reads",
    "run_recipes",
    "run_scales",
    "scaled",
]
