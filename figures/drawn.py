"""What each figure shows: the result that it is drawn from, and how it is drawn.

Results are computed once, kept in figures/saved, and drawn again in seconds; `make.py --again` computes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray as xr

import taia_lens as tl
from taia_lens import readers
from taia_lens.rankers import Options
from taia_lens.summaries import attribution_summary
from taia_lens.tuning.run import tune
from taia_lens.tuning.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SAVED, SHARED = ROOT / "figures" / "saved", ROOT.parent / "shared"
HEAD = 0


def one_layer() -> xr.Dataset:
    """`taia-lens patch --component mlp --layer 12`: the main job."""
    return tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12)


def all_layers() -> xr.Dataset:
    """`taia-lens patch --component attn,mlp --layer all`."""
    return tl.patch(tl.demo_pair(), tl.demo_suite(), component=["attn", "mlp"])


def attributed() -> xr.Dataset:
    """`taia-lens attribute --component attn,mlp --limit 150`."""
    return tl.attribution(tl.demo_pair(), _halves()[0], component=["attn", "mlp"], check=4)


def grid() -> xr.Dataset:
    """`taia-lens compare`."""
    return tl.compare(tl.demo_pair(), tl.demo_suite(), batch_size=128)


def credit() -> xr.Dataset:
    """`taia-lens layers --limit 150 --budget 248`."""
    return tl.layers(tl.demo_pair(), _halves()[0], sampling=tl.Sampling(budget=248), batch_size=128)


def _halves() -> tuple[tl.Suite, tl.Suite]:
    """Prompts that choose, and those that judge."""
    suite = tl.demo_suite()
    choosing = suite.limit(150, seed=0)
    seen = {row.id for row in choosing.rows}
    return choosing, replace(suite, name="judging", rows=tuple(row for row in suite.rows if row.id not in seen))


def judged_parts() -> xr.Dataset:
    """Notebook 02: the parts that `credit` names, by themselves and taken out, on prompts that did not choose them."""
    found = tl.layers_summary(tl.results.load(SAVED / "credit.nc"))
    ood = found.isel(group=[name.endswith("|ood|accuracy") for name in found.group.values]).squeeze("group")

    def parts(sign: int) -> list[tuple[int, str]]:
        there = (ood.shapley_q <= 0.05) & (sign * ood.shapley > 0)
        return [(int(ood.layer.values[i]), str(ood.part.values[j])) for i, j in np.argwhere(there.transpose("layer", "part").values)]

    def taking(host: str, donor: str, sign: int) -> tl.Recipe:
        return tl.Recipe(host, tuple(tl.Graft(component, donor, (layer,)) for layer, component in parts(sign)))

    recipes = {"base + helpful": taking("base", "tuned", 1), "tuned - harmful": taking("tuned", "base", -1)}
    return tl.compare(tl.demo_pair(), _halves()[1], controls=tl.Controls(seeds=0, scales=()), recipes=recipes)


def _truth() -> tuple[tl.Loaded, tl.Suite, tl.Suite]:
    return tl.demo_pair().loaded("base"), tl.demo_suite("truth-train"), tl.demo_suite("truth").limit(200)


def ranked() -> xr.Dataset:
    """Notebook 03: LoFiT's and ITI's rankings, and the causal check."""
    base, train, test = _truth()
    selecting, tuning = (replace(of(base.n_parameters), batch_size=16) for of in (tl.lofit.select_settings, tl.lofit.tune_settings))
    return tl.heads(base, train, test, by=("lofit", "iti"), k=13, draws=2, options=Options(selecting=selecting), settings=tuning)


def selected() -> xr.Dataset:
    """Notebook 03: LoFiT's first step by itself, with its training curve."""
    base, train, _ = _truth()
    return tl.lofit.select(base, train, settings=replace(tl.lofit.select_settings(base.n_parameters), batch_size=16))


def steered() -> xr.Dataset:
    """ITI by strength on the demo base's truth task, with two random directions."""
    base, train, test = _truth()
    return tl.steer(base, train, test, k=13, controls=2)


def transferred() -> xr.Dataset:
    """The truth task on domain A and on domain B, as two tasks: heads of the one, offsets learned and tested on the other."""
    train, test = tl.demo_suite("truth-train"), tl.demo_suite("truth")
    other = tuple(replace(row, domain="id") for row in test.rows if row.domain == "ood")
    own = replace(test, name="truth A", rows=tuple(row for row in test.rows if row.domain == "id"))
    halves = [replace(test, name=f"truth B, {name}", rows=other[i::2]) for i, name in enumerate(("train", "test"))]
    tasks = {"A": (train, own), "B": (halves[0], halves[1])}
    return tl.transfer(tl.demo_pair().loaded("base"), tasks, k=13, draws=2)


@contextmanager
def _own_pair() -> Iterator[tl.Pair]:
    """Notebook 04: a small story model, tuned on Wikipedia. Needs shared/ beside the project."""
    folder, valid = SHARED / "models" / "stories260K", SHARED / "data" / "wikitext2" / "valid.txt"
    with tempfile.TemporaryDirectory() as work:
        tl.save_suite(_articles(valid, 200), Path(work) / "train.jsonl")
        tune(folder, Path(work) / "train.jsonl", Path(work) / "tuned", Settings(lr=2e-3, epochs=3, batch_size=16, micro_batch=16))
        yield tl.load_pair(folder, Path(work) / "tuned")


def _articles(path: Path, limit: int) -> tl.Suite:
    return readers.read("wikitext", path, form="paragraphs", words=60, limit=200, domain="id").limit(limit)


