"""One prompt as a model reads it: its ids, its tokens, and the first token of what may follow. For studies of single prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from taia_lens.batch import Batch, Encoder
from taia_lens.errors import SuiteError
from taia_lens.pair import Pair
from taia_lens.positions import token_text
from taia_lens.rows import Row
from taia_lens.suite import Suite


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt in a pair's tokens.

    Attributes:
        row: What was asked; of a bare text, a row without an answer.
        encoder: How texts become ids.
        text: The prompt.
        ids: Its ids.
        tokens: The text of each id by itself.
        batch: The same as a batch of one row, on the pair's device.
    """

    row: Row
    encoder: Encoder
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    batch: Batch

    def first_token(self, ending: str) -> int:
        """The first token of a text that follows the prompt.

        Raises:
            SuiteError: It has none, or it joins with the prompt's last word.
        """
        tail = self.encoder.tail(self.text + ending, list(self.ids))
        if not tail:
            found = "joins with the prompt's last word" if tail is None else "has no token"
            raise SuiteError(f"the text {ending!r} after the prompt {found}; write it as it follows, mostly with a leading space")
        return tail[0]


def read_prompt(pair: Pair, prompt: str | Row) -> Prompt:
    """Read a text, or a suite's row, with a pair's tokenizer; as it stands, with no chat template around it.

    Raises:
        SuiteError: It is empty, or has more tokens than the models have positions.
    """
    row = Row("prompt", prompt, "", "id") if isinstance(prompt, str) else prompt
    if not row.prompt.strip():
        raise SuiteError("the prompt is empty; write a text")
    encoder = Encoder(pair.tokenizer, Suite("prompt", (row,)))
    text, ids = encoder.prompt(row)
    n_ctx = min(int(model.cfg.n_ctx) for model in pair.models)
    if len(ids) > n_ctx:
        raise SuiteError(f"the prompt has {len(ids)} tokens, and the model has {n_ctx} positions; shorten it")
    tokens = torch.tensor([ids], device=pair.device)
    words = tuple(token_text(pair.tokenizer, i) for i in ids)
    return Prompt(row, encoder, text, tuple(ids), words, Batch.of(tokens, torch.ones_like(tokens, dtype=torch.bool)))
