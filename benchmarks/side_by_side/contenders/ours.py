"""taia-lens: its shared plan, and its plain one, which is a full forward a recipe."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from side_by_side.contenders import Job, by_site
from side_by_side.models import Setting, score
from side_by_side.questions import Sweep
from taia_lens.engine import Reads, evaluate, run_attributed
from taia_lens.sites import Site


def shared(setting: Setting, sweep: Sweep) -> Job | str:
    """The engine as it is used by every study."""
    if sweep.kind == "attribution":
        return lambda: _attribution(setting, sweep)
    because = setting.pair.report.plain_because
    return f"the plain plan is used: {because}" if because else _evaluate(setting, sweep, "shared")


def plain(setting: Setting, sweep: Sweep) -> Job | str:
    """One forward a recipe, one recipe after the other."""
    return "attribution has one plan only" if sweep.kind == "attribution" else _evaluate(setting, sweep, "plain")


def _evaluate(setting: Setting, sweep: Sweep, plan: Literal["shared", "plain"]) -> Job:
    def readout(logits: Tensor) -> dict[str, Tensor]:
        return {"score": score(logits, sweep.batch)}

    return lambda: evaluate(setting.pair, sweep.recipes, sweep.batch, readout, plan=plan)["score"]


def _attribution(setting: Setting, sweep: Sweep) -> Tensor:
    z = [Site("head", layer, 0).hook for layer in range(setting.n_layers)]
    mlp = [Site("mlp", layer).hook for layer in range(setting.n_layers)]
    reads = Reads.last(sweep.batch)
    found = run_attributed(setting.pair.base, setting.pair.tuned, reads, lambda logits: score(logits, sweep.batch), [*z, *mlp])
    return by_site([found.products[name] for name in z], [found.products[name] for name in mlp], sweep.batch.mask)
