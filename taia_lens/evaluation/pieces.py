"""What the tasks share: pieces, their keys, how rows are put together, and the length limit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taia_lens.batch import Encoder
from taia_lens.engine import Reads
from taia_lens.errors import SuiteError
from taia_lens.suite import Row
from taia_lens.weights import Model

AT_ONCE = 64  # small results that leave a GPU together


@dataclass(frozen=True, eq=False)
class Scored:
    """One value per row for each metric, and one text per row where text was generated."""

    values: Mapping[str, np.ndarray]
    transcripts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reading:
    """Values that are read of forwards on known tokens, so that many recipes can be asked for at once.

    Attributes:
        reads: What is read, on the CPU; one forward each.
        small: What one of them gave, made smaller where it is.
        values: What all of them gave, made small, in float64: one value per row for each metric.
    """

    reads: tuple[Reads, ...]
    small: Callable[[Reads, Tensor], Tensor] = field(repr=False)
    values: Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a suite, tokenized.

    Attributes:
        rows: Where they stand in the suite.
        key: Hash of all that the values depend on besides the model: ids, answers, the task, the metrics. Neither the suite's
            name nor its other rows are in it.
        how: What is read of it; or, where text is generated, what scores it on a live model.
    """

    rows: tuple[int, ...]
    key: str
    how: Reading | Callable[[Model], Scored] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Setting:
    """What a suite is prepared with."""

    encoder: Encoder
    models: tuple[Model, ...]
    n_ctx: int
    metrics: tuple[str, ...]
    batch_size: int

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.encoder.suite.rows

    def key(self, content: Any) -> str:
        """Hash of the kind of task, the metrics and this content, which must be plain JSON."""
        text = json.dumps([self.encoder.suite.task.kind, sorted(self.metrics), content], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fits(self, row: Row, length: int) -> None:
        """Raise where a row has more tokens than the model has positions."""
        if length > self.n_ctx:
            raise SuiteError(f"{self.encoder.where(row)}: {length} tokens, and the model has {self.n_ctx} positions; shorten it")

    def grouped(self, sizes: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Rows of about equal length together, as many as give one batch of sequences.

        Args:
            sizes: Sequences of each row.
            lengths: Tokens of its longest.
        """
        groups: list[list[int]] = []
        filled = 0
        for row in sorted(range(len(sizes)), key=lambda i: (lengths[i], i)):
            if not groups or filled + sizes[row] > self.batch_size:
                groups.append([])
                filled = 0
            groups[-1].append(row)
            filled += sizes[row]
        return [tuple(group) for group in groups]


def off_device(found: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, np.ndarray]]:
    """Small results of one shape, numbered, as float64 arrays: from the CPU at once, from a GPU many together.

    A transfer waits for all that was asked of the GPU before it, and nothing is asked of it meanwhile.
    """
    waiting: list[tuple[int, Tensor]] = []
    for i, tensor in found:
        waiting.append((i, tensor))
        if tensor.device.type == "cpu" or len(waiting) == AT_ONCE:
            yield from _moved(waiting)
            waiting = []
    if waiting:
        yield from _moved(waiting)


def _moved(waiting: Sequence[tuple[int, Tensor]]) -> list[tuple[int, np.ndarray]]:
    arrays = torch.stack([tensor for _, tensor in waiting]).detach().cpu().double().numpy()
    return [(i, array) for (i, _), array in zip(waiting, arrays, strict=True)]
