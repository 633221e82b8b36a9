"""What LoFiT learns from: a suite's rows as texts with their answers, or as pairs of a right answer and a wrong one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from taia_lens.batch import Encoder
from taia_lens.errors import SuiteError
from taia_lens.examples import Example, encode_row
from taia_lens.loaded import Loaded
from taia_lens.lofit.settings import Settings
from taia_lens.suite import Row, Suite


@dataclass(frozen=True)
class Item:
    """One thing to learn from: a text, or with dpo two of them, the right one first; and the row and prompt it is of."""

    row: str
    texts: tuple[Example, ...]
    prompt: str = ""

    @property
    def group(self) -> str:
        """Rows of one prompt belong together: apart, one would tell what is asked of the other."""
        return self.prompt or self.row


@dataclass(frozen=True)
class Texts:
    """What was made of a suite.

    Attributes:
        name: The suite's.
        items: To learn from.
        left_out: Reason -> how many rows were not used.
    """

    name: str
    items: tuple[Item, ...]
    left_out: Mapping[str, int]

    @property
    def key(self) -> str:
        """Hash of the token ids and labels."""
        content = [[[e.tokens, e.labels] for e in item.texts] for item in self.items]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    @property
    def examples(self) -> tuple[Example, ...]:
        return tuple(example for item in self.items for example in item.texts)

    def shared(self, other: Texts) -> int:
        """How many of these texts have a prompt that the other ones have too."""
        known = {item.group for item in other.items}
        return sum(item.group in known for item in self.items)

    def split(self, fraction: float, seed: int) -> tuple[Texts, Texts]:
        """The texts without a fraction of the prompts, and those; all that is made of a prompt stays together.

        Raises:
            SuiteError: There are fewer than two prompts.
        """
        rows = list(dict.fromkeys(item.group for item in self.items))
        if len(rows) < 2:
            raise SuiteError(f"the suite {self.name} has {len(rows)} prompt to learn from, and one is held out; give more, or validation")
        n = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held = {rows[i] for i in np.random.default_rng(seed).choice(len(rows), n, replace=False)}
        kept, out = ([item for item in self.items if (item.group in held) == side] for side in (False, True))
        return replace(self, items=tuple(kept)), replace(self, items=tuple(out))


def make_texts(model: Loaded, suite: Suite, settings: Settings, *, every: bool = False) -> Texts:
    """Tokenize a suite's rows as what its model must say.

    Args:
        model: Whose tokenizer and length limit count.
        suite: The rows.
        settings: The loss, the pairs, and the longest text.
        every: Also rows that are out of distribution.

    Raises:
        SuiteError: No row can be used, or the loss is dpo and a row has no wrong answer.
    """
    if suite.task.kind == "refuse":
        raise SuiteError(f"the suite {suite.name} asks whether the model refuses and has no answers to learn; give a suite with answers")
    encoder = Encoder(model.tokenizer, suite)
    longest = min(settings.max_length, int(model.model.cfg.n_ctx))
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    for row in suite.rows:
        if row.domain != "id" and not every:
            left_out["out of distribution (every=True trains on them too)"] += 1
            continue
        for texts in _texts(encoder, replace(row, domain="id"), settings, longest):
            if isinstance(texts, str):
                left_out[texts] += 1
            else:
                items.append(Item(row.id, texts, row.prompt))
    if not items:
        reasons = "; ".join(f"{n} {reason}" for reason, n in left_out.items()) or "it has no row"
        raise SuiteError(f"the suite {suite.name} has no row to learn from: {reasons}")
    return Texts(suite.name, tuple(items), dict(left_out))


def _texts(encoder: Encoder, row: Row, settings: Settings, longest: int) -> Iterator[tuple[Example, ...] | str]:
    for answers in _answers(encoder, row, settings):
        made = [encode_row(encoder, longest, replace(row, answer=answer)) for answer in answers]
        refused = next((m for m in made if isinstance(m, str)), None)
        if refused is not None:
            yield refused
            continue
        examples = tuple(example for m in made if not isinstance(m, str) for example in m)
        if any(len(example.tokens) > longest for example in examples):
            yield f"longer than {longest} tokens"
        elif settings.loss == "ce":
            yield from ((example,) for example in examples)
        else:
            yield examples


def _answers(encoder: Encoder, row: Row, settings: Settings) -> list[tuple[str, ...]]:
    """The answer by itself, or pairs of a right answer and a wrong one."""
    if settings.loss == "ce":
        return [(row.answer,)]
    right = [row.answer, *(row.choices[i] for i in row.labels if row.choices[i] != row.answer)]
    wrong = [row.contrast] if row.contrast is not None else [choice for choice in row.choices if choice not in right]
    if not wrong or not row.answer:
        raise SuiteError(f"{encoder.where(row)}: dpo needs a wrong answer too; give a contrast or choices, or take loss ce")
    pairs: list[tuple[str, ...]] = [(r, w) for r in right for w in wrong]
    return pairs[:1] if settings.pairs == "one" else pairs
