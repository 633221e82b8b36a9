"""Readers of datasets whose choices are texts of their own: TruthfulQA's statements, CLUTRR's kinship words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from taia_lens.errors import SuiteError
from taia_lens.readers.item import Item, drawn
from taia_lens.readers.source import Record

# The relations of the two-hop stories (the ids 0 to 17 of the source's `target`).
RELATIONS = tuple(
    "aunt son-in-law grandfather brother sister father mother grandmother uncle daughter-in-law grandson granddaughter "
    "father-in-law mother-in-law nephew son daughter niece".split()
)


def truthfulqa(record: Record, form: str) -> Item:
    """TruthfulQA (Lin et al., arXiv 2109.07958): statements that people get wrong.

    Prompt: `Q: {question}` / `A:`. `mc1`: the best answer against all wrong ones (metric choice_accuracy). `mc2`: all right
    answers against all wrong ones (metric mc2). `binary`: the best against the best wrong one, where the table has that column.
    `pair`: the best against the first wrong one, the one pair a question that LoFiT's code learns from (arXiv 2406.01563).
    Each answer ends with a full stop, as in the source's own code; the choices stand in an order drawn from their texts. The
    source puts six solved examples in front (its `qa` primer), which are no part of the dataset. Reads its CSV tables.
    """
    best = _sentence(record.text("Best Answer"))
    right = _sentences(record.text("Correct Answers")) if form == "mc2" else [best]
    wrong = [_sentence(record.text("Best Incorrect Answer"))] if form == "binary" else _sentences(record.text("Incorrect Answers"))
    wrong = wrong[:1] if form == "pair" else wrong
    if set(right) & set(wrong):
        raise SuiteError("an answer is both right and wrong")
    if best not in right:
        raise SuiteError("the best answer is not among the right ones")
    question = record.text("Question")
    choices = tuple(f" {text}" for text in drawn([*right, *wrong], question))
    labels = tuple(i for i, choice in enumerate(choices) if choice[1:] in right) if form == "mc2" else ()
    return Item(f"Q: {question}\nA:", f" {best}", choices, labels=labels)


def _sentences(answers: str) -> Sequence[str]:
    return [_sentence(answer) for answer in answers.split(";") if answer.strip()]


def _sentence(answer: str) -> str:
    answer = answer.strip()
    return answer if answer.endswith(".") else f"{answer}."


def clutrr(record: Record, form: str) -> Item:
    """CLUTRR (Sinha et al., arXiv 1908.06177): a story about a family; how is one of them related to another, over two hops?

    Prompt, as in LoFiT (arXiv 2406.01563), but without its space before 's: `Read the following story about a family. "{story}"
    ... how is {b} related to {a}? Answer: {b} is {a}'s`. `texts` scores the 18 relations; for `generate` the first line counts.
    Reads JSON or CSV with clean_story (or story), query, target_text.
    """
    story = record.text("clean_story", "story").replace("[", "").replace("]", "")
    names = re.findall(r"[^\W\d_][\w.-]*", str(record.get("query")))
    relation = record.text("target_text", "target")
    if len(names) != 2:
        raise SuiteError("'query' holds no two names")
    if relation not in RELATIONS:
        raise SuiteError("the relation is none of the 18 of two hops")
    a, b = names
    prompt = (
        f'Read the following story about a family. "{story}" Assume the relations described in the story are all true. Based on '
        f"relations between the fictional characters in the story (assume the relations are all true) and your commonsense "
        f"knowledge about family relationship, how is {b} related to {a}? Answer: {b} is {a}'s"
    )
    return Item(prompt, f" {relation}", () if form == "generate" else tuple(f" {r}" for r in RELATIONS))
