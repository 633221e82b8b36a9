"""The names of the metrics and their units, for the command line, tables and plots. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from taia_lens.errors import TaiaLensError

METRICS: dict[str, str] = {
    "accuracy": "fraction",
    "choice_accuracy": "fraction",
    "prob": "probability",
    "logprob": "nats",
    "logit_diff": "logits",
    "kl_host": "nats",
    "kl_donor": "nats",
}


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in the order given.

    >>> check_metrics(["logprob", "accuracy", "logprob"])
    ('logprob', 'accuracy')

    Raises:
        TaiaLensError: A name that is no metric; the message lists those that exist.
    """
    for name in names:
        if name not in METRICS:
            raise TaiaLensError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    if not names:
        raise TaiaLensError(f"no metric was named; there are {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))
