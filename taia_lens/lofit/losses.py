"""The losses: cross-entropy of answers, and direct preference optimisation with the unscaled model as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from taia_lens.engine import label_logprobs
from taia_lens.examples import collate
from taia_lens.loaded import Loaded
from taia_lens.lofit.settings import Settings
from taia_lens.lofit.texts import Item, Texts


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss on some items of a live model: its sum, over `weight` of what is counted (labelled tokens, or pairs).

    Attributes:
        model: Live, with whatever scales are in force.
        settings: Which loss.
        reference: With dpo, by item: the unscaled model's log-probability of the right answer, less the wrong one's.
    """

    model: Loaded
    settings: Settings
    reference: Float[Tensor, " item"] | None

    def weight(self, items: Sequence[Item]) -> int:
        if self.settings.loss == "dpo":
            return len(items)
        return sum(label >= 0 for item in items for example in item.texts for label in example.labels)

    def total(self, items: Sequence[Item], index: Sequence[int]) -> Float[Tensor, ""]:
        """The loss summed over the items, whose places in the whole set are `index`."""
        found = _answer_logprobs(self.model, items)
        if self.settings.loss == "ce":
            return -found.sum()
        assert self.reference is not None
        margin = _margins(found) - self.reference[list(index)].to(found)
        return -torch.nn.functional.logsigmoid(self.settings.beta * margin).sum()


def make_loss(model: Loaded, texts: Texts, settings: Settings) -> Loss:
    """The loss on these texts; with dpo the reference is computed here, once, and no second model is held."""
    if settings.loss == "ce":
        return Loss(model, settings, None)
    with torch.no_grad():
        parts = [_margins(_answer_logprobs(model, items)) for _, items in chunks(texts.items, settings.micro_batch)]
    return Loss(model, settings, torch.cat(parts))


def chunks(items: Sequence[Item], size: int) -> list[tuple[list[int], list[Item]]]:
    """The items, `size` at a time, with their places."""
    return [(list(range(i, min(i + size, len(items)))), list(items[i : i + size])) for i in range(0, len(items), size)]


def _answer_logprobs(model: Loaded, items: Sequence[Item]) -> Float[Tensor, " text"]:
    """Log-probability of the labelled tokens of each text, summed, in nats."""
    batch = {name: t.to(model.device) for name, t in collate([example for item in items for example in item.texts]).items()}
    return label_logprobs(model.model, batch["input_ids"], batch["attention_mask"].bool(), batch["labels"])


def _margins(logprobs: Float[Tensor, " text"]) -> Float[Tensor, " item"]:
    right, wrong = rearrange(logprobs, "(item side) -> side item", side=2)
    return right - wrong
