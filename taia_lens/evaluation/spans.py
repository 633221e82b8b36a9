"""Spans: some tokens of a sequence whose log-probability is read. Choices and plain text are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from taia_lens.batch import Batch
from taia_lens.engine import Reads, padded
from taia_lens.evaluation.pieces import Reading

TOKENS = 2**14  # of one forward, padding included, however many sequences fit a batch


@dataclass(frozen=True)
class Span:
    """The tokens `targets`, predicted from position `start` of the ids on; the last target is no input."""

    ids: tuple[int, ...]
    start: int
    targets: tuple[int, ...]

    @classmethod
    def after(cls, before: Sequence[int], targets: Sequence[int]) -> Span:
        return cls((*before, *targets[:-1]), len(before) - 1, tuple(targets))


def read_spans(spans: Sequence[Span], batch_size: int, values: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Reading:
    """The log-probability of each span's targets, summed, in nats, and what is made of those of all spans."""
    sharing: dict[tuple[int, ...], list[int]] = {}  # choices of one token have one input between them: it is run once
    for i, span in enumerate(spans):
        sharing.setdefault(span.ids, []).append(i)
    reads, owners = [], []
    for inputs in _forwards(sorted(sharing, key=len), batch_size):
        each = [
            (row, spans[i].start + k, target, i)
            for row, ids in enumerate(inputs)
            for i in sharing[ids]
            for k, target in enumerate(spans[i].targets)
        ]
        rows, positions, targets, owner = torch.tensor(each).T
        reads.append(Reads(Batch.of(*padded(inputs, torch.device("cpu"))), rows, positions, targets))
        owners.append(owner.numpy())
    return Reading(tuple(reads), _as_read, partial(_of_sums, np.concatenate(owners), len(spans), values))


def _as_read(reads: Reads, logprobs: Tensor) -> Tensor:
    return logprobs


def _of_sums(
    owners: np.ndarray, n: int, values: Callable[[np.ndarray], dict[str, np.ndarray]], found: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    sums = np.zeros(n)
    np.add.at(sums, owners, np.concatenate(found))
    return values(sums)


def _forwards(inputs: Sequence[tuple[int, ...]], batch_size: int) -> Iterator[list[tuple[int, ...]]]:
    """Inputs in order of length, as many at a time as the batch and the token limit allow."""
    some: list[tuple[int, ...]] = []
    for ids in inputs:
        if some and (len(some) == batch_size or (len(some) + 1) * len(ids) > TOKENS):
            yield some
            some = []
        some.append(ids)
    if some:
        yield some
