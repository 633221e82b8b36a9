"""From a reader's items to a suite: rows that cannot be used are counted, solved examples are put in front, the rest is recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taia_lens.errors import SuiteError
from taia_lens.readers.item import Item, Reader, drawn
from taia_lens.readers.source import Record, read_source
from taia_lens.suite import Task


@dataclass(frozen=True)
class Found:
    """What a file held.

    Attributes:
        items: The usable rows, by their place in the file.
        made: The file's name and hash, how many rows were read, and the refused ones: reason, how many, where the first is.
    """

    items: dict[int, Item]
    made: dict[str, Any]


def find(name: str, reader: Reader, path: Path, form: str) -> Found:
    """Read a file's rows.

    Raises:
        SuiteError: The file cannot be read, its ending is none of the reader's, or no row of it can be used.
    """
    parse = reader.files.get(path.suffix.lower()) or reader.files.get("")
    if parse is None:
        raise SuiteError(
            f"{name} reads {' or '.join(reader.files)} files, and {path.name} is none; what it reads: taia-lens suite list {name}"
        )
    source = read_source(path, form)
    items: dict[int, Item] = {}
    refused: dict[str, dict[str, Any]] = {}
    records = list(parse(source))
    for record in records:
        try:
            items[record.number] = reader.item(record, form)
        except SuiteError as error:
            refused.setdefault(str(error), {"rows": 0, "first": record.where})["rows"] += 1
    if not items:
        raise SuiteError(f"{name} can use none of the {len(records)} rows of {path}{_why(records, refused)}")
    made = {"source": source.name, "source_sha256": source.sha256, "rows_read": len(records), "refused": refused}
    return Found(items, made)


def _why(records: Sequence[Record], refused: dict[str, dict[str, Any]]) -> str:
    if not refused:
        return ""
    keys = ", ".join(sorted(records[0].fields))[:200] or "nothing that can be read"
    return f"; {records[0].where}: {next(iter(refused))} (there is {keys}); is the file in another format?"


def only(items: dict[int, Item], groups: Sequence[str]) -> dict[int, Item]:
    """The items of these tasks or subjects.

    Raises:
        SuiteError: There is none of that name; the message lists those that exist.
    """
    known = sorted({item.group for item in items.values()} - {""})
    for group in groups:
        if group not in known:
            there = f"there are {', '.join(known)}" if known else "this dataset is not divided"
            raise SuiteError(f"no row of the task or subject {group!r}; {there}")
    return {number: item for number, item in items.items() if item.group in groups} if groups else items


def with_examples(items: dict[int, Item], pool: dict[int, Item], shots: int, seed: int) -> dict[int, Item]:
    """Put solved examples in front of each item: those of its group, in an order drawn with the seed, never the item itself.

    All items of a group see the same examples, but for one that is itself among them: it sees the next one instead. "Itself" is
    the same question, wherever it was read, so an overlap of two files does not tell the answer either.

    Raises:
        SuiteError: A group with too few examples.
    """
    solved: dict[str, dict[str, str]] = {}
    for item in pool.values():
        if item.solution != "":
            solved.setdefault(item.group, {})[item.prompt] = item.prompt + (item.solution or item.answer)
    order = {group: drawn(by_prompt, str(seed)) for group, by_prompt in solved.items()}
    out = {}
    for number, item in items.items():
        chosen = [prompt for prompt in order.get(item.group, [])[: shots + 1] if prompt != item.prompt][:shots]
        if len(chosen) < shots:
            named = f" of {item.group}" if item.group else ""
            raise SuiteError(f"{shots} solved examples{named} were asked for, and there are {len(chosen)}; give fewer --shots")
        texts = [solved[item.group][prompt] for prompt in chosen]
        out[number] = replace(item, prompt="\n\n".join([*texts, item.prompt]))
    return out


def row(number: int, item: Item, domain: str, task: Task, words: int | None) -> dict[str, Any]:
    """The suite's row: after a chat template's own line break, answers carry no leading space."""
    prompt = item.header + item.prompt
    if words is not None:
        # Cut after a word, with the white space between words as it stands.
        prompt = "".join(re.findall(r"\s*\S+", prompt)[:words])
    cut = str.lstrip if task.chat else str
    made: dict[str, Any] = {"id": str(number), "prompt": prompt, "domain": domain}
    if item.choices:
        made |= {"choices": [cut(choice) for choice in item.choices], "label": item.choices.index(item.answer)}
    elif item.answer:
        made["answer"] = cut(item.answer)
    if item.contrast is not None:
        made["contrast"] = cut(item.contrast)
    return made | {"aliases": list(item.aliases), "labels": list(item.labels)}


def version() -> str:
    """This package's version, for the record."""
    from importlib import metadata  # slow for what a shell needs at once, and needed here alone

    try:
        return metadata.version("taia-lens")
    except metadata.PackageNotFoundError:  # run from a tree that is not installed
        return "unknown"
