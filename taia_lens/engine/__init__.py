"""The engine: the only place that registers hooks or touches weights. Many recipes and a batch go in, numbers come out."""

from taia_lens.engine.agree import plain_because
from taia_lens.engine.gradients import Attributed, run_attributed, run_last
from taia_lens.engine.many import Part, Readout, evaluate, parts_of_recipes, parts_of_scales, plan_recipes, run_recipes, run_scales
from taia_lens.engine.moments import mean_squares
from taia_lens.engine.pace import Pace, measure_pace
from taia_lens.engine.plan import Plan
from taia_lens.engine.reads import Reads, device_of, label_logprobs, padded, run_greedy, run_logprobs, run_reads
from taia_lens.engine.run import Run, applied, check_recipe, run_plain
from taia_lens.engine.scaled import frozen, scaled
from taia_lens.engine.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Attributed",
    "Pace",
    "Part",
    "Plan",
    "Readout",
    "Reads",
    "Run",
    "applied",
    "check_recipe",
    "device_of",
    "evaluate",
    "frozen",
    "label_logprobs",
    "mean_squares",
    "measure_pace",
    "padded",
    "parts_of_recipes",
    "parts_of_scales",
    "plain_because",
    "plan_recipes",
    "run_attributed",
    "run_greedy",
    "run_last",
    "run_logprobs",
    "run_plain",
    "run_reads",
    "run_recipes",
    "run_scales",
    "scaled",
]
