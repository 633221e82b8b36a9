"""The one trainer of scales: AdamW on a handful of tensors, everything else frozen; resumed from the last finished epoch.

The state after each epoch is a cell of the store, under the content of all that it depends on: the same command, run again
after a kill, goes on from there, and one that is finished is read and not trained.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from taia_lens.engine import frozen, scaled
from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit.losses import Loss, chunks, make_loss
from taia_lens.lofit.settings import Settings
from taia_lens.lofit.texts import Item, Texts
from taia_lens.results import versions
from taia_lens.scales import Scales
from taia_lens.scoring import NUMERIC
from taia_lens.store import Cell, CellStore

TRAINING = 2  # raised when what is trained changes, so that old cells no longer answer
Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Form:
    """What is trained, and what it is on a model.

    Attributes:
        method: Its name, for the store and the adapter.
        start: The first values.
        scales: Values -> scales, live in the graph; a generator for what is drawn at each step, None when it is judged.
        penalty: Values -> what is added to the loss.
        settings: What else the training depends on, beside `Settings`: plain JSON.
    """

    method: str
    start: Values
    scales: Callable[[Values, torch.Generator | None], Scales]
    penalty: Callable[[Values], Float[Tensor, ""]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(t.numel() for t in self.start.values())


@dataclass(frozen=True)
class Epoch:
    """One pass: mean loss on the training texts as it went, the penalty at its end, and the loss on the validation texts."""

    loss: float
    penalty: float
    validation: float


@dataclass(frozen=True, eq=False)
class Trained:
    """The values with the lowest validation loss, all epochs, and why training stopped before its time, if it did."""

    values: Values
    history: tuple[Epoch, ...]
    best: int
    stopped: str | None = None

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"epochs": [asdict(epoch) for epoch in self.history], "best": self.best, "stopped": self.stopped}


@dataclass(eq=False)
class _State:
    """What one epoch hands to the next."""

    values: Values
    optimizer: torch.optim.AdamW
    best: Values
    history: list[Epoch]
    stopped: str | None = None

    @property
    def best_epoch(self) -> int:
        return min(range(len(self.history)), key=lambda i: self.history[i].validation)

    def done(self, settings: Settings) -> bool:
        if self.stopped is not None or len(self.history) >= settings.epochs:
            return True
        return bool(self.history) and len(self.history) - 1 - self.best_epoch >= settings.patience


def train(
    model: Loaded,
    form: Form,
    texts: Texts,
    validation: Texts,
    settings: Settings,
    *,
    store: CellStore | None = None,
    progress: bool = False,
) -> Trained:
    """Train some tensors so that the scaled model says what the texts say; the model's own weights get no gradient.

    Raises:
        TaiaLensError: The loss is no number before an epoch is finished; later ones stop the training, and what was best is kept.
    """
    key = _key(model, form, texts, validation, settings)
    with frozen(model.model):
        values = {name: t.detach().to(model.device).clone().requires_grad_() for name, t in form.start.items()}
        optimizer = torch.optim.AdamW(list(values.values()), lr=settings.lr, eps=1e-8, weight_decay=settings.weight_decay)
        state = _State(values, optimizer, {}, [])
        if store is not None:
            _resume(state, store, key, settings.epochs)
        if not state.done(settings):
            losses = make_loss(model, texts, settings), make_loss(model, validation, settings)
            _epochs(model, form, state, losses, (texts, validation), settings, store, key, progress)
    best = {name: t.detach().clone() for name, t in state.best.items()}
    return Trained(best, tuple(state.history), state.best_epoch, state.stopped)


def _epochs(
    model: Loaded,
    form: Form,
    state: _State,
    losses: tuple[Loss, Loss],
    texts: tuple[Texts, Texts],
    settings: Settings,
    store: CellStore | None,
    key: Mapping[str, Any],
    progress: bool,
) -> None:
    steps = math.ceil(len(texts[0].items) / settings.batch_size)
    with tqdm(desc=form.method, unit="step", total=steps * settings.epochs, disable=not progress, file=sys.stderr) as bar:
        bar.update(steps * len(state.history))
        while not state.done(settings):
            found = _epoch(model, form, state, losses[0], texts[0], settings, bar)
            judged = 0.0 if isinstance(found, str) else _judge(model, form, state.values, losses[1], texts[1], settings)
            if not math.isfinite(judged):
                found = f"the validation loss became {judged:g} after epoch {len(state.history) + 1}"
            if isinstance(found, str):
                if not state.history:
                    raise TaiaLensError(f"{found}; no epoch before it was good; lower the learning rate ({settings.lr:g})")
                state.stopped = found
            else:
                state.history.append(Epoch(found, float(form.penalty(state.values).detach()), judged))
                if state.best_epoch == len(state.history) - 1:
                    state.best = {name: t.detach().clone() for name, t in state.values.items()}
            if store is not None:
                _keep(state, store, key)


def _epoch(model: Loaded, form: Form, state: _State, loss: Loss, texts: Texts, settings: Settings, bar: tqdm) -> float | str:
    """One pass over the texts in a new order: the mean loss, or what went wrong."""
    epoch, n = len(state.history), len(texts.items)
    order = np.random.default_rng((settings.seed, epoch)).permutation(n).tolist()
    generator = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)  # drawn on the CPU: the same on every device
    steps = math.ceil(n / settings.batch_size)
    total, weights = 0.0, 0
    for step in range(steps):
        index = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        rate = settings.lr * (1 - (epoch * steps + step) / (settings.epochs * steps))
        found, weight = _step(model, form, state, loss, [texts.items[i] for i in index], index, settings, generator)
        steep = not all(bool(torch.isfinite(t.grad).all()) for t in state.values.values() if t.grad is not None)
        if steep or not math.isfinite(found):
            what = f"the loss became {found:g}" if not math.isfinite(found) else f"the gradient of the loss ({found:g}) is no number"
            rows = ", ".join(dict.fromkeys(texts.items[i].row for i in index[:4])) + (", ..." if len(index) > 4 else "")
            return f"{what} in epoch {epoch + 1}, batch {step + 1} of {steps} (rows {rows})"
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        total, weights = total + found, weights + weight
        bar.set_postfix(loss=f"{found / weight:.3f}", epoch=epoch + 1)
        bar.update()
    return total / weights


def _step(
    model: Loaded,
    form: Form,
    state: _State,
    loss: Loss,
    items: list[Item],
    index: list[int],
    settings: Settings,
    generator: torch.Generator,
) -> tuple[float, int]:
    """The gradient of one step, summed over its micro-batches; the loss without the penalty, and its weight."""
    state.optimizer.zero_grad()
    weight, total = loss.weight(items), 0.0
    scales_seed = generator.get_state()
    for places, some in chunks(items, settings.micro_batch):
        generator.set_state(scales_seed)  # every micro-batch of a step sees the same draw
        with scaled(model.model, form.scales(state.values, generator)):
            part = loss.total(some, [index[i] for i in places]) / weight
            part.backward()
        total += float(part.detach()) * weight
    penalty = form.penalty(state.values)
    if penalty.requires_grad:
        penalty.backward()
    return total, weight


def _judge(model: Loaded, form: Form, values: Values, loss: Loss, texts: Texts, settings: Settings) -> float:
    """Mean loss on the texts, nothing drawn and no penalty."""
    total = 0.0
    with torch.no_grad(), scaled(model.model, form.scales(values, None)):
        for places, some in chunks(texts.items, settings.micro_batch):
            total += float(loss.total(some, places))
    return total / loss.weight(texts.items)


def _key(model: Loaded, form: Form, texts: Texts, validation: Texts, settings: Settings) -> dict[str, Any]:
    """Everything that the trained values depend on; micro_batch changes rounding only, but bits are promised."""
    known = versions()
    start = form.scales(form.start, None)
    return {
        "training": TRAINING,
        "method": form.method,
        "form": dict(form.settings),
        "model": model.fingerprint,
        "device": model.device.type,
        "dtype": model.dtype,
        "sites": " ".join(map(str, start.sites)),
        "start": start.key,
        "texts": texts.key,
        "validation": validation.key,
        "settings": asdict(settings),
        "versions": {name: known[name] for name in NUMERIC},
    }


def _keep(state: _State, store: CellStore, key: Mapping[str, Any]) -> None:
    """The state as a cell: every number of it is float32, which float64 holds exactly."""
    moments = [state.optimizer.state[t] for t in state.values.values()]
    columns = {
        "now": list(state.values.values()),
        "best": list(state.best.values()),
        "first": [m["exp_avg"] for m in moments],
        "second": [m["exp_avg_sq"] for m in moments],
    }
    flat = {name: torch.cat([t.detach().flatten() for t in tensors]).double().cpu().numpy() for name, tensors in columns.items()}
    steps = [float(m["step"]) for m in moments]
    record = {"history": [asdict(epoch) for epoch in state.history], "stopped": state.stopped, "steps": steps}
    number = len(state.history) + (state.stopped is not None)
    store.put({**key, "epoch": number}, Cell(flat, (json.dumps(record),)))


def _resume(state: _State, store: CellStore, key: Mapping[str, Any], epochs: int) -> None:
    """Go on from the last epoch that is in the store."""
    cell = next((c for number in range(epochs, 0, -1) if (c := store.get({**key, "epoch": number})) is not None), None)
    if cell is None:
        return
    record = json.loads(cell.transcripts[0])
    state.history.extend(Epoch(**epoch) for epoch in record["history"])
    state.stopped = record["stopped"]
    start = 0
    for (name, tensor), steps in zip(state.values.items(), record["steps"], strict=True):
        read = {
            column: torch.from_numpy(numbers[start : start + tensor.numel()].copy()).to(tensor).reshape(tensor.shape)
            for column, numbers in cell.values.items()
        }
        with torch.no_grad():
            tensor.copy_(read["now"])
        state.best[name] = read["best"]
        moments = {"step": torch.tensor(steps), "exp_avg": read["first"], "exp_avg_sq": read["second"]}
        state.optimizer.state[tensor] = moments
        start += tensor.numel()
