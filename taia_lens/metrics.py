"""Metrics: pure functions of logits at the answer position, or of the log-probabilities of choices. One value per row.

`metric_names` has their units, which way is better, and the tasks they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from taia_lens.batch import NO_TOKEN, Batch
from taia_lens.engine import Reads
from taia_lens.errors import SuiteError
from taia_lens.metric_names import metrics_of

Logits = Float[Tensor, "batch d_vocab"]
PerRow = Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a metric may look at besides the logits it judges: the rows, and, in patching, the unedited host's and donor's logits."""

    batch: Batch
    host: Logits | None = None
    donor: Logits | None = None

    @classmethod
    def of(cls, reads: Reads, host: Logits | None = None, donor: Logits | None = None) -> Context:
        """For what was read: where only some columns of the logits were, the rows' answers are numbers of columns."""
        return cls(reads.batch if reads.columns is None else _narrowed(reads.batch, reads.columns), host, donor)


LOCAL = ("choice_accuracy", "logit_diff")
"""Metrics that look at the logits of a row's answer, choices and contrast, and at no other."""


def reads_of(names: Sequence[str], batch: Batch) -> Reads:
    """What metrics need of each row's answer position: all logits, or only those of the tokens that are answers in the batch."""
    reads = Reads.last(batch)
    if not set(names) <= set(LOCAL):
        return reads
    ids = torch.cat([batch.answer, batch.choices.flatten(), batch.contrast])
    return replace(reads, columns=ids[ids != NO_TOKEN].unique())


def _narrowed(batch: Batch, columns: Int[Tensor, " column"]) -> Batch:
    def place(ids: Tensor) -> Tensor:
        return torch.where(ids == NO_TOKEN, ids, torch.searchsorted(columns, ids.clamp(min=0)))

    return replace(batch, answer=place(batch.answer), choices=place(batch.choices), contrast=place(batch.contrast))


def accuracy(logits: Logits, context: Context) -> PerRow:
    """1 where the answer is the most likely token of the whole vocabulary, else 0."""
    return (logits.argmax(-1) == context.batch.answer).float()


def prob(logits: Logits, context: Context) -> PerRow:
    """Probability of the answer."""
    return logprob(logits, context).exp()


def logprob(logits: Logits, context: Context) -> PerRow:
    """Log-probability of the answer, in nats."""
    return _pick(logits.float().log_softmax(-1), context.batch.answer)


def choice_accuracy(logits: Logits, context: Context) -> PerRow:
    """1 where the right choice is the most likely one among the choices, else 0."""
    choices = context.batch.choices
    picked = logits.float().gather(-1, choices.clamp(min=0)).masked_fill(choices == NO_TOKEN, -torch.inf)
    chosen = picked.argmax(-1, keepdim=True)
    return (choices.gather(-1, chosen).squeeze(-1) == context.batch.answer).float()


def logit_diff(logits: Logits, context: Context) -> PerRow:
    """Logit of the answer minus that of the contrast, or minus the mean of the other choices where a row has no contrast."""
    batch, logits = context.batch, logits.float()
    has_contrast = batch.contrast != NO_TOKEN
    wrong = (batch.choices != batch.answer[:, None]) & (batch.choices != NO_TOKEN)
    others = logits.gather(-1, batch.choices.clamp(min=0)).masked_fill(~wrong, 0).sum(-1) / wrong.sum(-1).clamp(min=1)
    contrast = _pick(logits, batch.contrast.clamp(min=0))
    return _pick(logits, batch.answer) - torch.where(has_contrast, contrast, others)


def kl_host(logits: Logits, context: Context) -> PerRow:
    """KL(host || these logits), in nats: how far the prediction moved away from the host's."""
    return _kl(context.host, logits)


def kl_donor(logits: Logits, context: Context) -> PerRow:
    """KL(donor || these logits), in nats: how far the prediction still is from the donor's."""
    return _kl(context.donor, logits)


_FUNCTIONS: tuple[Callable[[Logits, Context], PerRow], ...] = (accuracy, choice_accuracy, prob, logprob, logit_diff, kl_host, kl_donor)
assert tuple(f.__name__ for f in _FUNCTIONS) == metrics_of("next")


def check_rows(names: Sequence[str], batch: Batch) -> None:
    """Raise where a row lacks what a metric needs.

    Raises:
        SuiteError: No choices, or no contrast.
    """
    has_choices = (batch.choices != NO_TOKEN).sum(-1) > 1
    if "choice_accuracy" in names and not has_choices.all():
        raise SuiteError("the metric choice_accuracy needs choices and a label in every row of the suite; leave it out, or add them")
    if "logit_diff" in names and not (has_choices | (batch.contrast != NO_TOKEN)).all():
        need = "a contrast, or choices and a label, in every row of the suite"
        raise SuiteError(f"the metric logit_diff needs {need}; leave it out, or add them")


def measure(names: Sequence[str], context: Context, logits: Logits) -> dict[str, PerRow]:
    """The named metrics of these logits.

    Raises:
        SuiteError: The rows lack what a metric needs (choices, a contrast).
    """
    check_rows(names, context.batch)
    functions = {function.__name__: function for function in _FUNCTIONS}
    return {name: functions[name](logits, context) for name in names}


def _pick(values: Logits, ids: Tensor) -> PerRow:
    return values.gather(-1, ids[:, None]).squeeze(-1)


def _kl(reference: Logits | None, logits: Logits) -> PerRow:
    assert reference is not None, "a divergence needs the unedited run; evaluation refuses it by name"
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True, eq=False)
class Choices:
    """The choices of one row of the task `choice`.

    Attributes:
        logprobs: Log-probability of each choice's tokens after the prompt, summed, in nats.
        sizes: UTF-8 bytes of each choice, without white space around it.
        right: Number of the right one.
        labels: Numbers of all that are right, for mc2.
    """

    logprobs: np.ndarray
    sizes: np.ndarray
    right: int
    labels: tuple[int, ...] = ()

    @property
    def shares(self) -> np.ndarray:
        """Log of each choice's probability, given that it is one of them."""
        return self.logprobs - np.logaddexp.reduce(self.logprobs)


def measure_choices(name: str, choices: Choices) -> float:
    """A metric of the task `choice`, of one row.

    choice_accuracy: 1 where the right choice has the highest log-probability; choice_accuracy_norm: the highest per byte;
    choice_logprob: log of the right one's share of the choices' probability; mc2: share of all that are right (TruthfulQA's
    MC2, Lin et al., arXiv 2109.07958).

    >>> measure_choices("mc2", Choices(np.log([0.2, 0.1, 0.1]), np.array([3, 3, 3]), right=0, labels=(0, 2)))
    0.75
    """
    if name == "choice_accuracy":
        return float(choices.logprobs.argmax() == choices.right)
    if name == "choice_accuracy_norm":
        return float((choices.logprobs / choices.sizes).argmax() == choices.right)
    if name == "choice_logprob":
        return float(choices.shares[choices.right])
    assert name == "mc2", name
    return float(np.exp(choices.shares[list(choices.labels)]).sum())
