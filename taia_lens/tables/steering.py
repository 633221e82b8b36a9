"""Tables and records of the steering study."""

from __future__ import annotations

from typing import Any

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from taia_lens.tables.grid import adjusted, interval, plain, title_of


def steering_tables(summary: xr.Dataset) -> list[Table]:
    """For each group a table: a row a strength of each direction (the chosen one marked), then the further scales.

    Args:
        summary: What `summaries.steering_summary` returned.
    """
    return [_table(summary.isel(group=i)) for i in range(summary.sizes["group"])]


def _table(group: xr.Dataset) -> Table:
    method = str(group.direction.values[0])
    table = Table(box=box.SIMPLE, title=Text(title_of(group)), title_justify="left")
    table.add_column("what", no_wrap=True)
    for name in ("numbers", "value [95%]", "- base [95%] q", f"- {method} as chosen [95%] q"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("base", "0", _level(group.isel(direction=0).sel(alpha=0.0), ""), "", "")
    for direction in group.direction.values.tolist():
        line = group.sel(direction=direction)
        for alpha in line.alpha.values[line.alpha.values != 0].tolist():
            mark = " <- chosen" if alpha == float(line.chosen) else ""
            cell = line.sel(alpha=alpha)
            row = [f"{direction}, alpha {alpha:g}{mark}", str(int(line.numbers)), _level(cell, ""), _difference(cell, "diff", "q"), ""]
            table.add_row(*map(Text, row))
    for arm in group.arm.values.tolist() if "arm" in group.dims else []:
        cell = group.sel(arm=arm)
        numbers = [_level(cell, "arm_"), _difference(cell, "arm_diff", "arm_q"), _difference(cell, "over", "over_q")]
        table.add_row(*map(Text, [str(arm), str(int(cell.arm_numbers)), *numbers]))
    return table


def _level(cell: xr.Dataset, of: str) -> str:
    return f"{float(cell[f'{of}value']):.3f} [{float(cell[f'{of}low']):.3f}, {float(cell[f'{of}high']):.3f}]"


def _difference(cell: xr.Dataset, name: str, q: str) -> str:
    return f"{interval(cell, name)} {adjusted(float(cell[q]))}"


def steering_note(summary: xr.Dataset) -> str:
    """How alpha was chosen, and what it would be reported as."""
    method, on = str(summary.direction.values[0]), summary.attrs["validated_on"]
    chosen = {str(d): float(summary.chosen.sel(direction=d)) for d in summary.direction.values}
    controls = [f"{alpha:g}" for name, alpha in chosen.items() if name != method]
    text = (
        f"alpha {chosen[method]:g} of {method} was chosen by {summary.attrs['chosen_by']} on {on['rows']} rows of {on['name']}, none of "
        "the prompts above; alpha is in standard deviations along the direction"
    )
    random = f"; random directions of the same length chose {', '.join(controls)}" if controls else ""
    unmoved = f"; alpha 0 is the model itself: no strength of {method} was better there" if chosen[method] == 0 else ""
    lines = [f"{text}{unmoved}{random}. * told apart from 0 (sign-flip test, false-discovery rate 5%)"]
    return "\n".join([*lines, *(_verdict(summary.isel(group=i), method) for i in range(summary.sizes["group"]) if controls)])


def _verdict(group: xr.Dataset, method: str) -> str:
    """Whether the direction does more than random ones, all as chosen."""
    gain, told = float(group.control_diff) * float(group.better), float(group.control_q) <= 0.05
    word = ("better than" if gain > 0 else "worse than") if told else "not told apart from"
    return f"{title_of(group)}: {method} is {word} random directions, each as chosen ({_difference(group, 'control_diff', 'control_q')})"


def steering_records(summary: xr.Dataset) -> list[dict[str, Any]]:
    """One plain dict a (group, direction, alpha), and one a (group, arm), ready for JSON."""
    out = []
    for i in range(summary.sizes["group"]):
        group = summary.isel(group=i)
        labels = {name: group[name].item() for name in ("suite", "domain", "metric", "n", "better")}
        for direction in group.direction.values.tolist():
            line = group.sel(direction=direction)
            for alpha in line.alpha.values.tolist():
                cell = line.sel(alpha=alpha)
                numbers = {name: plain(cell[name]) for name in ("value", "low", "high", "diff", "diff_low", "diff_high", "p", "q")}
                chosen = alpha == float(line.chosen)
                out.append(labels | {"direction": direction, "alpha": alpha, "chosen": chosen, "numbers": int(line.numbers)} | numbers)
        for arm in group.arm.values.tolist() if "arm" in group.dims else []:
            cell = group.sel(arm=arm)
            names = [str(name) for name in cell.data_vars if str(name).startswith(("arm_", "over")) and not cell[name].dims]
            out.append(labels | {"arm": arm} | {name.removeprefix("arm_"): plain(cell[name]) for name in names})
    return out
