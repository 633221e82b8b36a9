"""A suite's task and rows: what they are, and what is refused of them, in one line each. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from taia_lens.answers import EXTRACT
from taia_lens.errors import SuiteError

DOMAIN_NAMES = {"id": "in distribution", "ood": "out of distribution"}
DOMAINS = tuple(DOMAIN_NAMES)
_KEYS = {"id", "prompt", "answer", "choices", "label", "domain", "contrast", "aliases", "labels"}
_ASKED = {
    "next": "the answer is the next token",
    "choice": "choices of any length, scored by log-probability",
    "generate": "text is generated and its answer extracted",
    "refuse": "text is generated; does it refuse?",
    "text": "the text's own tokens are scored",
}
KINDS = tuple(_ASKED)


@dataclass(frozen=True)
class Task:
    """What a model is asked to do with each row; the same for every recipe.

    Attributes:
        kind: `next`: the answer (and each choice) is one token after the prompt. `choice`: choices of any length, scored by
            log-probability. `generate`: text is generated and its answer extracted. `refuse`: text is generated and it is
            asked whether it refuses. `text`: the prompt is plain text and its own tokens are scored.
        stop: Generation ends where one of these texts begins.
        max_new_tokens: The longest generation.
        extract: The rule of `answers.EXTRACT` that finds the answer in what was generated.
        chat: Put the prompt through the tokenizer's chat template, as the user's message.
        system: The system message that goes with it.
    """

    kind: str = "next"
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64
    extract: str = "text"
    chat: bool = False
    system: str | None = None

    @property
    def words(self) -> str:
        """What is asked, in a sentence.

        >>> Task("text").words
        "text: the text's own tokens are scored"
        """
        said = [_ASKED[self.kind]]
        if self.kind in ("generate", "refuse"):
            said.append(f"up to {self.max_new_tokens} new tokens" + "".join(f", stops at {text!r}" for text in self.stop))
        if self.kind == "generate":
            said.append(f"answer by the rule {self.extract!r}")
        said += ["through the chat template" + (f", system message {self.system!r}" if self.system else "")] if self.chat else []
        return f"{self.kind}: {'; '.join(said)}"


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        id: Distinct in its suite.
        prompt: What the model reads; for plain text, the text itself.
        answer: The right text; empty where the task has none (refusal, plain text).
        domain: `id` or `ood`.
        choices: Empty where the row has a single answer.
        contrast: A wrong answer to hold against the right one.
        aliases: Further texts that count as the answer, where it is generated.
        labels: Numbers of all choices that are right, where there may be several (TruthfulQA's MC2).
    """

    id: str
    prompt: str
    answer: str
    domain: str
    choices: tuple[str, ...] = ()
    contrast: str | None = None
    aliases: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


def read_task(where: str, head: Any) -> Task:
    """The task of a suite's own line, checked.

    Raises:
        SuiteError: Not a line of that form, or something of it cannot be used.
    """
    if not isinstance(head, dict) or set(head) - {"task", "made"} or not all(isinstance(part, dict) for part in head.values()):
        raise SuiteError(f"{where}: the suite's own line is {{'suite': {{'task': {{'kind': ...}}, 'made': {{...}}}}}}, found {head!r}")
    asked = dict(head.get("task", {}))
    known = [f.name for f in fields(Task)]
    for key in asked:
        if key not in known:
            raise SuiteError(f"{where}: a task has no {key!r}; it has {', '.join(known)}")
    if asked.get("kind", "next") not in KINDS:
        raise SuiteError(f"{where}: no task {asked['kind']!r}; there are {', '.join(KINDS)}")
    stop = asked.get("stop", [])
    if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
        raise SuiteError(f"{where}: stop must be a list of texts, found {stop!r}")
    _whole(where, "stop", stop)
    longest = asked.get("max_new_tokens", 64)
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise SuiteError(f"{where}: max_new_tokens must be a number from 1, found {longest!r}")
    rule, chat, system = asked.get("extract", "text"), asked.get("chat", False), asked.get("system")
    if not isinstance(rule, str) or rule not in EXTRACT:
        raise SuiteError(f"{where}: no rule {rule!r} to extract an answer; there are {', '.join(EXTRACT)}")
    if not isinstance(chat, bool):
        raise SuiteError(f"{where}: chat must be true or false, found {chat!r}")
    if system is not None and not isinstance(system, str):
        raise SuiteError(f"{where}: system must be a text, or left out, found {system!r}")
    _whole(where, "system", [system or ""])
    return Task(**asked | {"stop": tuple(stop)})


