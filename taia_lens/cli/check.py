"""`taia-lens check`: is this a pair, what differs, and do the laws hold?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from taia_lens.cli import common
from taia_lens.errors import CheckError

if TYPE_CHECKING:
    from rich.console import Console

    from taia_lens.engine import Pace
    from taia_lens.pair import Pair


def check(
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    measure: bool = typer.Option(
        False, "--measure", help="Also measure how many tokens a call of a block should be given on this machine."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report on stdout as JSON."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Check a pair: same architecture and tokenizer, which tensors differ and how much, and the laws that need no data.

    Example: taia-lens check --base ./base --tuned ./tuned
    """
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    with common.status("loading and checking the pair"):
        pair = options.load(checked=False)
    pace = _measured(pair) if measure and not pair.report.plain_because else None
    if as_json:
        found = common.provenance(pair) | {"differences": [asdict(d) for d in pair.differences]}
        if measure:
            found["pace"] = None if pace is None else {"seconds_a_token": pace.seconds, "advised_call_tokens": pace.tokens}
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        _print(pair)
        if pace is not None:
            _print_pace(pace)
        elif measure:
            print("nothing to measure: recipes share no work on this pair, so that no call is given more than its prompts")
    failed = [law for law in pair.report.laws if not law.holds]
    if failed:
        raise CheckError(
            f"{len(failed)} of {len(pair.report.laws)} laws fail, the first: {failed[0].name}; numbers from this pair could not be trusted"
        )


def _print(pair: Pair) -> None:
    from rich.console import Console

    shown = Console(highlight=False, width=None if Console().is_terminal else 140)
    s, o, r = pair.shape, pair.origin, pair.report
    shown.print(f"base   {o.base}\ntuned  {o.tuned}", markup=False, soft_wrap=True)
    shape = f"{s.n_layers} layers, {s.n_heads} heads ({s.n_key_value_heads} key-value), d_model {s.d_model}, vocabulary {s.d_vocab}"
    shown.print(f"both   {shape}, {o.dtype}, on {' and '.join(map(str, pair.devices))}; {r.tokenizer}", markup=False)
    if r.merge_drift is not None:
        shown.print(f"adapter merged in float32; merged and unmerged logits differ by at most {r.merge_drift:.2g} on a probe", markup=False)
    if r.added_tokens:
        shown.print(f"tokens only in tuned: {', '.join(r.added_tokens[:10])} ({len(r.added_tokens)} in all)", markup=False)
    for note in r.notes:
        shown.print(f"note: {note}", markup=False)
    _print_differences(shown, pair)
    _print_laws(shown, pair)


def _measured(pair: Pair) -> Pace:
    from taia_lens.engine import measure_pace

    with common.status("measuring how many tokens a call should be given"):
        return measure_pace(pair.loaded("base"))


def _print_pace(pace: Pace) -> None:
    from taia_lens.budget import BUDGET

    print("a token of rows of 32 in one block, by tokens of a call: " + ", ".join(f"{n} {s * 1e6:.2f} µs" for n, s in pace.seconds.items()))
    if pace.tokens == BUDGET.tokens:
        print(f"the default, {BUDGET.tokens} tokens a call, suits this model on this machine")
        return
    own, default = pace.seconds[pace.tokens], pace.seconds.get(BUDGET.tokens)
    gain = "memory has no room for more" if default is None else f"a token takes {own / default:.2f} of the default's time"
    print(f"--call-tokens {pace.tokens} suits this model on this machine: {gain}")


def _print_differences(shown: Console, pair: Pair) -> None:
    """Size of the update relative to the base's weights, by layer and component."""
    from rich import box
    from rich.table import Table

    from taia_lens.pair import relative_updates
    from taia_lens.sites import GRAFTABLE

    sizes = relative_updates(pair)
    components = [c for c in GRAFTABLE if any(component == c for component, _ in sizes)]
    table = Table(box=box.SIMPLE, title=f"{len(pair.differences)} tensors differ: |tuned - base| / |base|", title_justify="left")
    for name in ("layer", *components):
        table.add_column(name, justify="right")
    layers = sorted({layer for _, layer in sizes}, key=lambda layer: -1 if layer is None else layer)
    for layer in layers:
        found = [sizes.get((component, layer)) for component in components]
        table.add_row("-" if layer is None else str(layer), *("-" if size is None else f"{size:.4f}" for size in found))
    shown.print(table)


def _print_laws(shown: Console, pair: Pair) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title="laws", title_justify="left")
    for name, justify in (("", "left"), ("law", "left"), ("measured", "right"), ("bound", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for law in pair.report.laws:
        sign = ">" if law.name.startswith("zero-ablating") else "<="
        table.add_row("ok" if law.holds else "FAILS", Text(law.name), f"{law.value:.2g}", f"{sign} {law.bound:.2g}")
    shown.print(table)
