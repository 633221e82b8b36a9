"""What every cell fixed and broke, small enough to embed: counts of all examples, lists of some, every text once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from taia_lens.metric_names import METRICS
from taia_lens.suite import DOMAIN_NAMES
from taia_lens.summaries.changed import EXAMPLED, Trial, better_and_worse, trials

BYTES = 3_000_000
"""What all lists and texts of a report may take."""
SIZES = ((50, 600), (25, 400), (10, 240), (4, 160), (1, 100))
"""Examples listed a cell, and letters a text: the first size that fits is taken."""
_WHERE = ("suite", "tuned_on", "domain")  # coords of examples that part them into groups
_UNNAMED = ("unit", "better", "token", "text")  # coords that no cell is named by


_Example = tuple[str, str, str]  # id, prompt, answer


@dataclass(frozen=True, eq=False)
class Side:
    """The examples of a cell that got better (or worse): how many, and of the first of them the row, the values and the texts."""

    n: int
    rows: np.ndarray
    ends: np.ndarray
    texts: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell: n examples, whether all values are 0 or 1, the means before and after, and who got better and who worse."""

    n: int
    rate: bool
    means: tuple[float, float]
    better: Side
    worse: Side


@dataclass(frozen=True, eq=False)
class Board:
    """All cells of one kind.

    Attributes:
        name: Of the kind: a view, or its last dim.
        at: What tells these cells from the study's others.
        words: What before and after are.
        dims: What each place along each dim is called, `{"metric": [{"metric": "accuracy"}, ...]}`; the first is the group of examples.
        cells: In the order of the dims, the last running fastest.
        examples: Id, prompt and answer of every row.
    """

    name: str
    at: Mapping[str, str]
    words: tuple[str, str]
    dims: dict[str, list[dict[str, Any]]]
    cells: list[Cell]
    examples: list[_Example]


def boards(result: xr.Dataset) -> list[Board]:
    """Every kind of cell of a result; none where the study measures no example before and after."""
    if result.attrs["study"] not in EXAMPLED:
        return []
    suite = {"suite": str(result.attrs["suite"])} if "suite" not in result.coords and "suite" in result.attrs else {}
    return [_board(trial, suite) for trial in trials(result)]


def _board(trial: Trial, suite: dict[str, str]) -> Board:
    values = trial.values
    arrays = dict(zip(values.data_vars, xr.broadcast(*values.data_vars.values()), strict=True))
    dims = ["metric", *(str(d) for d in arrays["after"].dims if d not in ("metric", "example"))]
    whole = {str(name): array.transpose(*dims, "example").values for name, array in arrays.items()}
    groups = _groups(values, suite)
    places = {dim: _places(values, dim) for dim in dims}
    signs = [METRICS[str(name)].better for name in values.metric.values]
    cells = [
        _cell({name: array[at][rows] for name, array in whole.items()}, rows, signs[at[0]])
        for _, rows in groups
        for at in product(*(range(len(places[dim])) for dim in dims))
    ]
    named = {"examples": [labels for labels, _ in groups]} | places
    return Board(trial.at.get("view", dims[-1]), trial.at, trial.words, named, cells, _examples(values))


