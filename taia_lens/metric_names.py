"""The metrics: their names, units, which way is better, and the kinds of task they are of. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taia_lens.errors import TaiaLensError


@dataclass(frozen=True)
class Metric:
    """What is known of a metric beside its values.

    Attributes:
        unit: Of its values; every metric has one value a row.
        better: 1 where larger is better, -1 where smaller is.
        kinds: The kinds of task (`suite.Task.kind`) that have it.
        against: It compares with the unedited host or donor, whose predictions only patching keeps.
    """

    unit: str
    better: int
    kinds: tuple[str, ...]
    against: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric("fraction", 1, ("next",)),
    "choice_accuracy": Metric("fraction", 1, ("next", "choice")),
    "prob": Metric("probability", 1, ("next",)),
    "logprob": Metric("nats", 1, ("next",)),
    "logit_diff": Metric("logits", 1, ("next",)),
    "kl_host": Metric("nats", -1, ("next",), against=True),
    "kl_donor": Metric("nats", -1, ("next",), against=True),
    # The choice of the highest log-probability per UTF-8 byte: lm-evaluation-harness's acc_bytes, and on ASCII its acc_norm,
    # which counts characters.
    "choice_accuracy_norm": Metric("fraction", 1, ("choice",)),
    "choice_logprob": Metric("nats", 1, ("choice",)),
    "mc2": Metric("probability", 1, ("choice",)),
    "exact_match": Metric("fraction", 1, ("generate",)),
    "refusal": Metric("fraction", 1, ("refuse",)),  # of what should be refused
    "cross_entropy": Metric("nats", -1, ("text",)),  # per token
    "bits_per_byte": Metric("bits", -1, ("text",)),
}
DIFFERENTIABLE = ("prob", "logprob", "logit_diff", "choice_logprob")
_DEFAULTS = {"next": "accuracy", "choice": "choice_accuracy", "generate": "exact_match", "refuse": "refusal", "text": "cross_entropy"}


def metrics_of(kind: str) -> tuple[str, ...]:
    """The metrics that a kind of task has.

    >>> metrics_of("text")
    ('cross_entropy', 'bits_per_byte')
    """
    return tuple(name for name, metric in METRICS.items() if kind in metric.kinds)


def default_metrics(kind: str) -> tuple[str, ...]:
    """What is measured of a kind of task where nothing is named.

    >>> default_metrics("choice")
    ('choice_accuracy',)
    """
    return (_DEFAULTS[kind],)


def check_metrics(names: Sequence[str], kind: str = "next") -> tuple[str, ...]:
    """The names, each once, in the order given.

    >>> check_metrics(["logprob", "accuracy", "logprob"])
    ('logprob', 'accuracy')

    Raises:
        TaiaLensError: A name that is no metric of this kind of task; the message lists those that are.
    """
    there = f"there are {', '.join(metrics_of(kind))}"
    for name in names:
        if name not in METRICS:
            raise TaiaLensError(f"no metric {name!r}; {there}")
        if kind not in METRICS[name].kinds:
            raise TaiaLensError(f"the metric {name} is of the task {' or '.join(METRICS[name].kinds)}; for the task {kind} {there}")
    if not names:
        raise TaiaLensError(f"no metric was named; {there}")
    return tuple(dict.fromkeys(names))


def check_gradient(name: str) -> None:
    """Raise where a metric does not move with a small change.

    Raises:
        TaiaLensError: As said; the message lists those that do.
    """
    if name not in DIFFERENTIABLE:
        raise TaiaLensError(f"the metric {name} has no gradient, which attribution needs; write one of {', '.join(DIFFERENTIABLE)}")
