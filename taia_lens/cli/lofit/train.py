"""`taia-lens lofit select` and `lofit fit`: which heads learning wants to scale, and offsets on those."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import TaiaLensError
from taia_lens.sites import Site, parse_sites
from taia_lens.suite import Suite

if TYPE_CHECKING:
    import xarray as xr

    from taia_lens.loaded import Loaded
    from taia_lens.lofit import Settings
    from taia_lens.scales import Scales
    from taia_lens.store import CellStore

METHODS = ("lofit", "jola")
SHOWN = 16
DATA_HELP = "What to learn: FILE.jsonl (its rows of the domain id), id=FILE for all rows, or demo:NAME. Default: demo:truth-train."
VALIDATION_HELP = "Judges each epoch, in the same forms. Default: a fifth of the rows, drawn with --seed."
EPOCHS_HELP = "Passes over the data, at most. Default: 5, the paper's."
LOSS_HELP = "ce: cross-entropy of the answers; dpo: preference of the right answer over a wrong one (contrast or choices)."
PAIRS_HELP = "With dpo: one pair a row, as the paper's code does, or all."
PATIENCE_HELP = "Stop after so many epochs without a lower validation loss; the best epoch is kept in any case."
MICRO_HELP = "Rows at a time, at most; changes memory and speed, results only by rounding."
SEED_HELP = "Of the first values, the order of the rows, the held-out rows and --limit."
SELECT_LR = "Learning rate of the scales. Default: the paper's for a model of this size (5e-3; 1e-3 above 10B)."
L1_HELP = "Weight of sum |A|. Default: the paper's for a model of this size (5e-4; 1e-3 above 10B)."


@dataclass(frozen=True)
class TrainOptions:
    """What both commands ask: the model, the data, and how to train."""

    options: common.ModelOptions
    data: str | None
    validation: str | None
    limit: int | None
    loss: str
    pairs: str
    epochs: int
    batch_size: int
    micro_batch: int
    patience: int
    seed: int

    def suites(self) -> tuple[Suite, Suite | None]:
        """What to learn, and what judges; read before any model is loaded."""
        data = self.data or ("demo:truth-train" if self.options.demo else None)
        if data is None:
            raise TaiaLensError("your own model needs something to learn: give --data FILE.jsonl (rows with prompt, answer and domain)")
        suite = common.one_suite(data, self.options)
        judge = None if self.validation is None else common.one_suite(self.validation, self.options)
        return suite if self.limit is None else suite.limit(self.limit, seed=self.seed), judge

    def settings(self, defaults: Settings, *, lr: float | None, l1: float | None) -> Settings:
        return replace(
            defaults,
            lr=defaults.lr if lr is None else lr,
            l1=defaults.l1 if l1 is None else l1,
            loss=self.loss,
            pairs=self.pairs,
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            patience=self.patience,
            seed=self.seed,
        )


def select(
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    data: str | None = typer.Option(None, "--data", "--train", help=DATA_HELP),
    validation: str | None = typer.Option(None, help=VALIDATION_HELP),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    lr: float | None = typer.Option(None, help=SELECT_LR),
    l1: float | None = typer.Option(None, help=L1_HELP),
    loss: str = typer.Option("ce", help=LOSS_HELP),
    pairs: str = typer.Option("one", help=PAIRS_HELP),
    epochs: int = typer.Option(5, help=EPOCHS_HELP),
    batch_size: int = typer.Option(8, help="Rows (pairs, with dpo) a step."),
    micro_batch: int = typer.Option(64, help=MICRO_HELP),
    patience: int = typer.Option(2, help=PATIENCE_HELP),
    seed: int = typer.Option(0, min=0, help=SEED_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells: a run that is killed begins anew."),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/lofit-select-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Score every attention head by how far learning moves a scale on its output (LoFiT's first step, arXiv 2406.01563).

    Writes result.nc (norms, scales, every epoch), meta.json, figure.html (the norms) and training.html into a run folder and prints
    its path. A run that is killed goes on from its last finished epoch when the same command is run again.

    Example: taia-lens lofit select --epochs 10 --batch-size 16

    Example: taia-lens lofit select --base ./base --data train.jsonl --loss dpo
    """
    started = time.time()
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code)
    asked = TrainOptions(options, data, validation, limit, loss, pairs, epochs, batch_size, micro_batch, patience, seed)
    suite, judge = asked.suites()
    folder = common.run_folder(out, "lofit-select")
    with _opened(asked, None if no_store else store) as (model, cells):
        from taia_lens import lofit, plots, results, summaries

        settings = asked.settings(lofit.select_settings(model.n_parameters), lr=lr, l1=l1)
        progress = sys.stderr.isatty()
        found = lofit.select(model, suite, validation=judge, settings=settings, store=cells, progress=progress)
    meta = common.meta(model, started=started, seed=seed) | {"suites": [common.suite_meta(suite, data)]}
    history = summaries.training_history({"selection": found.attrs["training"]}, model=model.name)
    figures = {
        "figure.html": plots.head_maps_figure(summaries.selection_summary(found, min(SHOWN, found.norm.size))),
        "training.html": plots.training_figure(history),
    }
    writers = {name: lambda path, figure=figure: figure.write_html(path, include_plotlyjs=True) for name, figure in figures.items()}
    results.write_run(folder, found, meta, writers)
    _show(found, lofit.top_heads(found.norm, min(SHOWN, found.norm.size)))
    _overlap(found.attrs["data"])
    if as_json:
        print(json.dumps({"run": str(folder), "heads": _records(found)}, indent=1, allow_nan=False))
    print(folder, file=sys.stderr if as_json else sys.stdout)
    _stopped(found.attrs["training"], folder)


