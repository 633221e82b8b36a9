"""Many cells at once: what is found in the store, what is read together, and what is computed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from taia_lens.engine import Part, Reads
from taia_lens.evaluation import Piece, Reading, Scored, off_device, score
from taia_lens.scoring.suites import Prepared, Scores
from taia_lens.store import Cell, CellStore, key_of
from taia_lens.weights import Model


@dataclass(frozen=True, eq=False)
class Work:
    """How much was computed, added up as it is; what the store had is not in it, nor is generated text."""

    parts: list[float] = field(default_factory=list)

    @property
    def forwards(self) -> float:
        """In forwards over all prompts of the suites: a recipe that shares nothing with another is one."""
        return sum(self.parts, 0.0)


@dataclass(frozen=True, eq=False)
class Scorable:
    """Several things whose scores are asked for: recipes on a pair, or scales on a model.

    Attributes:
        depends: All that the cells of each depend on, besides the piece.
        device: Where forwards run.
        parts: Some of them on the same rows, in parts that there is room for.
        live: Each by itself, on its model.
        apart: Those that are carried out once, and scored on all pieces then.
    """

    depends: Sequence[Mapping[str, Any]]
    device: torch.device
    parts: Callable[[Sequence[int], Reads], Sequence[Part]]
    live: Callable[[int], AbstractContextManager[Model]]
    apart: frozenset[int] = frozenset()

    def what(self, i: int, piece: Piece) -> dict[str, Any]:
        """All that a cell depends on."""
        return {**self.depends[i], "content": piece.key}


def scored(asked: Scorable, suites: Sequence[Prepared], store: CellStore | None, bar: tqdm, work: Work) -> list[list[Scores]]:
    """The scores of each thing asked for, on each suite; a cell goes into the store as soon as it is finished."""
    pieces = [piece for suite in suites for piece in suite.pieces]
    cells, missing = _found(asked, pieces, store)
    bar.update(len(asked.depends) * len(pieces) - len(missing))
    for i, piece, one in _computed(asked, missing, _shares(pieces), work):
        what = asked.what(i, piece)
        cells[key_of(what)] = cell = Cell(one.values, one.transcripts)
        if store is not None:
            store.put(what, cell)
        bar.update()
    return [
        [_gather(suite, [cells[key_of(asked.what(i, piece))] for piece in suite.pieces]) for suite in suites]
        for i in range(len(asked.depends))
    ]


def _found(asked: Scorable, pieces: Sequence[Piece], store: CellStore | None) -> tuple[dict[str, Cell], list[tuple[int, Piece]]]:
    """Cells by key, and which are missing; where two would be one (the same recipe, the same rows), it is missing once."""
    cells: dict[str, Cell] = {}
    missing: dict[str, tuple[int, Piece]] = {}
    for i in range(len(asked.depends)):
        for piece in pieces:
            what = asked.what(i, piece)
            cell = None if store is None else store.get(what)
            if cell is None:
                missing.setdefault(key_of(what), (i, piece))
            else:
                cells[key_of(what)] = cell
    return cells, list(missing.values())


def _computed(
    asked: Scorable, missing: Sequence[tuple[int, Piece]], shares: Mapping[Reads, float], work: Work
) -> Iterator[tuple[int, Piece, Scored]]:
    """Piece by piece all that can be read together; then, one by one, what needs a model of its own for a while."""
    together: dict[Piece, list[int]] = {}
    apart: dict[int, list[Piece]] = {}
    for i, piece in missing:
        if isinstance(piece.how, Reading) and i not in asked.apart:
            together.setdefault(piece, []).append(i)
        else:
            apart.setdefault(i, []).append(piece)
    for piece, which in together.items():
        assert isinstance(piece.how, Reading)
        yield from ((i, piece, one) for i, one in _read(asked, piece.how, which, shares, work))
    for i, pieces in apart.items():
        with asked.live(i) as model:
            for piece in pieces:
                yield i, piece, score(model, piece)
                work.parts.extend(shares[reads] for reads in (piece.how.reads if isinstance(piece.how, Reading) else ()))


def _read(
    asked: Scorable, reading: Reading, which: Sequence[int], shares: Mapping[Reads, float], work: Work
) -> Iterator[tuple[int, Scored]]:
    """Several on one piece: each as soon as the last of the piece's forwards has it."""
    found: dict[int, list[np.ndarray]] = {i: [] for i in which}
    for reads in reading.reads:
        for k, array in _in_parts(reading, reads, asked.parts(which, reads.to(asked.device)), shares[reads], work):
            of = found[which[k]]
            of.append(array)
            if len(of) == len(reading.reads):
                yield which[k], Scored(reading.values(of))


def _in_parts(reading: Reading, reads: Reads, parts: Sequence[Part], share: float, work: Work) -> Iterator[tuple[int, np.ndarray]]:
    """One forward of each, in parts of its rows: whole as soon as the last part has it."""
    found: dict[int, list[np.ndarray]] = {}
    for part in parts:
        work.parts.append(share * part.work * len(part.reads.batch.rows) / len(reads.batch.rows))
        for k, array in off_device((k, reading.small(part.reads, one)) for k, one in part.run()):
            found.setdefault(k, []).append(array)
            if len(found[k]) == len(parts):
                yield k, np.concatenate(found.pop(k), axis=-1)


def _shares(pieces: Sequence[Piece]) -> dict[Reads, float]:
    """How much of a forward over everything each forward is, by tokens."""
    sizes = {reads: int(reads.batch.mask.sum()) for piece in pieces if isinstance(piece.how, Reading) for reads in piece.how.reads}
    return {reads: size / sum(sizes.values()) for reads, size in sizes.items()}


def _gather(suite: Prepared, cells: Sequence[Cell]) -> Scores:
    values = np.full((len(suite.metrics), len(suite.suite)), np.nan)
    texts: dict[int, str] = {}
    for piece, cell in zip(suite.pieces, cells, strict=True):
        for i, metric in enumerate(suite.metrics):
            values[i, list(piece.rows)] = cell.values[metric]
        texts |= dict(zip(piece.rows, cell.transcripts, strict=False))  # empty where nothing is generated
    return Scores(values, tuple(texts[i] for i in sorted(texts)))