def read_row(where: str, record: Any, default_id: str, task: Task) -> Row:
    """A row of the JSONL form, checked.

    Raises:
        SuiteError: It cannot be used for the task.
    """
    if not isinstance(record, dict):
        raise SuiteError(
            f"{where}: a row is an object like {{'prompt': ..., 'answer': ..., 'domain': 'id'}}, found {type(record).__name__}"
        )
    unknown = set(record) - _KEYS
    if unknown:
        raise SuiteError(f"{where}: unknown key {sorted(unknown)[0]!r}; a row has {', '.join(sorted(_KEYS))}")
    prompt = _text(where, record, "prompt")
    if record.get("domain") not in DOMAINS:
        raise SuiteError(
            f"{where}: the domain is {record.get('domain')!r}; write 'id' (in distribution) or 'ood' (out of distribution), "
            f"or say it for the whole file: id=FILE"
        )
    contrast = _text(where, record, "contrast") if record.get("contrast") is not None else None
    choices, answer = _answer(where, record, task)
    if contrast == answer and contrast is not None:
        raise SuiteError(f"{where}: the contrast {contrast!r} is the answer itself; give a wrong answer, or leave it out")
    aliases, name = record.get("aliases", []), str(record.get("id", default_id))
    if not isinstance(aliases, (list, tuple)) or not all(isinstance(a, str) and a.strip() for a in aliases):
        raise SuiteError(f"{where}: aliases must be a list of texts, found {aliases!r}")
    _whole(where, "aliases", aliases)
    _whole(where, "id", [name])
    return Row(name, prompt, answer, record["domain"], choices, contrast, tuple(aliases), _labels(where, record, choices))


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise SuiteError(f"{where}: {key} must be a text that is not empty, found {value!r}")
    _whole(where, key, [value])
    return value


def _whole(where: str, key: str, texts: Sequence[str]) -> None:
    """Raise where a text holds half a character: it can be neither written nor tokenized."""
    try:
        "".join(f"{text} " for text in texts).encode()
    except UnicodeEncodeError as error:
        raise SuiteError(f"{where}: {key} holds half a character ({error.reason}); the text was cut or wrongly escaped") from error


def _labels(where: str, record: dict[str, Any], choices: tuple[str, ...]) -> tuple[int, ...]:
    labels = record.get("labels", [])
    if not choices and labels:
        raise SuiteError(f"{where}: labels go with choices; leave them out, or give choices instead of an answer")
    if not isinstance(labels, (list, tuple)) or not all(type(i) is int and 0 <= i < len(choices) for i in labels):
        raise SuiteError(f"{where}: labels must be numbers of choices, 0-{len(choices) - 1}, found {labels!r}")
    if len(set(labels)) != len(labels):
        raise SuiteError(f"{where}: the labels {labels!r} hold the same number twice")
    if labels and record["label"] not in labels:
        raise SuiteError(f"{where}: the labels {labels!r}, all choices that are right, lack the label {record['label']} itself; add it")
    return tuple(labels)


def _answer(where: str, record: dict[str, Any], task: Task) -> tuple[tuple[str, ...], str]:
    if task.kind in ("refuse", "text"):
        if "answer" in record or "choices" in record:
            raise SuiteError(f"{where}: the task {task.kind} has no answer; leave answer and choices out")
        return (), ""
    if task.kind == "choice" and "choices" not in record:
        raise SuiteError(f"{where}: the task choice needs choices, and the label of the right one")
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
    _whole(where, "choices", choices)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
        raise SuiteError(f"{where}: the label must be the right choice's number, 0-{len(choices) - 1}, found {label!r}")
    return tuple(choices), choices[label]