def fit(
    base: str | None = typer.Option(None, "--base", "--model", help=common.MODEL_HELP),
    data: str | None = typer.Option(None, "--data", "--train", help=DATA_HELP),
    validation: str | None = typer.Option(None, help=VALIDATION_HELP),
    limit: int | None = typer.Option(None, help=common.LIMIT_HELP),
    k: str = typer.Option("3%", help="How many heads get offsets: 16, or a share of all heads such as 3%."),
    heads: str | None = typer.Option(None, help="The heads themselves, and no selection: L3.h5,L6.h0-2."),
    method: str = typer.Option("lofit", help="lofit: select, then offsets; jola: gains and offsets behind gates in one step."),
    l0: float = typer.Option(1e-3, help="jola: weight of the number of gates that are open."),
    lr: float | None = typer.Option(None, help="Learning rate of the offsets. Default: the paper's for a model of this size (1e-2)."),
    select_lr: float | None = typer.Option(None, help=SELECT_LR),
    l1: float | None = typer.Option(None, help=L1_HELP),
    loss: str = typer.Option("ce", help=LOSS_HELP),
    pairs: str = typer.Option("one", help=PAIRS_HELP),
    epochs: int = typer.Option(5, help=EPOCHS_HELP),
    batch_size: int = typer.Option(8, help="Rows (pairs, with dpo) a step."),
    micro_batch: int = typer.Option(64, help=MICRO_HELP),
    patience: int = typer.Option(2, help=PATIENCE_HELP),
    seed: int = typer.Option(0, min=0, help=SEED_HELP),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    store: Path = typer.Option(common.STORE, help=common.STORE_HELP),
    no_store: bool = typer.Option(False, "--no-store", help="Keep no cells: a run that is killed begins anew."),
    out: Path | None = typer.Option(None, help="The adapter's folder. Default: runs/lofit-fit-DATE-TIME."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """LoFiT: select heads by learned scales, then learn an offset for each of them; the model's weights stay as they are.

    Writes an adapter of kilobytes (scales.safetensors, scales.json; selection.nc) and prints the folder's path. Every other
    command takes it as the tuned side: --tuned FOLDER. A run that is killed goes on from its last finished epoch.

    Example: taia-lens lofit fit --k 10% --epochs 10 --batch-size 16 --out truthful

    Example: taia-lens lofit fit --base ./base --data train.jsonl --validation dev.jsonl --k 3% --loss dpo --out truthful
    """
    options = common.ModelOptions(base, device, dtype, allow_pickle, trust_remote_code)
    asked = TrainOptions(options, data, validation, limit, loss, pairs, epochs, batch_size, micro_batch, patience, seed)
    if method not in METHODS:
        raise TaiaLensError(f"no method {method!r}; there are {', '.join(METHODS)}")
    named = None if heads is None else tuple(site for text in _split(heads) for site in parse_sites(text))
    suite, judge = asked.suites()
    folder = common.run_folder(out, "lofit-fit")
    with _opened(asked, None if no_store else store) as (model, cells):
        from taia_lens import lofit

        n = model.n_parameters
        first, second = asked.settings(lofit.select_settings(n), lr=select_lr, l1=l1), asked.settings(lofit.tune_settings(n), lr=lr, l1=0.0)
        chosen: xr.Dataset | None = None
        bar = sys.stderr.isatty()
        if method == "jola":
            scales = lofit.jola(model, suite, l0=l0, validation=judge, settings=replace(first, l1=0.0), store=cells, progress=bar)
        elif named is not None:
            scales = lofit.tune(model, suite, named, validation=judge, settings=second, store=cells, progress=bar)
        else:
            chosen, scales = lofit.fit(model, suite, k, validation=judge, selecting=first, tuning=second, store=cells, progress=bar)
    _write(folder, scales, chosen)
    if chosen is not None:
        _show(chosen, scales.sites[:SHOWN])
    training = scales.made["training"]
    best = training["epochs"][training["best"]]
    sites = ", ".join(map(str, scales.sites[:SHOWN])) + (", ..." if len(scales.sites) > SHOWN else "")
    numbers = f"{scales.made['trained']:,} numbers trained, {scales.numbers:,} kept"
    print(f"{method}: {numbers} at {len(scales.sites)} heads: {sites}", file=sys.stderr)
    _overlap(scales.made["data"])
    print(f"loss {best['loss']:.4f}, validation {best['validation']:.4f} in epoch {training['best'] + 1}, the best", file=sys.stderr)
    print(folder)
    _stopped(training, folder)


@contextmanager
def _opened(asked: TrainOptions, store: Path | None) -> Iterator[tuple[Loaded, CellStore | None]]:
    """The model and the store of finished epochs."""
    with common.maybe_store(store) as cells:
        with common.status("loading"):
            model = asked.options.load()
        yield model, cells


def _split(heads: str) -> list[str]:
    """`L3.h5,L6.h0-2` at its commas; a comma between numbers of one layer's heads belongs to them: L3.h5,L3.h6."""
    return [text for text in heads.replace(" ", "").split(",") if text]


def _write(folder: Path, scales: Scales, chosen: xr.Dataset | None) -> None:
    from taia_lens.results import save, whole_folder
    from taia_lens.scales import write_scales

    with whole_folder(folder) as partial:
        write_scales(partial, scales)
        if chosen is not None:
            save(chosen, partial / "selection.nc")


def _show(chosen: xr.Dataset, heads: tuple[Site, ...]) -> None:
    """The heads with the largest norms, best first."""
    from rich.table import Table

    table = Table(title=f"heads by LoFiT's norm, {len(heads)} of {chosen.norm.size}", title_justify="left")
    for name in ("head", "norm ||A||", "norm / rms z", "rms A*z"):
        table.add_column(name, justify="left" if name == "head" else "right")
    for site in heads:
        at = chosen.sel(layer=site.layer, head=site.head)
        table.add_row(str(site), *(f"{float(at[name]):.4g}" for name in ("norm", "relative", "effect")))
    common.console().print(table)


def _records(chosen: xr.Dataset) -> list[dict[str, Any]]:
    names = ("norm", "relative", "effect", "scale")
    return [
        {"head": f"L{layer}.h{head}"} | {name: float(chosen[name].sel(layer=layer, head=head)) for name in names}
        for layer in chosen["layer"].values
        for head in chosen["head"].values
    ]


def _overlap(data: dict[str, Any]) -> None:
    if data["in_both"]:
        print(
            f"taia-lens: note: {data['in_both']} of {data['validation']} validation texts have a prompt that is trained on", file=sys.stderr
        )


def _stopped(training: dict[str, Any], folder: Path) -> None:
    """A training that met a loss that is no number ends with exit code 2; what was best before it is written."""
    if training["stopped"] is not None:
        kept = f"{folder} holds epoch {training['best'] + 1}, the best before it"
        raise TaiaLensError(f"{training['stopped']}; {kept}; lower the learning rate, or look at those rows")
