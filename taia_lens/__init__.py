"""taia-lens: which parts of a fine-tune help, where, and on what data.

A pair (base and tuned) and a recipe go into the engine; a labelled result comes out; tables and figures read results.
Importing this package loads no model library: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taia_lens import lofit, plots, results, summaries, tables
    from taia_lens.batch import Batch, make_batches
    from taia_lens.budget import Budget
    from taia_lens.demo import demo_pair, demo_suite
    from taia_lens.engine import applied, evaluate, measure_pace
    from taia_lens.engine.scaled import scaled
    from taia_lens.errors import TaiaLensError
    from taia_lens.explorer import explore
    from taia_lens.export import export_graft
    from taia_lens.export.scales import export_scales
    from taia_lens.images import write_image
    from taia_lens.loaded import Loaded
    from taia_lens.loading import load_one, load_pair
    from taia_lens.pair import Pair
    from taia_lens.plots import (
        agreement_figure,
        anatomy_figure,
        attention_figure,
        compare_figure,
        cumulative_figure,
        drift_figure,
        gains_figure,
        head_maps_figure,
        heads_figure,
        layers_figure,
        lens_figure,
        patch_figure,
        plane_figure,
        recovered_figure,
        shapley_figure,
        steering_figure,
        training_figure,
        transfer_figure,
    )
    from taia_lens.rankers import rank
    from taia_lens.recipe import Ablate, Graft, Patch, Recipe, Scale, taia, taif
    from taia_lens.recipe_text import named_recipe, parse_recipe
    from taia_lens.report import write_report
    from taia_lens.results import summary
    from taia_lens.scales import Scales, load_scales, save_scales
    from taia_lens.shown import show
    from taia_lens.sites import Site, parse_sites
    from taia_lens.store import open_store
    from taia_lens.studies.anatomy import anatomy
    from taia_lens.studies.attention import attention
    from taia_lens.studies.attribution import attribution
    from taia_lens.studies.drift import drift
    from taia_lens.studies.grid import Controls, compare
    from taia_lens.studies.heads import heads, transfer
    from taia_lens.studies.layers import Sampling, layers
    from taia_lens.studies.lens import lens
    from taia_lens.studies.patching import patch
    from taia_lens.studies.steering import steer
    from taia_lens.suite import Suite, Task, load_suite, make_suite, save_suite
    from taia_lens.summaries import (
        drift_summary,
        grid_summary,
        heads_sentences,
        heads_summary,
        layers_summary,
        patch_summary,
        selection_summary,
        sentences,
        steering_summary,
        training_history,
        transfer_summary,
    )
    from taia_lens.summaries.changed import changed

_MODULES = ("lofit", "plots", "results", "summaries", "tables")
_HOME = {
    "Ablate": "recipe",
    "Batch": "batch",
    "Budget": "budget",
    "Controls": "studies.grid",
    "Graft": "recipe",
    "Loaded": "loaded",
    "Pair": "pair",
    "Patch": "recipe",
    "Recipe": "recipe",
    "Sampling": "studies.layers",
    "Scale": "recipe",
    "Scales": "scales",
    "Site": "sites",
    "Suite": "suite",
    "TaiaLensError": "errors",
    "Task": "suite",
    "agreement_figure": "plots",
    "anatomy": "studies.anatomy",
    "anatomy_figure": "plots",
    "applied": "engine",
    "attention": "studies.attention",
    "attention_figure": "plots",
    "attribution": "studies.attribution",
    "changed": "summaries.changed",
    "compare": "studies.grid",
    "compare_figure": "plots",
    "cumulative_figure": "plots",
    "demo_pair": "demo",
    "demo_suite": "demo",
    "drift": "studies.drift",
    "drift_figure": "plots",
    "drift_summary": "summaries",
    "evaluate": "engine",
    "explore": "explorer",
    "export_graft": "export",
    "export_scales": "export.scales",
    "gains_figure": "plots",
    "grid_summary": "summaries",
    "head_maps_figure": "plots",
    "heads": "studies.heads",
    "heads_figure": "plots",
    "heads_sentences": "summaries",
    "heads_summary": "summaries",
    "layers": "studies.layers",
    "layers_figure": "plots",
    "layers_summary": "summaries",
    "lens": "studies.lens",
    "lens_figure": "plots",
    "load_ipython_extension": "shown",  # %load_ext taia_lens
    "load_one": "loading",
    "load_pair": "loading",
    "load_scales": "scales",
    "load_suite": "suite",
    "make_batches": "batch",
    "make_suite": "suite",
    "measure_pace": "engine",
    "named_recipe": "recipe_text",
    "open_store": "store",
    "parse_recipe": "recipe_text",
    "parse_sites": "sites",
    "patch": "studies.patching",
    "patch_figure": "plots",
    "patch_summary": "summaries",
    "plane_figure": "plots",
    "rank": "rankers",
    "recovered_figure": "plots",
    "save_scales": "scales",
    "save_suite": "suite",
    "scaled": "engine",
    "selection_summary": "summaries",
    "sentences": "summaries",
    "shapley_figure": "plots",
    "show": "shown",
    "steer": "studies.steering",
    "steering_figure": "plots",
    "steering_summary": "summaries",
    "summary": "results",
    "taia": "recipe",
    "taif": "recipe",
    "training_figure": "plots",
    "training_history": "summaries",
    "transfer": "studies.heads",
    "transfer_figure": "plots",
    "transfer_summary": "summaries",
    "unload_ipython_extension": "shown",
    "write_image": "images",
    "write_report": "report",
}
__all__ = [
    "Ablate",
    "Batch",
    "Budget",
    "Controls",
    "Graft",
    "Loaded",
    "Pair",
    "Patch",
    "Recipe",
    "Sampling",
    "Scale",
    "Scales",
    "Site",
    "Suite",
    "TaiaLensError",
    "Task",
    "agreement_figure",
    "anatomy",
    "anatomy_figure",
    "applied",
    "attention",
    "attention_figure",
    "attribution",
    "changed",
    "compare",
    "compare_figure",
    "cumulative_figure",
    "demo_pair",
    "demo_suite",
    "drift",
    "drift_figure",
    "drift_summary",
    "evaluate",
    "explore",
    "export_graft",
    "export_scales",
    "gains_figure",
    "grid_summary",
    "head_maps_figure",
    "heads",
    "heads_figure",
    "heads_sentences",
    "heads_summary",
    "layers",
    "layers_figure",
    "layers_summary",
    "lens",
    "lens_figure",
    "load_one",
    "load_pair",
    "load_scales",
    "load_suite",
    "lofit",
    "make_batches",
    "make_suite",
    "measure_pace",
    "named_recipe",
    "open_store",
    "parse_recipe",
    "parse_sites",
    "patch",
    "patch_figure",
    "patch_summary",
    "plane_figure",
    "plots",
    "rank",
    "recovered_figure",
    "results",
    "save_scales",
    "save_suite",
    "scaled",
    "selection_summary",
    "sentences",
    "shapley_figure",
    "show",
    "steer",
    "steering_figure",
    "steering_summary",
    "summaries",
    "summary",
    "tables",
    "taia",
    "taif",
    "training_figure",
    "training_history",
    "transfer",
    "transfer_figure",
    "transfer_summary",
    "write_image",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"taia_lens.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'taia_lens' has no attribute {name!r}")
    return getattr(import_module(f"taia_lens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
