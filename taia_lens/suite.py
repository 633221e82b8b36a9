"""Suites: prompts with a known right answer, a domain, and a task. Reads JSONL; knows no tokenizer and imports no torch.

One row a line: `{"id", "prompt", "answer" | "choices" + "label", "domain": "id" | "ood", "contrast"?}`. The answer is
appended to the prompt as written, so it carries its own leading space: `"prompt": "The capital of France is", "answer":
" Paris"`. `contrast` is a wrong answer to hold against the right one (for the logit difference).

The first line may say what is asked of the model and where the rows come from: `{"suite": {"task": {"kind": "generate",
"stop": ["\\n"]}, "made": {...}}}`; without it the task is to predict the next token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from taia_lens.errors import SuiteError
from taia_lens.files import write_whole
from taia_lens.html import Html, card, inline, paragraph, table
from taia_lens.rows import DOMAIN_NAMES, DOMAINS, KINDS, Row, Task, read_row, read_task

__all__ = ["DOMAINS", "DOMAIN_NAMES", "KINDS", "Row", "Suite", "Task", "load_suite", "make_suite", "save_suite"]


_NEXT = Task()
SHOWN = 3  # rows of each domain in the HTML repr


@dataclass(frozen=True)
class Suite:
    """Rows with distinct ids, a name, the task, where the rows come from (`made`), and the hash of rows and task."""

    name: str
    rows: tuple[Row, ...]
    task: Task = _NEXT
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(d for d in DOMAINS if any(row.domain == d for row in self.rows))

    @property
    def sha256(self) -> str:
        content = [asdict(self.task), *(asdict(row) for row in self.rows)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def _counts(self) -> str:
        return ", ".join(f"{sum(row.domain == d for row in self.rows)} {d}" for d in self.domains)

    def __repr__(self) -> str:
        return f"Suite({self.name}: {self._counts}; task {self.task.kind})"

    def _repr_html_(self) -> Html:
        shown = [row for d in self.domains for row in [row for row in self.rows if row.domain == d][:SHOWN]]
        answers = [row.answer or "-" for row in shown]
        wrong = [", ".join(c for c in row.choices if c != row.answer) or row.contrast or "" for row in shown]
        heads, columns = (
            ["id", "domain", "prompt", "answer"],
            [[r.id for r in shown], [r.domain for r in shown], [r.prompt for r in shown], answers],
        )
        if any(wrong):
            heads, columns = [*heads, "wrong answers"], [*columns, wrong]
        asked = paragraph("task ", inline(self.task.words), f"; n = {len(self)}: {self._counts}")
        few = f"the first {SHOWN} of each domain" if len(shown) < len(self) else ""
        return card(f"Suite {self.name}", asked, table(heads, list(zip(*columns, strict=True)), texts=(2,), caption=few))

    def limit(self, n: int, *, seed: int = 0) -> Suite:
        """At most `n` rows of each domain, drawn with `seed`, in their own order.

        Raises:
            SuiteError: `n` is not positive.
        """
        if n < 1:
            raise SuiteError(f"a limit of {n} leaves no prompt; write 1 or more, or leave it out")
        import numpy as np  # here alone, and `taia-lens --help` does not wait for it

        rng = np.random.default_rng(seed)
        kept: set[str] = set()
        for domain in self.domains:
            ids = [row.id for row in self.rows if row.domain == domain]
            kept |= set(ids if len(ids) <= n else rng.choice(ids, n, replace=False))
        return replace(self, rows=tuple(row for row in self.rows if row.id in kept))


def load_suite(path: str | Path, *, domain: str | None = None) -> Suite:
    """Read a suite from a JSONL file.

    Args:
        path: The file; its name without the ending is the suite's.
        domain: `id` or `ood` for every row, whatever the rows say themselves.

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
        except (RecursionError, ValueError) as error:  # brackets in brackets; a number of thousands of digits
            why = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise SuiteError(f"{path}, line {number}: not JSON that can be read: {why}") from error
    where, head = f"{path}, line 1", dict[str, Any]()
    if records and isinstance(records[0][1], dict) and set(records[0][1]) == {"suite"}:
        where, own = records.pop(0)
        head = own["suite"]
    task = read_task(where, head)
    return _suite(path.stem, records, task, head.get("made", {}), domain)


def save_suite(suite: Suite, path: str | Path) -> None:
    """Write a suite as JSONL that `load_suite` reads back equal (but for the name, which is the file's): whole or not at all.

    Args:
        suite: What is written.
        path: The file; must not exist.

    Raises:
        SuiteError: The file exists, or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise SuiteError(f"{path} exists; give another --out, or move it away")
    head = {"suite": {"task": asdict(suite.task), "made": dict(suite.made)}}
    lines = [json.dumps(record, ensure_ascii=False) for record in (head, *map(_record, suite.rows))]
    try:
        write_whole(path, ("\n".join(lines) + "\n").encode("utf-8"))
    except OSError as error:
        raise SuiteError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error


def _record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "prompt": row.prompt, "domain": row.domain}
    if row.choices:
        record |= {"choices": list(row.choices), "label": row.choices.index(row.answer)}
    elif row.answer:
        record["answer"] = row.answer
    optional = {"contrast": row.contrast, "aliases": list(row.aliases), "labels": list(row.labels)}
    return record | {key: value for key, value in optional.items() if value}


def make_suite(name: str, rows: Sequence[dict[str, Any]], *, task: Task = _NEXT, made: Mapping[str, Any] | None = None) -> Suite:
    """Build a suite in Python from dicts with the keys of the JSONL form.

    >>> suite = make_suite("capitals", [{"prompt": "France:", "answer": " Paris", "domain": "ood"}])
    >>> suite.rows[0].id, suite.domains
    ('0', ('ood',))

    Args:
        name: What results and figures call it.
        rows: Each with a prompt, a domain, and what the task needs besides: an answer, or choices and a label.
        task: What is asked of the model; by default to predict the next token.
        made: Where the rows come from, kept with every result.

    Raises:
        SuiteError: No rows, or a row that cannot be used.
    """
    return _suite(name, [(f"suite {name}, row {i}", row) for i, row in enumerate(rows)], task, made or {}, None)


def _suite(name: str, records: list[tuple[str, Any]], task: Task, made: Mapping[str, Any], domain: str | None) -> Suite:
    if not records:
        raise SuiteError(f"the suite {name!r} is empty; it needs at least one row with a prompt, an answer and a domain")
    if domain is not None:
        records = [(where, record | {"domain": domain} if isinstance(record, dict) else record) for where, record in records]
    rows = [read_row(where, record, str(i), task) for i, (where, record) in enumerate(records)]
    seen: dict[str, str] = {}
    for (where, _), row in zip(records, rows, strict=True):
        if row.id in seen:
            raise SuiteError(f"{where}: the id {row.id!r} was used before, at {seen[row.id]}; ids must be distinct")
        seen[row.id] = where
    return Suite(name, tuple(rows), task, made)
