"""The tasks `generate` and `refuse`: greedy text, kept, and what its answer is or whether it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from taia_lens.answers import check_rule, extract, matches, refuses
from taia_lens.engine import run_greedy
from taia_lens.errors import SuiteError
from taia_lens.evaluation.pieces import Piece, Scored, Setting
from taia_lens.suite import Row, Task
from taia_lens.weights import Model


def prepare_written(setting: Setting) -> list[Piece]:
    """Prompts of about equal length together."""
    task, tokenizer = setting.encoder.suite.task, setting.encoder.tokenizer
    check_rule(task.extract)
    writer = Writer(tokenizer, task, _ends(setting, task))
    prompts = [setting.encoder.prompt(row)[1] for row in setting.rows]
    for row, prompt in zip(setting.rows, prompts, strict=True):
        _fits(setting, row, len(prompt), task.max_new_tokens)
    # The same ids are other words to another tokenizer.
    words = hashlib.blake2b(json.dumps(sorted(tokenizer.get_vocab().items())).encode(), digest_size=16).hexdigest()
    settings = [words, sorted(writer.ends), sorted(task.stop), task.max_new_tokens, task.extract]
    pieces = []
    for group in setting.grouped([1] * len(prompts), [len(prompt) for prompt in prompts]):
        rows, asked = [setting.rows[i] for i in group], [prompts[i] for i in group]
        key = setting.key([settings, asked, [[row.answer, row.aliases] for row in rows]])
        pieces.append(Piece(group, key, partial(_score, writer, rows, asked)))
    return pieces


def _fits(setting: Setting, row: Row, length: int, new: int) -> None:
    if length + new - 1 <= setting.n_ctx:  # the last new token is no input
        return
    room = setting.n_ctx - length + 1
    mend = f"shorten it, or set max_new_tokens to {room} at most" if room > 0 else "shorten it"
    found = f"a prompt of {length} tokens and {new} new ones, and the model has {setting.n_ctx} positions"
    raise SuiteError(f"{setting.encoder.where(row)}: {found}; {mend}")


def _ends(setting: Setting, task: Task) -> frozenset[int]:
    """Ids that end a text, the same for every recipe: the tokenizer's EOS, those either side was trained to end with, and
    stop texts that are tokens of their own (`<|im_end|>`), which no decoded text shows."""
    tokenizer = setting.encoder.tokenizer
    ends = {tokenizer.eos_token_id}
    for model in setting.models:
        if type(model).__name__ != "HookedTransformer" and (config := vars(model.original_model).get("generation_config")):
            found = config.eos_token_id
            ends |= set(found) if isinstance(found, list) else {found}
    added = tokenizer.get_added_vocab()
    return frozenset(ends - {None}) | {added[text] for text in task.stop if text in added}


@dataclass(frozen=True, eq=False)
class Writer:
    """A tokenizer, a task, and the ids that end a text."""

    tokenizer: PreTrainedTokenizerBase
    task: Task
    ends: frozenset[int]

    def done(self, new: list[int]) -> bool:
        """Whether a text is complete: an end, or one of the task's stops."""
        if new[-1] in self.ends:
            return True
        # A stop that is new ends in the last token, and a token is no less than a byte: so much of the text is enough.
        reach = max((len(stop.encode()) for stop in self.task.stop), default=0) + 4
        return self._stopped(new[-reach:]) and self._stopped(new)

    def _stopped(self, new: list[int]) -> bool:
        text = self._decode(new)
        return any(stop in text for stop in self.task.stop)

    def text(self, new: list[int]) -> str:
        """What was written, up to where the first stop begins."""
        text = self._decode(new[:-1] if new[-1] in self.ends else new)
        return text[: min((at for stop in self.task.stop if (at := text.find(stop)) >= 0), default=len(text))]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _score(writer: Writer, rows: list[Row], prompts: list[list[int]], model: Model) -> Scored:
    new = run_greedy(model, prompts, writer.task.max_new_tokens, writer.done)
    texts = tuple(writer.text(ids) for ids in new)
    if writer.task.kind == "refuse":
        return Scored({"refusal": np.array([float(refuses(text)) for text in texts])}, texts)
    right = [matches(extract(writer.task.extract, text), row.answer, row.aliases) for text, row in zip(texts, rows, strict=True)]
    return Scored({"exact_match": np.array(right, dtype=float)}, texts)
