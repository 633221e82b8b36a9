"""What a report shows of each study: its sentences, figures and tables, by the study's own functions for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from rich.table import Table

from taia_lens import plots, summaries, tables
from taia_lens.html import cut
from taia_lens.report.runs import Run
from taia_lens.summaries.headlines import headlines


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of one run.

    Attributes:
        said: Sentences that the numbers support.
        figures: As the study's command draws them.
        tables: As it prints them.
        note: What the marks mean.
    """

    said: Sequence[str]
    figures: Sequence[go.Figure]
    tables: Sequence[Table]
    note: str


@dataclass(frozen=True)
class Study:
    """A study's title, the question that it asks, and what is shown of a run of it."""

    title: str
    asks: str
    show: Callable[[Run], Shown]


_TESTS = "95% intervals; q: sign-flip p, adjusted over all differences (false-discovery rate); * at most .05"
_VIEWS = ("alone", "last", "shapley")
_LISTED = 16  # heads of a selection


def _compare(run: Run) -> Shown:
    summary = summaries.grid_summary(run.result)
    both = {"id", "ood"} <= set(summary.domain.values.tolist())
    figures = [*([plots.plane_figure(summary)] if both else []), plots.compare_figure(summary)]
    return Shown(summaries.sentences(summary), figures, tables.grid_tables(summary), _TESTS)


def _layers(run: Run) -> Shown:
    summary = summaries.layers_summary(run.result)
    views = [view for view in _VIEWS if view in summary]
    figures = [*([plots.gains_figure(summary)] if views else []), plots.layers_figure(summary)]
    figures += [plots.shapley_figure(summary)] if "shapley" in summary else []
    printed = [*(tables.layers_tables(summary) if views else []), *tables.cumulated_tables(summary), *tables.shift_tables(summary)]
    return Shown(headlines(run.result), figures, printed, tables.layers_note(summary))


def _patch(run: Run) -> Shown:
    summary = summaries.patch_summary(run.result)
    figures = [plots.patch_figure(summary)]
    if summary.sizes["layer"] > 1 and "pos" not in summary.dims:
        figures += [plots.gains_figure(summary), *([] if "head" in summary.dims else [plots.recovered_figure(summary)])]
    note = f"95% paired bootstrap intervals; {tables.noise_line(summary)}"
    return Shown(headlines(run.result), figures, tables.patch_tables(summary), note)


def _attribution(run: Run) -> Shown:
    summary = summaries.attribution_summary(run.result)
    figures = [plots.attribution_figure(summary), *([plots.check_figure(summary)] if "check" in summary.dims else [])]
    said = [tables.attribution_note(summary), *headlines(run.result)]
    return Shown(said, figures, tables.attribution_tables(summary), "95% paired bootstrap intervals")


def _heads(run: Run) -> Shown:
    summary = summaries.heads_summary(run.result)
    checked = [plots.heads_figure(summary)] if run.result.attrs["checks"] else []
    figures = [plots.head_maps_figure(summary), plots.agreement_figure(summary), *checked]
    return Shown(summaries.heads_sentences(summary), figures, tables.heads_tables(summary), tables.heads_note(summary))


def _selection(run: Run) -> Shown:
    result = run.result
    summary = summaries.selection_summary(result, max(1, round(0.03 * result["norm"].size)))
    history = summaries.training_history({"selection": result.attrs["training"]}, model=str(result.attrs["model"]))
    table = Table(title=f"heads by LoFiT's norm, the first {_LISTED} of {result['norm'].size}")
    for name in ("head", "norm of A", "norm of A / rms norm of z", "rms norm of A z"):
        table.add_column(name, justify="left" if name == "head" else "right")
    flat = result.stack(site=("layer", "head"))
    for i in np.argsort(-flat["norm"].values, kind="stable")[:_LISTED]:
        one = flat.isel(site=int(i))
        table.add_row(f"L{int(one.layer)}.h{int(one['head'])}", *(f"{float(one[name]):.4g}" for name in ("norm", "relative", "effect")))
    figures = [plots.head_maps_figure(summary), plots.training_figure(history)]
    return Shown([], figures, [table], "outlined: the top 3%; A: the scale that was learned on a head's output z")


def _transfer(run: Run) -> Shown:
    summary = summaries.transfer_summary(run.result)
    return Shown(summaries.transfer_sentences(summary), [plots.transfer_figure(summary)], tables.transfer_tables(summary), _TESTS)


def _steering(run: Run) -> Shown:
    summary = summaries.steering_summary(run.result)
    note, *said = tables.steering_note(summary).splitlines()
    return Shown([*headlines(run.result), *said], [plots.steering_figure(summary)], tables.steering_tables(summary), note)


def _adapters(run: Run) -> Shown:
    summary = summaries.adapters_summary(run.result)
    return Shown(headlines(run.result), [], tables.adapters_tables(summary), tables.adapters_note())


def _lofit_paper(run: Run) -> Shown:
    summary = summaries.lofit_paper_summary(run.result)
    return Shown([], [], tables.lofit_paper_tables(summary), tables.lofit_paper_note(summary))


def _anatomy(run: Run) -> Shown:
    note = "share: of the whole update's squared norm; overlap: of the update's leading directions with the base weight's own"
    return Shown(headlines(run.result), [plots.anatomy_figure(run.result)], tables.anatomy_tables(run.result), note)


def _drift(run: Run) -> Shown:
    summary = summaries.drift_summary(run.result)
    return Shown(headlines(run.result), [plots.drift_figure(summary)], tables.drift_tables(summary), tables.drift_note(summary))


def _lens(run: Run) -> Shown:
    return Shown([], [plots.lens_figure(run.result)], [tables.lens_table(run.result)], _read(run))


def _attention(run: Run) -> Shown:
    return Shown([], [plots.attention_figure(run.result)], [], _read(run))


def _read(run: Run) -> str:
    """The prompt that a study of one prompt read."""
    return f"the prompt: {cut(run.result.attrs['prompt'])}"


STUDIES: dict[str, Study] = {
    "compare": Study("Recipes", "Does TAIA beat base, the tuned model, and controls that know nothing of attention?", _compare),
    "layers": Study("Layers", "How much of the gain does each layer's part of the update carry?", _layers),
    "patch": Study("Patches", "What does one model do with an activation that the other computed, one site at a time?", _patch),
    "attribution": Study("Attribution", "What would patching each site do, estimated from gradients?", _attribution),
    "heads": Study("Heads", "Which heads does each ranking choose, and do they do more than random heads?", _heads),
    "lofit-select": Study("LoFiT's selection", "How far does learning move a scale on each head's output?", _selection),
    "transfer": Study("Head transfer", "Do the heads that one task selects serve another?", _transfer),
    "steering": Study("Steering", "What does adding a direction to the model do, by strength?", _steering),
    "adapters": Study("Adapters", "What does each adapter do to the base, in and out of distribution?", _adapters),
    "lofit-paper": Study("LoFiT's protocol", "Do offsets on LoFiT's heads do what the paper reports?", _lofit_paper),
    "anatomy": Study("Anatomy of the update", "What did fine-tuning do to the weights? No prompt is needed to say.", _anatomy),
    "drift": Study("Drift", "How far do the representations move from the base's, layer by layer?", _drift),
    "lens": Study("Logit lens", "What would the model answer if it stopped after a layer?", _lens),
    "attention": Study("Attention", "Where does a head look, in base and in tuned?", _attention),
}