def _groups(values: xr.Dataset, suite: dict[str, str]) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The groups that examples are in (suite and domain), and which examples they are."""
    names = [name for name in _WHERE if name in values.coords]
    keys = list(zip(*(values[name].values.tolist() for name in names), strict=True))
    members: dict[tuple, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    found = sorted(members, key=lambda key: list(DOMAIN_NAMES).index(key[-1]))
    return [(suite | dict(zip(names, key, strict=True)), np.array(members[key])) for key in found]


def _places(values: xr.Dataset, dim: str) -> list[dict[str, Any]]:
    """What each place along a dim may be called: by its own name, and by the labels along it."""
    labels = [dim, *(str(name) for name, c in values.coords.items() if c.dims == (dim,) and name not in (dim, *_UNNAMED))]
    return [dict(zip(labels, row, strict=True)) for row in zip(*(values[name].values.tolist() for name in labels), strict=True)]


def _cell(values: dict[str, np.ndarray], rows: np.ndarray, sign: int) -> Cell:
    ends = np.stack([values["before"], values["after"]], axis=-1)
    known = ~np.isnan(ends).any(-1)
    texts = np.stack([values["before_text"], values["after_text"]], axis=-1) if "before_text" in values else None
    sides = []
    for found in better_and_worse(sign * (ends[:, 1] - ends[:, 0])):
        some = found[: SIZES[0][0]]
        sides.append(Side(len(found), rows[some], ends[some], None if texts is None else texts[some]))
    means = ends[known].mean(0) if known.any() else np.full(2, np.nan)
    rate = bool(np.isin(ends[known], (0.0, 1.0)).all())
    return Cell(int(known.sum()), rate, (float(means[0]), float(means[1])), *sides)


def embedded(found: Sequence[Sequence[Board]], budget: int = BYTES) -> dict[str, Any]:
    """The boards of several runs as plain lists, with the texts of all examples that are listed.

    Args:
        found: By run, its boards.
        budget: In bytes of JSON. Counts are always of all examples; lists and texts are cut until they fit.

    Returns:
        `examples` (id, prompt, answer) and generated `texts`, each once; by run its boards, whose cells point at them; `listed` and
        `letters`: where lists and texts were cut.
    """
    data: dict[str, Any] = {}
    for most, letters in SIZES:
        book = _Book({}, {})
        runs = [[_plain_board(board, book, most) for board in some] for some in found]
        examples = [[name, cut(prompt, letters), cut(answer, letters)] for name, prompt, answer in book.examples]
        data = {
            "listed": most,
            "letters": letters,
            "examples": examples,
            "texts": [cut(text, letters) for text in book.texts],
            "runs": runs,
        }
        if len(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")) <= budget:
            break
    return data


@dataclass(frozen=True)
class _Book:
    """Examples and generated texts, each once, by number."""

    examples: dict[_Example, int]
    texts: dict[str, int]


def _plain_board(board: Board, book: _Book, most: int) -> dict[str, Any]:
    start = max(range(len(board.cells)), key=lambda i: (board.cells[i].rate, board.cells[i].better.n))
    cells = [_plain_cell(cell, board.examples, book, most) for cell in board.cells]
    about = {"name": board.name, "at": dict(board.at), "words": list(board.words), "start": start}
    return about | {"dims": [{"name": name, "places": places} for name, places in board.dims.items()], "cells": cells}


def _plain_cell(cell: Cell, examples: Sequence[_Example], book: _Book, most: int) -> list[Any]:
    """[n, rate, mean before, mean after, better, worse], each side [how many, examples, values, texts], as far as there are any."""
    out: list[Any] = [cell.n, int(cell.rate), *map(_short, cell.means)]
    for side in (cell.better, cell.worse):
        plain: list[Any] = [side.n, [book.examples.setdefault(examples[i], len(book.examples)) for i in side.rows[:most].tolist()]]
        if not cell.rate or side.texts is not None:
            plain.append([] if cell.rate else [_short(end) for end in side.ends[:most].flatten().tolist()])
        if side.texts is not None:
            plain.append([book.texts.setdefault(str(text), len(book.texts)) for text in side.texts[:most].flat])
        out.append(plain)
    return out


def _examples(values: xr.Dataset) -> list[_Example]:
    names = [str(name) for name in values.example.values]
    if "suite" in values.coords:
        names = [name.removeprefix(f"{suite}/") for name, suite in zip(names, values.suite.values, strict=True)]
    return [
        (name, str(prompt), str(answer)) for name, prompt, answer in zip(names, values.prompt.values, values.answer.values, strict=True)
    ]


def cut(text: str, most: int) -> str:
    """Text of at most about so many letters: of a longer one its beginning and, since the question is there, more of its end.

    >>> cut("abcdefghijklmnopqrstuvwxyz", 13)
    'abcde … stuvwxyz'
    """
    head = most // 3 + 1
    return text if len(text) <= most else f"{text[:head]} … {text[-(most - head) :]}"


def _short(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")
