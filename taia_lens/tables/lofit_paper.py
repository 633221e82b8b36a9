"""Tables and records of the paper's protocol."""

from __future__ import annotations

from typing import Any

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import adjusted, interval, plain
from taia_lens.tables.patching import FEW

_LINE = ("value", "low", "high", "spread")
_AGAINST = ("diff", "diff_low", "diff_high", "p", "q")


def lofit_paper_tables(summary: xr.Dataset) -> list[Table]:
    """For each metric a table: base and each choice of heads on each fold and on their mean, and the differences there.

    Args:
        summary: What `summaries.lofit_paper_summary` returned.
    """
    return [_table(summary.sel(metric=metric)) for metric in summary.metric.values]


def _table(found: xr.Dataset) -> Table:
    table = Table(box=box.SIMPLE, title=Text(f"{found.attrs['task']}: {found.metric.item()} ({found.unit.item()})"), title_justify="left")
    references = [str(name) for name in found.reference.values if bool(found["diff"].sel(reference=name).notnull().any())]
    seeds = ["sd over seeds"] * bool(found.spread.notnull().any())
    table.add_column("on", no_wrap=True)
    table.add_column("heads", no_wrap=True)
    for name in ("trained", "value [95%]", *seeds, *(f"- {reference} [95%] q" for reference in references)):
        table.add_column(name, justify="right", no_wrap=True)
    for place in found["where"].values.tolist():
        for i, line in enumerate(found.line.values.tolist()):
            cell = found.sel({"where": place, "line": line})
            few = "" if int(cell.n) >= FEW else " (few)"
            level = f"{float(cell.value):.3f} [{float(cell.low):.3f}, {float(cell.high):.3f}]"
            spread = [f"{float(cell.spread):.3f}" if line != "base" else ""] * len(seeds)
            differences = [_difference(cell.sel(reference=reference)) for reference in references]
            where = "" if i else f"{place}, n = {int(cell.n)}{few}"
            table.add_row(*map(Text, [where, str(line), str(int(cell.numbers)), level, *spread, *differences]))
    return table


def _difference(cell: xr.Dataset) -> str:
    return f"{interval(cell, 'diff')} {adjusted(float(cell.q))}" if bool(cell["diff"].notnull()) else ""


def lofit_paper_note(summary: xr.Dataset) -> str:
    """Whose settings these are, and what the numbers are."""
    protocol = summary.attrs["protocol"]
    few = f"; (few): under {FEW}, too few for the intervals to be trusted" if bool((summary.n < FEW).any()) else ""
    folds = summary.attrs["folds"].items()
    shared = [f"{n} prompts of {name} ({fold}) are in its train too; " for fold, used in folds for name, n in used["in_train_too"].items()]
    return "".join(shared) + (
        f"settings: {protocol['source']}: step 1 lr {protocol['selecting']['lr']:g}, l1 {protocol['selecting']['l1']:g}; step 2 lr "
        f"{protocol['tuning']['lr']:g}; {protocol['k']} heads; loss {protocol['tuning']['loss']}. [95% interval over questions]{few}; "
        "* told apart from 0 (sign-flip test, false-discovery rate 5%)"
    )


def lofit_paper_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (where, metric, line), ready for JSON."""
    out = []
    for place in summary["where"].values.tolist():
        for metric in summary.metric.values.tolist():
            for line in summary.line.values.tolist():
                cell = summary.sel({"where": place, "metric": metric, "line": line})
                record = {"where": place, "metric": metric, "heads": line, "n": int(cell.n), "trained": int(cell.numbers)}
                record |= {name: plain(cell[name]) for name in _LINE}
                for reference in summary.reference.values.tolist():
                    record[f"minus_{reference}"] = {name: plain(cell.sel(reference=reference)[name]) for name in _AGAINST}
                out.append(record)
    return out
