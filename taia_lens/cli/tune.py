"""`taia-lens tune`: make the tuned side of a pair."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import typer

from taia_lens.cli import common
from taia_lens.errors import TaiaLensError
from taia_lens.tuning.settings import METHODS, Settings


def tune(
    base: str = typer.Option(..., help="The model to tune: a local folder or a Hub id."),
    data: str = typer.Option(..., help="JSONL to train on: a suite, chats or instructions. id=FILE: every row, whatever its domain."),
    train: str = typer.Option(Settings.train, help="all, attn or mlp: whose weights are trained."),
    out: Path = typer.Option(..., help="The folder to write: an adapter, (full) a checkpoint, or (red) scales."),
    method: str | None = typer.Option(None, help="lora (default), full: the weights themselves, red: a gain and bias on each FFN output."),
    full: bool = typer.Option(False, "--full", help="The same as --method full."),
    red: bool = typer.Option(False, "--red", help="The same as --method red."),
    r: int = typer.Option(Settings.r, help="Rank of the adapter."),
    alpha: int = typer.Option(Settings.alpha, help="Scale of the adapter; its update is multiplied by alpha / r."),
    dropout: float = typer.Option(Settings.dropout, help="On the adapter's input."),
    lr: float | None = typer.Option(None, help="Highest learning rate. Default: lora 2e-4, full 2e-5 (Stanford Alpaca's), red 8e-3."),
    epochs: float = typer.Option(Settings.epochs, help="Passes over the data."),
    batch_size: int = typer.Option(Settings.batch_size, help="Rows a step."),
    micro_batch: int = typer.Option(
        Settings.micro_batch, help="Rows at a time, at most; changes memory and speed, results only by dropout's draws."
    ),
    max_length: int = typer.Option(Settings.max_length, help="Longest row in tokens; longer ones are left out, plain text is cut up."),
    limit: int | None = typer.Option(None, help="At most this many rows, drawn with --seed."),
    seed: int = typer.Option(Settings.seed, help="Of the adapter's start, the rows' order, dropout and --limit."),
    device: str = typer.Option("auto", help=common.DEVICE_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Tune a model on your own data, so that it and its base are a pair: all weights, attention's only, or the FFN's only.

    The loss is taken on the answers (the assistant's turns) only. The defaults are those of the TAIA paper's LoRA runs. Writes
    an adapter, a checkpoint or scales, and tuning.json, and prints the folder's path. On a CPU the same command gives the same bits.

    Example: taia-lens tune --base ./base --data train.jsonl --out tuned

    Example: taia-lens tune --base ./base --data train.jsonl --train attn --out only-attention

    Example: taia-lens tune --base ./base --data train.jsonl --method red --epochs 3 --out red
    """
    how = _method(method, full, red)
    settings = Settings(
        train, how == "full", r, alpha, dropout, lr, Settings.warmup, epochs, batch_size, micro_batch, max_length, limit, seed, how == "red"
    )
    with common.status("loading"):
        from taia_lens.tuning import run

        common.quiet()
        gc.freeze()
        gc.enable()
    record = run.tune(
        base,
        _file(data.removeprefix("id=")),
        out,
        settings,
        every=data.startswith("id="),
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        progress=sys.stderr.isatty(),
    )
    for line in _summary(record):
        print(line, file=sys.stderr)
    print(out)


def _method(method: str | None, full: bool, red: bool) -> str:
    """The one method that was asked for, by name or by its flag."""
    asked = {name for name, said in ((method, method is not None), ("full", full), ("red", red)) if said}
    if method is not None and method not in METHODS:
        raise TaiaLensError(f"no method {method!r}; there are {', '.join(METHODS)}")
    if len(asked) > 1:
        raise TaiaLensError(f"one method at a time, and {' and '.join(sorted(map(str, asked)))} were asked for; write one of them")
    return str(next(iter(asked), "lora"))


def _summary(record: dict[str, Any]) -> list[str]:
    data, trained, loss, settings = record["data"], record["trained"], record["loss"], record["settings"]
    tensors = ", ".join(f"{count} of {component}" for component, count in trained["tensors"].items())
    lora = f"by LoRA (r {settings['r']}, alpha {settings['alpha']})"
    how = {"lora": lora, "full": "in full", "red": "by RED (a gain and an offset on each FFN output)"}[settings["method"]]
    unit = "passes (mean over each, as it went)" if settings["red"] else "steps"
    left_out = [f"left out: {n} rows {reason}" for reason, n in data["left_out"].items()]
    return [
        f"data     {data['form']}: {data['read']} rows read, {data['used']} texts used, loss on {data['labels']} tokens",
        *left_out,
        f"trained  {trained['parameters']} parameters {how}: tensors {tensors}",
        f"loss     {loss['first']:.4f} at first, {loss['last']:.4f} at last, {len(loss['steps'])} {unit}, lr {settings['lr']:g}",
    ]


def _file(data: str) -> str:
    """The path of the data, or of the demo's suite of that name."""
    if not data.startswith("demo:"):
        return data
    from taia_lens.demo import FOLDER, demo_suite

    name = data.removeprefix("demo:")
    demo_suite(name)  # or an error that says which there are
    return str(FOLDER / "suites" / f"{name}.jsonl")