def own_grid() -> xr.Dataset:
    """Notebook 04: what it gained and what that cost."""
    stories = readers.read("tinystories", SHARED / "data" / "tinystories" / "data.txt", words=60, limit=60, domain="ood")
    with _own_pair() as pair:
        suites = [_articles(SHARED / "data" / "wikitext2" / "test.txt", 60), stories]
        return tl.compare(pair, suites, controls=tl.Controls(seeds=2))


def own_anatomy() -> xr.Dataset:
    """Notebook 04: the update itself."""
    with _own_pair() as pair:
        return tl.anatomy(pair)


def patched() -> xr.Dataset:
    """Notebook 05: every layer, patched."""
    return tl.patch(tl.demo_pair(), _halves()[0], component=["attn", "mlp"], metrics=["logprob"])


def grafted() -> xr.Dataset:
    """Notebook 05: every layer, grafted."""
    return tl.layers(tl.demo_pair(), _halves()[0], views=["alone"], metrics=["logprob"])


def _first_ood() -> tl.suite.Row:
    return next(row for row in tl.demo_suite().rows if row.domain == "ood")


def spoken() -> xr.Dataset:
    """What base, vanilla and TAIA say after each layer, on the first prompt out of distribution."""
    return tl.lens(tl.demo_pair(), _first_ood())


def looked() -> xr.Dataset:
    """Where a head of layer 0, whose attention carries the skill, looks on that prompt."""
    return tl.attention(tl.demo_pair(), _first_ood(), 0, HEAD)


def anatomy() -> xr.Dataset:
    """`taia-lens anatomy`."""
    return tl.anatomy(tl.demo_pair())


def drifted() -> xr.Dataset:
    """`taia-lens drift --limit 150`."""
    return tl.drift(tl.demo_pair(), _halves()[0])


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        compute: Makes the result that it is drawn from; its name is the saved result's.
        summarise: Result to summary.
        draw: Summary to figure.
        quick: Whether `make.py --check` computes it again; else it takes minutes, or trains, and what is trained moves with rounding.
        needs_shared: Whether it is computed from real models and data that lie beside the project.
    """

    compute: Callable[[], xr.Dataset]
    summarise: Callable[[xr.Dataset], xr.Dataset]
    draw: Callable[[xr.Dataset], go.Figure]
    quick: bool = True
    needs_shared: bool = False


def saved(drawn: Drawn, *, again: bool) -> xr.Dataset:
    """The figure's result: the one that is kept, or, where there is none or it is asked for, a new one, which is kept."""
    path = SAVED / f"{drawn.compute.__name__}.nc"
    if again or not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tl.results.save(drawn.compute(), path)
    return tl.results.load(path)


def _shapley_gains(summary: xr.Dataset) -> go.Figure:
    return tl.gains_figure(summary, view="shapley")


def _alone_gains(summary: xr.Dataset) -> go.Figure:
    return tl.gains_figure(summary, view="alone")


def _itself(result: xr.Dataset) -> xr.Dataset:
    return result


def _history(result: xr.Dataset) -> xr.Dataset:
    return tl.training_history({"LoFiT's first step": result.attrs["training"]})


FIGURES = {
    "01_quickstart": Drawn(one_layer, tl.patch_summary, tl.patch_figure),
    "01_quickstart_layers": Drawn(all_layers, tl.patch_summary, tl.patch_figure),
    "02_compare": Drawn(grid, tl.grid_summary, tl.compare_figure),
    "02_plane": Drawn(grid, tl.grid_summary, tl.plane_figure),
    "02_layers": Drawn(credit, tl.layers_summary, tl.layers_figure, quick=False),
    "02_gains": Drawn(credit, tl.layers_summary, _shapley_gains, quick=False),
    "02_shapley": Drawn(credit, tl.layers_summary, tl.shapley_figure, quick=False),
    "02_judged": Drawn(judged_parts, tl.grid_summary, tl.compare_figure),
    "03_heads": Drawn(ranked, tl.heads_summary, tl.head_maps_figure, quick=False),
    "03_agreement": Drawn(ranked, tl.heads_summary, tl.agreement_figure, quick=False),
    "03_check": Drawn(ranked, tl.heads_summary, tl.heads_figure, quick=False),
    "03_training": Drawn(selected, _history, tl.training_figure, quick=False),
    "04_compare": Drawn(own_grid, tl.grid_summary, tl.compare_figure, quick=False, needs_shared=True),
    "04_anatomy": Drawn(own_anatomy, _itself, tl.anatomy_figure, quick=False, needs_shared=True),
    "05_patched": Drawn(patched, tl.patch_summary, tl.gains_figure),
    "05_grafted": Drawn(grafted, tl.layers_summary, _alone_gains),
    "recovered": Drawn(all_layers, tl.patch_summary, tl.recovered_figure),
    "cumulative": Drawn(credit, tl.layers_summary, tl.cumulative_figure, quick=False),
    "attribution": Drawn(attributed, attribution_summary, tl.plots.attribution_figure),
    "attribution_check": Drawn(attributed, attribution_summary, tl.plots.check_figure),
    "transfer": Drawn(transferred, tl.transfer_summary, tl.transfer_figure, quick=False),
    "steering": Drawn(steered, tl.steering_summary, tl.steering_figure, quick=False),
    "lens": Drawn(spoken, _itself, tl.lens_figure),
    "attention": Drawn(looked, _itself, tl.attention_figure),
    "anatomy": Drawn(anatomy, _itself, tl.anatomy_figure),
    "drift": Drawn(drifted, tl.drift_summary, tl.drift_figure),
}
