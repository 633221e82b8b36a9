"""Readers: public datasets' files as suites, one function a format. Nothing is downloaded; nothing here imports torch.

`read("gsm8k", "test.jsonl", domain="ood")` is a Suite. Each reader's docstring says its prompt; a prompt ends without a space,
and the answer begins with one. Rows that cannot be used are counted, and `suite.made` says which and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taia_lens.errors import SuiteError
from taia_lens.readers import choices, generated, making, pairs, plain, statements
from taia_lens.readers.item import Reader
from taia_lens.readers.source import json_lines, json_whole, table
from taia_lens.suite import DOMAINS, Suite, Task, make_suite

_JSON = {".jsonl": json_lines, ".json": json_whole}
_CSV = {".csv": table}
_NUMBER = Task("generate", stop=("Question:",), max_new_tokens=256, extract="number")
_LINE = Task("generate", stop=("\n",), max_new_tokens=32, extract="line")
_LETTER = Task("generate", stop=("\nQuestion:", "\nPassage:"), max_new_tokens=256, extract="letter")
_CHOICE, _NEXT, _TEXT = Task("choice"), Task("next"), Task("text")
_LETTERS = {"letters": _CHOICE, "texts": _CHOICE, "generate": _LETTER}
_PAIR = {"next": _NEXT, "choice": _CHOICE}
_WORDS = {"choice": _CHOICE, "next": _NEXT}  # rarely one token each

READERS: dict[str, Reader] = {
    "gsm8k": Reader(generated.gsm8k, _JSON, {"generate": _NUMBER}),
    "svamp": Reader(generated.svamp, _JSON, {"generate": _NUMBER}),
    "math": Reader(generated.math, _JSON, {"generate": Task("generate", stop=("\nProblem:",), max_new_tokens=512, extract="boxed")}),
    "bbh": Reader(
        generated.bbh,
        _JSON,
        {
            "direct": replace(_LINE, max_new_tokens=128),  # word_sorting's answers are long
            "cot": Task("generate", stop=("\nQ:",), max_new_tokens=512, extract="answer"),
        },
    ),
    "commonsenseqa": Reader(choices.commonsenseqa, _JSON, _LETTERS),
    "logiqa": Reader(choices.logiqa, _JSON | {".txt": choices.logiqa_blocks}, _LETTERS),
    "mmlu": Reader(choices.mmlu, _JSON | {".csv": choices.mmlu_table}, _LETTERS),
    "medqa": Reader(choices.medqa, _JSON, _LETTERS),
    "pubmedqa": Reader(choices.pubmedqa, _JSON, {"texts": _CHOICE}),
    "truthfulqa": Reader(statements.truthfulqa, _CSV, {"mc1": _CHOICE, "mc2": _CHOICE, "binary": _CHOICE, "pair": _CHOICE}),
    "clutrr": Reader(statements.clutrr, _JSON | _CSV, {"texts": _CHOICE, "generate": Task("generate", (".", ",", "\n"), 16, "line")}),
    "mquake": Reader(generated.mquake, _JSON, {"imagine": _LINE, "new": _LINE, "old": _LINE}),
    "word-pairs": Reader(generated.word_pairs, _JSON, {"generate": _LINE}),
    "advbench": Reader(generated.advbench, _CSV, {"refuse": Task("refuse", max_new_tokens=128)}),
    "ioi": Reader(pairs.ioi, _CSV, _PAIR),
    "greater-than": Reader(pairs.greater_than, _CSV, _WORDS),
    "sva": Reader(pairs.sva, _CSV, _PAIR),
    "gender-bias": Reader(pairs.gender_bias, _CSV, _PAIR),
    "country-capital": Reader(pairs.country_capital, _CSV, _WORDS),
    "hypernymy": Reader(pairs.hypernymy, _CSV, _PAIR),
    "tinystories": Reader(plain.tinystories, {"": plain.stories}, {"stories": _TEXT}),
    "wikitext": Reader(plain.wikitext, {"": plain.articles}, {"articles": _TEXT, "paragraphs": _TEXT}),
    "text": Reader(plain.text, {".jsonl": json_lines, "": plain.pieces}, {"paragraphs": _TEXT, "lines": _TEXT, "whole": _TEXT}),
}


def reader_of(name: str) -> Reader:
    """The reader of that name, dashes or underscores.

    Raises:
        SuiteError: There is none; the message lists those that exist.
    """
    reader = READERS.get(name.replace("_", "-"))
    if reader is None:
        raise SuiteError(f"no reader {name!r}; there are {', '.join(READERS)}")
    return reader


def read(
    name: str,
    path: str | Path,
    *,
    domain: str,
    form: str | None = None,
    only: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    shots: int = 0,
    shots_from: str | Path | None = None,
    words: int | None = None,
    chat: bool = False,
    system: str | None = None,
    max_new_tokens: int | None = None,
) -> Suite:
    """Make a suite of a public dataset's file.

    Args:
        name: The reader, one of READERS.
        path: The dataset's file.
        domain: `id` or `ood`, of every row.
        form: How a question is put, where the reader has several ways; its first where left out.
        only: Rows of these tasks, subjects or benchmarks only.
        limit: At most this many rows, drawn with `seed`.
        seed: Of `limit` and of the solved examples.
        shots: Solved examples in front of each question, of the same task or subject, never the question itself.
        shots_from: The file that they come from, in the same format; `path` itself where left out.
        words: Cut each plain text after so many words.
        chat: The prompt (with its examples) is a user's message, put through the tokenizer's chat template.
        system: The system message that goes with it.
        max_new_tokens: The longest generation, instead of the reader's own.

    Raises:
        SuiteError: The file cannot be read, no row of it can be used, or what is asked for does not exist.
    """
    name, reader = name.replace("_", "-"), reader_of(name)
    form = reader.form if form is None else form
    task = _task(name, reader, form, chat, system, max_new_tokens)
    _check(name, task, domain, shots, shots_from, words)
    found = making.find(name, reader, Path(path), form)
    items = making.only(found.items, only)
    made: dict[str, Any] = {"reader": name, "as": form, **found.made, "only": list(only), "limit": limit, "seed": seed}
    if shots:
        examples = found if shots_from is None else making.find(name, reader, Path(shots_from), form)
        items = making.with_examples(items, examples.items, shots, seed)
        made["shots"] = {"number": shots, **examples.made}
    rows = [making.row(number, item, domain, task, words) for number, item in items.items()]
    made |= {"words": words, "taia_lens": making.version()}
    suite = make_suite(name, rows, task=task, made={key: value for key, value in made.items() if value not in (None, [])})
    return suite if limit is None else suite.limit(limit, seed=seed)


def _task(name: str, reader: Reader, form: str, chat: bool, system: str | None, max_new_tokens: int | None) -> Task:
    if form not in reader.tasks:
        raise SuiteError(f"{name} cannot be put as {form!r}; there is {', '.join(reader.tasks)}")
    task = reader.tasks[form]
    if system is not None and not chat:
        raise SuiteError("a system message goes through the chat template; give --chat too")
    if chat and task.kind == "text":
        raise SuiteError(f"{name} is plain text, which has no chat template; leave --chat out")
    if max_new_tokens is None:
        return replace(task, chat=chat, system=system)
    if task.kind not in ("generate", "refuse"):
        raise SuiteError(f"{name} as {form!r} generates nothing; leave --max-new-tokens out")
    if max_new_tokens < 1:
        raise SuiteError(f"{max_new_tokens} new tokens hold no answer; write --max-new-tokens 1 or more")
    return replace(task, chat=chat, system=system, max_new_tokens=max_new_tokens)


def _check(name: str, task: Task, domain: str, shots: int, shots_from: object, words: int | None) -> None:
    if domain not in DOMAINS:
        raise SuiteError(f"no domain {domain!r}; write id (in distribution) or ood (out of distribution)")
    if shots < 0 or (shots_from is not None and not shots):
        raise SuiteError("say how many solved examples to take from that file: --shots 5" if shots >= 0 else f"{shots} examples are none")
    if shots and task.kind in ("refuse", "text"):
        raise SuiteError(f"{name} has no answers, so there are no solved examples; leave --shots out")
    if words is not None and (task.kind != "text" or words < 1):
        raise SuiteError(f"--words cuts plain text after a number of words from 1; {name} with --words {words} cannot be cut")
