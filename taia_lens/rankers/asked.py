"""A suite's rows as forwards whose logits give one value per row, with gradients: what patch and atp read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from taia_lens.batch import NO_TOKEN, Batch, Encoder, make_batches
from taia_lens.engine import Reads, padded
from taia_lens.errors import TaiaLensError
from taia_lens.evaluation import prepare
from taia_lens.evaluation.spans import Span
from taia_lens.metrics import Context, measure
from taia_lens.pair import Pair
from taia_lens.rankers.texts import tail
from taia_lens.store import key_of
from taia_lens.suite import Row, Suite


@dataclass(frozen=True, eq=False)
class Asked:
    """Some rows as one forward.

    Attributes:
        rows: Which rows of the suite get a value.
        batch: The sequences; a row may have several (its choices).
        owner: Which of `rows` each sequence is of.
        sequences: The sequence of each read.
        positions: Its position.
        metric: What the logits read there are made into: one value per row.
        targets: For choices: the token of each read.
        right: For choices: the sequence of each row's right one.
    """

    rows: tuple[int, ...]
    batch: Batch
    owner: Int[Tensor, " batch"]
    sequences: Int[Tensor, " read"]
    positions: Int[Tensor, " read"]
    metric: str
    targets: Int[Tensor, " read"] | None = None
    right: Int[Tensor, " row"] | None = None

    @property
    def reads(self) -> Reads:
        """What is read: logits, or of choices only the log-probabilities of their tokens."""
        return Reads(self.batch, self.sequences, self.positions, self.targets)

    def value(self, logits: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " row"]:
        """One value per row; gradients pass."""
        if self.targets is None:
            return self.of_reads(logits)
        return self.of_reads(logits.float().log_softmax(-1).gather(-1, self.targets[:, None]).squeeze(-1))

    def of_reads(self, found: Float[Tensor, "read d_vocab"] | Float[Tensor, " read"]) -> Float[Tensor, " row"]:
        """One value per row of what `reads` gave."""
        if self.targets is None or self.right is None:
            return measure((self.metric,), Context(self.batch), found)[self.metric]
        sums = torch.zeros(len(self.owner), device=found.device).index_add(0, self.sequences, found)
        shares = [sums[self.owner == i].logsumexp(0) for i in range(len(self.rows))]
        return sums[self.right] - torch.stack(shares)

    @property
    def key(self) -> str:
        """Hash of all that the values depend on besides the models."""
        parts = [self.owner, self.sequences, self.positions, self.targets, self.right, self.batch.answer, self.batch.choices]
        content = [None if part is None else part.tolist() for part in (*parts, self.batch.contrast)]
        return key_of({"asked": [self.batch.key, self.metric, content]})


READ = {"next": None, "choice": ("choice_logprob",)}
"""Tasks whose value is read from one forward of known tokens, and the metrics that are (None for all of the task)."""


def ask(pair: Pair, suite: Suite, metric: str, batch_size: int, *, by: str) -> list[Asked]:
    """The suite in forwards of about `batch_size` sequences, on the pair's device.

    Raises:
        SuiteError: A row that this tokenizer or model cannot take.
        TaiaLensError: A task whose text is generated, or a metric that is not read from logits.
    """
    kind = suite.task.kind
    if kind not in READ or (READ[kind] is not None and metric not in (READ[kind] or ())):
        what = f"the metric {metric} of the task {kind}" if kind in READ else f"the task {kind}"
        able = "the task next, and choice_logprob of the task choice"
        mend = "run layers, or rank by graft or ablate, there"
        raise TaiaLensError(f"{by} does not know {what} of suite {suite.name}; it knows {able}; {mend}")
    prepare(suite, pair, (metric,), batch_size)  # refuses what cannot be scored, as every study does
    if kind == "next":
        return [_next(batch.to(pair.device), metric) for batch in make_batches(suite, pair.tokenizer, batch_size)]
    encoder = Encoder(pair.tokenizer, suite)
    spans = [_spans(encoder, row) for row in suite.rows]
    return [_choices(suite, spans, group, pair.device) for group in _groups(spans, batch_size)]


def _next(batch: Batch, metric: str) -> Asked:
    each = torch.arange(len(batch.rows), device=batch.tokens.device)
    return Asked(batch.rows, batch, each, each, batch.last, metric)


def _spans(encoder: Encoder, row: Row) -> list[Span]:
    prompt = encoder.prompt(row)
    return [Span.after(prompt[1], tail(encoder, row, prompt, choice)) for choice in row.choices]


def _groups(spans: Sequence[list[Span]], batch_size: int) -> Iterator[tuple[int, ...]]:
    """Rows of about equal length together, as many as give one batch of sequences."""
    some: list[int] = []
    for row in sorted(range(len(spans)), key=lambda i: (max(len(span.ids) for span in spans[i]), i)):
        if some and sum(len(spans[i]) for i in (*some, row)) > batch_size:
            yield tuple(some)
            some = []
        some.append(row)
    yield tuple(some)


def _choices(suite: Suite, spans: Sequence[list[Span]], group: tuple[int, ...], device: torch.device) -> Asked:
    to = partial(torch.tensor, device=device)
    flat = [span for i in group for span in spans[i]]
    owner = [k for k, i in enumerate(group) for _ in spans[i]]
    reads = [(s, span.start + k, target) for s, span in enumerate(flat) for k, target in enumerate(span.targets)]
    right = [owner.index(k) + suite.rows[i].choices.index(suite.rows[i].answer) for k, i in enumerate(group)]
    tokens, mask = padded([span.ids for span in flat], device)
    none = torch.full((len(flat),), NO_TOKEN, device=device)
    batch = Batch(tuple(group[k] for k in owner), tokens, mask, none, none[:, None], none)
    sequences, positions, targets = to(reads).T
    return Asked(group, batch, to(owner), sequences, positions, "choice_logprob", targets, to(right))
