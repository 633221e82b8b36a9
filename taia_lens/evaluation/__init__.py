"""Scoring a model on a suite of any task. A suite is tokenized once, in pieces; each piece is scored on its own.

A piece is whole rows, so that a study can be stopped between two of them, and its key is the content of all that its values
depend on besides the model. Values do not depend on how rows are put into batches, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from taia_lens.batch import Encoder, check_size
from taia_lens.engine import device_of
from taia_lens.errors import SuiteError
from taia_lens.evaluation.choices import prepare_choices
from taia_lens.evaluation.next_token import prepare_next
from taia_lens.evaluation.pieces import Piece, Reading, Scored, Setting, off_device
from taia_lens.evaluation.plain_text import prepare_text
from taia_lens.evaluation.written import prepare_written
from taia_lens.loaded import Loaded
from taia_lens.metric_names import METRICS, check_metrics
from taia_lens.pair import Pair
from taia_lens.suite import Suite
from taia_lens.weights import Model

__all__ = ["Piece", "Reading", "Scored", "off_device", "prepare", "score"]

_PREPARE = {
    "next": prepare_next,
    "choice": prepare_choices,
    "generate": prepare_written,
    "refuse": prepare_written,
    "text": prepare_text,
}


def prepare(suite: Suite, pair: Pair | Loaded, metrics: Sequence[str], batch_size: int) -> list[Piece]:
    """Tokenize a suite for a pair and cut it into pieces; every row is checked here, before anything is computed.

    Args:
        suite: The rows and their task.
        pair: Whose tokenizer and length limit count, or one model's; no model is run.
        metrics: Names from `metric_names.METRICS` that are of the suite's task.
        batch_size: Sequences at a time: rows, or for the task `choice` the choices, or windows of plain text.

    Raises:
        SuiteError: A row that this tokenizer or model cannot take, or that lacks what a metric needs.
        TaiaLensError: A metric that is none, or is of another task.
    """
    names = check_metrics(metrics, suite.task.kind)
    check_size(batch_size)
    for name in names:
        if METRICS[name].against:
            raise SuiteError(f"the metric {name} compares with an unedited run, which only patching keeps; leave it out here")
    n_ctx = min(int(model.cfg.n_ctx) for model in pair.models)
    return _PREPARE[suite.task.kind](Setting(Encoder(pair.tokenizer, suite), pair.models, n_ctx, names, batch_size))


def score(model: Model, piece: Piece) -> Scored:
    """Score a piece on a live model, for example what `engine.applied` yields: its weights and hooks are those in force.

    Returns:
        For each metric one value per row of the piece, and what was generated.
    """
    scored = _read(model, piece.how) if isinstance(piece.how, Reading) else piece.how(model)
    assert all(values.shape == (len(piece.rows),) for values in scored.values.values())
    return scored


def _read(model: Model, reading: Reading) -> Scored:
    device = device_of(model)
    here = [reads.to(device) for reads in reading.reads]
    found = [reading.small(reads, reads.run(model)) for reads in here]
    return Scored(reading.values([array for part in found for _, array in off_device([(0, part)])]))
