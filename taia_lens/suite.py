"""Suites: prompts with a known right answer and a domain. Reads JSONL; knows no tokenizer and imports no torch.

One row a line: `{"id", "prompt", "answer" | "choices" + "label", "domain": "id" | "ood", "contrast"?}`. The answer is
appended to the prompt as written, so it carries its own leading space: `"prompt": "The capital of France is", "answer":
" Paris"`. `contrast` is a wrong answer to hold against the right one (for the logit difference).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taia_lens.errors import SuiteError

DOMAIN_NAMES = {"id": "in distribution", "ood": "out of distribution"}
DOMAINS = tuple(DOMAIN_NAMES)
_KEYS = {"id", "prompt", "answer", "choices", "label", "domain", "contrast"}


@dataclass(frozen=True)
class Row:
    """One prompt. `choices` is empty where the row has a single answer; `answer` is always the right text."""

    id: str
    prompt: str
    answer: str
    domain: str
    choices: tuple[str, ...] = ()
    contrast: str | None = None


@dataclass(frozen=True)
class Suite:
    """Rows with distinct ids, a name, and the hash of their content."""

    name: str
    rows: tuple[Row, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(d for d in DOMAINS if any(row.domain == d for row in self.rows))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([asdict(row) for row in self.rows], sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def limit(self, n: int, *, seed: int = 0) -> Suite:
        """At most `n` rows of each domain, drawn with `seed`, in their own order.

        Raises:
            SuiteError: `n` is not positive.
        """
        if n < 1:
            raise SuiteError(f"a limit of {n} leaves no prompt; write 1 or more, or leave it out")
        rng = np.random.default_rng(seed)
        kept: set[str] = set()
        for domain in self.domains:
            ids = [row.id for row in self.rows if row.domain == domain]
            kept |= set(ids if len(ids) <= n else rng.choice(ids, n, replace=False))
        return Suite(self.name, tuple(row for row in self.rows if row.id in kept))


def load_suite(path: str | Path) -> Suite:
    """Read a suite from a JSONL file.

    Raises:
        SuiteError: No such file, no rows, a line that is no JSON, or a row that cannot be used (with its line number).
    """
    path = Path(path)
    if not path.is_file():
        raise SuiteError(f"no suite file {path}; give a JSONL file, one row a line")
    try:
        # Not splitlines: a JSON text may hold other line separators (U+2028) unescaped. -sig drops a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, PermissionError) as error:
        raise SuiteError(f"cannot read the suite {path}: {error}; it must be readable UTF-8 text") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise SuiteError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
    return _suite(path.stem, records)


def make_suite(name: str, rows: Sequence[dict[str, Any]]) -> Suite:
    """Build a suite in Python from dicts with the keys of the JSONL form.

    >>> suite = make_suite("capitals", [{"prompt": "France:", "answer": " Paris", "domain": "ood"}])
    >>> suite.rows[0].id, suite.domains
    ('0', ('ood',))

    Raises:
        SuiteError: No rows, or a row that cannot be used.
    """
    return _suite(name, [(f"suite {name}, row {i}", row) for i, row in enumerate(rows)])


def _suite(name: str, records: list[tuple[str, Any]]) -> Suite:
    if not records:
        raise SuiteError(f"the suite {name!r} is empty; it needs at least one row with a prompt, an answer and a domain")
    rows = [_row(where, record, str(i)) for i, (where, record) in enumerate(records)]
    seen: dict[str, str] = {}
    for (where, _), row in zip(records, rows, strict=True):
        if row.id in seen:
            raise SuiteError(f"{where}: the id {row.id!r} was used before, at {seen[row.id]}; ids must be distinct")
        seen[row.id] = where
    return Suite(name, tuple(rows))


def _row(where: str, record: Any, default_id: str) -> Row:
    if not isinstance(record, dict):
        raise SuiteError(
            f"{where}: a row is an object like {{'prompt': ..., 'answer': ..., 'domain': 'id'}}, found {type(record).__name__}"
        )
    unknown = set(record) - _KEYS
    if unknown:
        raise SuiteError(f"{where}: unknown key {sorted(unknown)[0]!r}; a row has {', '.join(sorted(_KEYS))}")
    prompt = _text(where, record, "prompt")
    if record.get("domain") not in DOMAINS:
        raise SuiteError(f"{where}: the domain is {record.get('domain')!r}; write 'id' (in distribution) or 'ood' (out of distribution)")
    contrast = _text(where, record, "contrast") if record.get("contrast") is not None else None
    choices, answer = _answer(where, record)
    if contrast == answer:
        raise SuiteError(f"{where}: the contrast {contrast!r} is the answer itself; give a wrong answer, or leave it out")
    return Row(str(record.get("id", default_id)), prompt, answer, record["domain"], choices, contrast)


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise SuiteError(f"{where}: {key} must be a text that is not empty, found {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SuiteError(f"{where}: {key} holds half a character ({error.reason}); the text was cut or wrongly escaped") from error
    return value


def _answer(where: str, record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    if ("answer" in record) == ("choices" in record):
        found = "both" if "answer" in record else "neither"
        raise SuiteError(f"{where}: give either an answer, or choices and the label of the right one; found {found}")
    if "answer" in record:
        if "label" in record:
            raise SuiteError(f"{where}: a label goes with choices; leave it out, or give choices instead of an answer")
        return (), _text(where, record, "answer")
    choices, label = record["choices"], record.get("label")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise SuiteError(f"{where}: choices must be a list of two or more texts, found {choices!r}")
    if len(set(choices)) != len(choices):
        raise SuiteError(f"{where}: the choices {choices!r} hold the same text twice")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise SuiteError(f"{where}: the label must be the right choice's number, 0-{len(choices) - 1}, found {label!r}")
    return tuple(choices), choices[label]
