"""Metrics: pure functions of logits at the answer position. One value per row; larger is better but for the KLs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import NO_TOKEN, Batch
from taia_lens.errors import SuiteError
from taia_lens.metric_names import METRICS

Logits = Float[Tensor, "batch d_vocab"]
PerRow = Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a metric may look at besides the logits it judges: the rows, and the unedited host's and donor's logits."""

    batch: Batch
    host: Logits
    donor: Logits


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
    if choices.shape[1] < 2 or (choices[:, 0] == NO_TOKEN).any():
        raise SuiteError("the metric choice_accuracy needs choices and a label in every row of the suite; leave it out, or add them")
    picked = logits.float().gather(-1, choices.clamp(min=0)).masked_fill(choices == NO_TOKEN, -torch.inf)
    chosen = picked.argmax(-1, keepdim=True)
    return (context.batch.choices.gather(-1, chosen).squeeze(-1) == context.batch.answer).float()


def logit_diff(logits: Logits, context: Context) -> PerRow:
    """Logit of the answer minus that of the contrast, or minus the mean of the other choices where a row has no contrast."""
    batch, logits = context.batch, logits.float()
    has_contrast = batch.contrast != NO_TOKEN
    wrong = (batch.choices != batch.answer[:, None]) & (batch.choices != NO_TOKEN)
    if not (has_contrast | wrong.any(-1)).all():
        need = "a contrast, or choices and a label, in every row of the suite"
        raise SuiteError(f"the metric logit_diff needs {need}; leave it out, or add them")
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


def measure(names: Sequence[str], context: Context, logits: Logits) -> dict[str, PerRow]:
    """The named metrics of these logits.

    Raises:
        SuiteError: The rows lack what a metric needs (choices, a contrast).
    """
    functions = dict(zip(METRICS, _FUNCTIONS, strict=True))
    return {name: functions[name](logits, context) for name in names}


def _pick(values: Logits, ids: Tensor) -> PerRow:
    return values.gather(-1, ids[:, None]).squeeze(-1)


def _kl(reference: Logits, logits: Logits) -> PerRow:
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
