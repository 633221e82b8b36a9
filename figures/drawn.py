"""What each figure shows: the result that it is drawn from, how it is drawn, and the numbers that are kept beside it.

Results are computed once, kept in runs/figures, and drawn again in seconds; `make.py --again` computes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import plotly.graph_objects as go
import xarray as xr

import taia_lens as tl
from taia_lens import readers
from taia_lens.rankers import Options
from taia_lens.summaries import attribution_summary
from taia_lens.tuning.run import tune
from taia_lens.tuning.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SAVED, SHARED = ROOT / "runs" / "figures", ROOT.parent / "shared"
HEAD = 0


def one_layer() -> xr.Dataset:
    """`taia-lens patch --component mlp --layer 12`: the main job."""
    return tl.patch(tl.demo_pair(), tl.demo_suite(), component="mlp", layers=12)


def all_layers() -> xr.Dataset:
    """`taia-lens patch --component attn,mlp --layer all`."""
    return tl.patch(tl.demo_pair(), tl.demo_suite(), component=["attn", "mlp"])


def attributed() -> xr.Dataset:
    """`taia-lens attribute --component attn,mlp --limit 150`."""
    return tl.attribution(tl.demo_pair(), tl.demo_suite().limit(150, seed=0), component=["attn", "mlp"], check=4)


def grid() -> xr.Dataset:
    """`taia-lens compare`."""
    return tl.compare(tl.demo_pair(), tl.demo_suite(), batch_size=128)


def credit() -> xr.Dataset:
    """`taia-lens layers --limit 150 --budget 248`."""
    rows = tl.demo_suite().limit(150, seed=0)
    return tl.layers(tl.demo_pair(), rows, sampling=tl.Sampling(budget=248), batch_size=128)


def ranked() -> xr.Dataset:
    """The bench of rankers of notebooks/03_lofit_heads.ipynb."""
    base, train, test = tl.demo_pair().loaded("base"), tl.demo_suite("truth-train"), tl.demo_suite("truth").limit(200)
    selecting, tuning = (replace(of(base.n_parameters), batch_size=16) for of in (tl.lofit.select_settings, tl.lofit.tune_settings))
    return tl.heads(base, train, test, by=("lofit", "iti"), k=13, draws=2, options=Options(selecting=selecting), settings=tuning)


def steered() -> xr.Dataset:
    """ITI by strength on the demo base's truth task, with two random directions."""
    train, test = tl.demo_suite("truth-train"), tl.demo_suite("truth").limit(200)
    return tl.steer(tl.demo_pair().loaded("base"), train, test, k=13, controls=2)


def transferred() -> xr.Dataset:
    """The truth task on domain A and on domain B, as two tasks: heads of the one, offsets learned and tested on the other."""
    train, test = tl.demo_suite("truth-train"), tl.demo_suite("truth")
    other = tuple(replace(row, domain="id") for row in test.rows if row.domain == "ood")
    own = replace(test, name="truth A", rows=tuple(row for row in test.rows if row.domain == "id"))
    halves = [replace(test, name=f"truth B, {name}", rows=other[i::2]) for i, name in enumerate(("train", "test"))]
    tasks = {"A": (train, own), "B": (halves[0], halves[1])}
    return tl.transfer(tl.demo_pair().loaded("base"), tasks, k=13, draws=2)


def own_model() -> xr.Dataset:
    """The grid of notebooks/04_your_own_models.ipynb: a small story model, tuned on Wikipedia. Needs shared/ beside the project."""
    folder, data = SHARED / "models" / "stories260K", SHARED / "data"
    wiki, stories = data / "wikitext2", data / "tinystories" / "data.txt"

    def articles(path: Path, limit: int) -> tl.Suite:
        return readers.read("wikitext", path, form="paragraphs", words=60, limit=200, domain="id").limit(limit)

    suites = [articles(wiki / "test.txt", 60), readers.read("tinystories", stories, words=60, limit=60, domain="ood")]
    with tempfile.TemporaryDirectory() as work:
        tl.save_suite(articles(wiki / "valid.txt", 200), Path(work) / "train.jsonl")
        tune(folder, Path(work) / "train.jsonl", Path(work) / "tuned", Settings(lr=2e-3, epochs=3, batch_size=16, micro_batch=16))
        return tl.compare(tl.load_pair(folder, Path(work) / "tuned"), suites, controls=tl.Controls(seeds=2))


def patched() -> xr.Dataset:
    """The patches of notebooks/05_patch_is_not_graft.ipynb."""
    return tl.patch(tl.demo_pair(), tl.demo_suite().limit(150, seed=0), component=["attn", "mlp"], metrics=["logprob"])


def grafted() -> xr.Dataset:
    """Its grafts."""
    return tl.layers(tl.demo_pair(), tl.demo_suite().limit(150, seed=0), views=["alone"], metrics=["logprob"])


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
    return tl.drift(tl.demo_pair(), tl.demo_suite().limit(150, seed=0))


Records = list[dict]


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        compute: Makes the result that it is drawn from; its name is the result's.
        summarise: Result to summary.
        draw: Summary to figure.
        records: Summary to the numbers that are kept as JSON.
        check: Whether `make.py --check` computes it again; not where that takes minutes, or trains: what is trained moves with rounding.
        needs_shared: Whether it needs real models and data that lie beside the project.
    """

    compute: Callable[[], xr.Dataset]
    summarise: Callable[[xr.Dataset], xr.Dataset]
    draw: Callable[[xr.Dataset], go.Figure]
    records: Callable[[xr.Dataset], Records]
    check: bool = True
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


def _pattern_records(result: xr.Dataset) -> Records:
    return result.pattern.to_series().rename("share").reset_index().to_dict("records")


def _itself(result: xr.Dataset) -> xr.Dataset:
    return result


def _patching(compute: Callable[[], xr.Dataset], draw: Callable[[xr.Dataset], go.Figure]) -> Drawn:
    return Drawn(compute, tl.patch_summary, draw, tl.tables.records)


def _layers(compute: Callable[[], xr.Dataset], draw: Callable[[xr.Dataset], go.Figure], *, check: bool) -> Drawn:
    return Drawn(compute, tl.layers_summary, draw, tl.tables.layers_records, check)


def _ranking(draw: Callable[[xr.Dataset], go.Figure]) -> Drawn:
    return Drawn(ranked, tl.heads_summary, draw, tl.tables.heads_records, check=False)


FIGURES = {
    "01_quickstart": _patching(one_layer, tl.patch_figure),
    "01_quickstart_layers": _patching(all_layers, tl.patch_figure),
    "02_compare": Drawn(grid, tl.grid_summary, tl.compare_figure, tl.tables.grid_records),
    "02_plane": Drawn(grid, tl.grid_summary, tl.plane_figure, tl.tables.grid_records),
    "02_layers": _layers(credit, tl.layers_figure, check=False),
    "02_gains": _layers(credit, _shapley_gains, check=False),
    "02_shapley": _layers(credit, tl.shapley_figure, check=False),
    "03_heads": _ranking(tl.head_maps_figure),
    "03_agreement": _ranking(tl.agreement_figure),
    "03_check": _ranking(tl.heads_figure),
    "04_compare": Drawn(own_model, tl.grid_summary, tl.compare_figure, tl.tables.grid_records, check=False, needs_shared=True),
    "05_patched": _patching(patched, tl.gains_figure),
    "05_grafted": _layers(grafted, _alone_gains, check=True),
    "recovered": _patching(all_layers, tl.recovered_figure),
    "cumulative": _layers(credit, tl.cumulative_figure, check=False),
    "lens": Drawn(spoken, _itself, tl.lens_figure, tl.tables.lens_records),
    "attribution": Drawn(attributed, attribution_summary, tl.plots.attribution_figure, tl.tables.check_records),
    "transfer": Drawn(transferred, tl.transfer_summary, tl.transfer_figure, tl.tables.transfer_records, check=False),
    "steering": Drawn(steered, tl.steering_summary, tl.steering_figure, tl.tables.steering_records, check=False),
    "attention": Drawn(looked, _itself, tl.attention_figure, _pattern_records),
    "anatomy": Drawn(anatomy, _itself, tl.anatomy_figure, tl.tables.anatomy_records),
    "drift": Drawn(drifted, tl.drift_summary, tl.drift_figure, tl.tables.drift_records),
}
