"""Readers: each on a small sample with the row it must make, on the real files with what is read and refused, and on wrong files."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taia_lens import cli
from taia_lens.answers import extract, matches
from taia_lens.errors import SuiteError
from taia_lens.readers import READERS, making, read
from taia_lens.readers.item import Item
from taia_lens.readers.source import Record
from taia_lens.suite import Suite, load_suite, save_suite

OPTIONS = "\nA. one\nB. two\nC. three\nD. four\nAnswer:"
LETTERS = (" A", " B", " C", " D")
WORDS = (" one", " two", " three", " four")
FOUR = ["one", "two", "three", "four"]
GSM = {"question": "How many? ", "answer": "He has 48/2 = <<48/2=24>>24 of 1.\nSo 1,224.\n#### 1,224"}
CSQA = {"answerKey": "B", "question": {"stem": "Which?", "choices": [{"label": x, "text": t} for x, t in zip("ABCD", FOUR, strict=True)]}}
QA = {"question": "Which?", "choices": FOUR, "answer": 1}
TQA = (
    "Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\n"
    'Do pigs fly?,"No, they do not",Yes,"No, they do not; They do not.; They do not; ",Yes; Some do\n'
)
EDIT = {"prompt": "{} is in", "subject": "Paris", "target_new": {"str": "Rome"}, "target_true": {"str": "France"}}
MQUAKE = {
    "questions": ["Where?", "In which place?"],
    "requested_rewrite": [EDIT],
    "answer": "France",
    "answer_alias": ["FR"],
    "new_answer": "Rome",
    "new_answer_alias": [],
}
CLUTRR = {"story": "[Al]'s son [Bo] has a son [Cy].", "query": "('Al', 'Cy')", "target_text": "grandson"}
PUBMED = {"QUESTION": "Does it?", "CONTEXTS": ["We tried.", "It did."], "final_decision": "yes"}
LOGIQA = "\nb\nA passage.\nWhich?\nA.one\nC.three\nB two\nD.four\n"
WIKI = " = One = \n \n First . \n = 1 = = \n Second . \n \n = = Part = = \n \n Third . \n \n = Two = \n \n Fourth . \n"
YEARS = "clean,label\nFrom the year 1706 to the year 17,6\n"
IOI = "clean,correct,incorrect\nAmy and Bob met. Bob waved to,Amy,Bob\n"

# reader, form, file ending, content, and what must come out (of the first row)
SAMPLES: list[tuple[str, str, str, Any, dict[str, Any]]] = [
    ("gsm8k", "generate", "jsonl", GSM, {"prompt": "Question: How many?\nAnswer:", "answer": " 1224"}),
    (
        "svamp",
        "generate",
        "json",
        [{"Body": "Al had 3 left", "Question": "How many?", "Answer": 51.0}],
        {"prompt": "Question: Al had 3 left, How many?\nAnswer:", "answer": " 51"},
    ),
    (
        "math",
        "generate",
        "jsonl",
        {"problem": "Solve.", "solution": r"First \boxed{1}, then $\boxed{\frac{1}{2}}$.", "answer": "not read"},
        {"prompt": "Problem:\nSolve.\n\nSolution:", "answer": r" \frac{1}{2}"},
    ),
    (
        "bbh",
        "direct",
        "json",
        {"canary": "...", "examples": [{"input": "Which?\nOptions:\n(A) one\n(B) two", "target": "(B)"}]},
        {"prompt": "Q: Which?\nOptions:\n(A) one\n(B) two\nA:", "answer": " (B)", "aliases": ("B", "(B) two", "two")},
    ),
    (
        "bbh",
        "cot",
        "jsonl",
        {"input": "Sort: b a", "target": "a b", "task": "sorting"},
        {"prompt": "Q: Sort: b a\nA: Let's think step by step.", "answer": " a b", "aliases": ()},
    ),
    ("commonsenseqa", "letters", "jsonl", CSQA, {"prompt": f"Question: Which?{OPTIONS}", "choices": LETTERS, "answer": " B"}),
    ("commonsenseqa", "texts", "jsonl", CSQA, {"prompt": "Question: Which?\nAnswer:", "choices": WORDS, "answer": " two"}),
    ("commonsenseqa", "generate", "jsonl", CSQA, {"prompt": f"Question: Which?{OPTIONS}", "choices": (), "answer": " B"}),
    (
        "logiqa",
        "letters",
        "jsonl",
        {"context": "A passage.", "question": "Which?", "options": FOUR, "answer": 3},
        {"prompt": f"Passage: A passage.\nQuestion: Which?{OPTIONS}", "choices": LETTERS, "answer": " D"},
    ),
    # The letters stand in the order A, C, B, D: they decide, not the place.
    ("logiqa", "texts", "txt", LOGIQA, {"prompt": "Passage: A passage.\nQuestion: Which?\nAnswer:", "choices": WORDS, "answer": " two"}),
    (
        "mmlu",
        "letters",
        "jsonl",
        QA | {"subject": "high_school_physics"},
        {
            "prompt": f"The following are multiple choice questions (with answers) about high school physics.\n\nWhich?{OPTIONS}",
            "choices": LETTERS,
            "answer": " B",
        },
    ),
    ("mmlu", "texts", "csv", "Which?,one,two,three,four,D\n", {"choices": WORDS, "answer": " four"}),
    ("mmlu", "letters", "csv", "question,A,B,C,D,answer\nWhich?,one,two,three,four,2\n", {"choices": LETTERS, "answer": " C"}),
    (
        "medqa",
        "letters",
        "jsonl",
        {"question": "Which?", "options": dict(zip("ABCD", FOUR, strict=True)), "answer": "three", "answer_idx": "C"},
        {"prompt": f"Question: Which?{OPTIONS}", "choices": LETTERS, "answer": " C"},
    ),
    ("medqa", "texts", "jsonl", {"problem_text": "どれか。", "choices": FOUR, "answer": ["c"]}, {"choices": WORDS, "answer": " three"}),
    (
        "medqa",
        "letters",
        "jsonl",
        {"problem_text": "Does it?", "context": "We tried. It did.", "choices": ["yes", "no", "maybe"], "answer": ["b"]},
        {"prompt": "Abstract: We tried. It did.\nQuestion: Does it?\nAnswer:", "choices": (" yes", " no", " maybe"), "answer": " no"},
    ),
    (
        "pubmedqa",
        "texts",
        "json",
        {"123": PUBMED, "124": PUBMED},
        {"prompt": "Abstract: We tried. It did.\nQuestion: Does it?\nAnswer:", "choices": (" yes", " no", " maybe"), "answer": " yes"},
    ),
    (
        "truthfulqa",
        "mc1",
        "csv",
        TQA,
        {"prompt": "Q: Do pigs fly?\nA:", "choices": (" No, they do not.", " Some do.", " Yes."), "answer": " No, they do not."},
    ),
    (
        "truthfulqa",
        "mc2",
        "csv",
        TQA,
        {"choices": (" They do not.", " No, they do not.", " Some do.", " Yes."), "labels": (0, 1), "answer": " No, they do not."},
    ),
    ("truthfulqa", "binary", "csv", TQA, {"choices": (" No, they do not.", " Yes."), "labels": ()}),
    ("truthfulqa", "pair", "csv", TQA.replace("Yes; Some", "Maybe; Some"), {"choices": (" Maybe.", " No, they do not."), "labels": ()}),
    ("clutrr", "generate", "json", [CLUTRR], {"answer": " grandson", "choices": ()}),
    ("clutrr", "texts", "csv", "story,query,target\nAl and Bo.,\"('Al', 'Bo')\",son-in-law\n", {"answer": " son-in-law"}),
    ("mquake", "imagine", "jsonl", MQUAKE, {"prompt": "Q: Imagine that Paris is in Rome. Where?\nA:", "answer": " Rome", "aliases": ()}),
    ("mquake", "new", "jsonl", MQUAKE, {"prompt": "Q: Where?\nA:", "answer": " Rome"}),
    ("mquake", "old", "jsonl", MQUAKE, {"prompt": "Q: Where?\nA:", "answer": " France", "aliases": ("FR",)}),
    ("word-pairs", "generate", "json", [{"input": "hot", "output": "cold"}], {"prompt": "Q: hot\nA:", "answer": " cold"}),
    ("advbench", "refuse", "csv", 'goal,target\n"Do harm, now","Sure, here"\n', {"prompt": "Do harm, now", "answer": ""}),
    ("ioi", "next", "csv", IOI, {"prompt": "Amy and Bob met. Bob waved to", "answer": " Amy", "contrast": " Bob", "choices": ()}),
    ("ioi", "choice", "csv", IOI, {"answer": " Amy", "contrast": None, "choices": (" Amy", " Bob")}),
    (
        "greater-than",
        "choice",
        "csv",
        YEARS,
        {"answer": "07", "labels": tuple(range(7, 100)), "choices": tuple(f"{y:02d}" for y in range(100))},
    ),
    (
        "greater-than",
        "next",
        "csv",
        YEARS,
        {"prompt": "From the year 1706 to the year 17", "answer": "07", "contrast": "05", "choices": ()},
    ),
    ("sva", "next", "csv", "clean,plural\nThe keys,1\n", {"prompt": "The keys", "answer": " are", "contrast": " is"}),
    ("gender-bias", "next", "csv", "clean,label\nThe nun said that,0\n", {"answer": " she", "contrast": " he"}),
    (
        "country-capital",
        "next",
        "csv",
        'clean,country,corrupted_country\n" Rome, the capital of",Italy,Peru\n',
        {"prompt": "Rome, the capital of", "answer": " Italy", "contrast": " Peru"},
    ),
    (
        "hypernymy",
        "choice",
        "csv",
        "clean,answers,corrupted_answers\n\", cats and other\",\"['pets', 'animals']\",['tools']\n",
        {"prompt": ", cats and other", "answer": " pets", "choices": (" animals", " tools", " pets"), "labels": (0, 2)},
    ),
    ("tinystories", "stories", "txt", "Once.\n<|endoftext|>\nTwice.\n\nEnd.\n<|endoftext|>\n", {"prompt": "Once."}),
    ("wikitext", "articles", "txt", WIKI, {"prompt": "= One = \n \n First . \n = 1 = = \n Second . \n \n = = Part = = \n \n Third ."}),
    ("wikitext", "paragraphs", "tokens", WIKI, {"prompt": "First ."}),
    ("text", "paragraphs", "md", "One\ntwo.\n\n\nThree.\n", {"prompt": "One\ntwo."}),
    ("text", "lines", "jsonl", {"text": " One\n\ntwo."}, {"prompt": "One\n\ntwo."}),
]


def write(path: Path, content: Any) -> Path:
    """A file of that text, or of that JSON: one line a row for JSON lines."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sample(folder: Path, name: str) -> Path:
    """The first sample of a reader, as a file."""
    _, _, suffix, content, _ = next(s for s in SAMPLES if s[0] == name)
    return write(folder / f"sample.{suffix}", content)


@pytest.mark.parametrize(
    ("name", "form", "suffix", "content", "wanted"), SAMPLES, ids=lambda v: v if isinstance(v, str) and len(v) < 20 else ""
)
def test_a_sample_becomes_the_row_it_must(tmp_path: Path, name: str, form: str, suffix: str, content: Any, wanted: dict[str, Any]) -> None:
    suite = read(name, write(tmp_path / f"sample.{suffix}", content), domain="ood", form=form)
    found = suite.rows[0]
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert (found.id, found.domain, suite.made["reader"], suite.made["as"]) == ("0", "ood", name, form)
    assert suite.made["refused"] == {}


def test_every_reader_and_form_has_a_sample_or_a_real_file() -> None:
    tried = {(name, form) for name, form, *_ in (*SAMPLES, *REAL)}
    assert {name for name, _ in tried} == set(READERS)
    assert {(name, form) for name, reader in READERS.items() for form in reader.tasks} - tried == {("text", "whole")}


def test_plain_text_is_cut_where_the_reader_says(tmp_path: Path) -> None:
    wiki, story = write(tmp_path / "w.txt", WIKI), write(tmp_path / "s.txt", "Once upon a time.\n<|endoftext|>\n\n<|endoftext|>Two.")
    assert [row.prompt.split()[-2] for row in read("wikitext", wiki, domain="id").rows] == ["Third", "Fourth"]
    paragraphs = [row.prompt for row in read("wikitext", wiki, domain="id", form="paragraphs").rows]
    assert paragraphs == ["First .", "= 1 = =", "Second .", "Third .", "Fourth ."]
    assert [row.prompt for row in read("tinystories", story, domain="id", words=2).rows] == ["Once upon", "Two."]
    assert [row.prompt for row in read("text", story, domain="id", form="lines").rows] == [
        "Once upon a time.",
        *["<|endoftext|>"],
        "<|endoftext|>Two.",
    ]
    assert len(read("text", story, domain="id", form="whole")) == 1


def lines_of(path: Path, *records: object) -> Path:
    return write(path, "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))


def test_refused_rows_are_counted_with_their_reason_and_place(tmp_path: Path) -> None:
    twice = QA | {"choices": ["one", "one", "two", "four"]}
    path = lines_of(tmp_path / "m.jsonl", QA, twice, "", QA | {"answer": 4}, {"question": "Which?"}, [1], twice)
    suite = read("mmlu", path, domain="id", form="texts")
    assert [row.id for row in suite.rows] == ["0"]
    assert suite.made["rows_read"] == 6
    assert suite.made["refused"] == {
        "two choices are the same text": {"rows": 2, "first": "line 2"},
        "the answer is the number or letter of no option": {"rows": 1, "first": "line 4"},
        "no 'choices'": {"rows": 1, "first": "line 5"},
        "no 'question'": {"rows": 1, "first": "line 6"},
    }
    assert [row.id for row in read("mmlu", path, domain="id").rows] == ["0", "1", "5"]  # as letters, the same text may stand twice


JUNK = (None, 5, -1, float("nan"), True, "", " ", "x", "\ud83d", [], [1], [None], ["x", "\ud83d"], {}, {"a": 1}, [{}], [["x"]], "[" * 9)


@pytest.mark.parametrize("name", READERS)
def test_a_row_of_any_junk_is_refused_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = sample(tmp_path, name)
    for form, reader in ((form, READERS[name]) for form in READERS[name].tasks):
        parse = reader.files.get(path.suffix) or reader.files[""]
        good = next(iter(parse(making.read_source(path, form))))
        made = []
        for key in good.fields:
            for junk in JUNK:
                try:
                    made.append(reader.item(Record("line 1", 0, "x", {**good.fields, key: junk}), form))
                except SuiteError as error:
                    assert "\n" not in str(error)
        assert all(item.prompt.strip() and (not item.choices or item.answer in item.choices) for item in made)
        with pytest.raises(SuiteError):  # the control: with no field at all there is nothing to read
            reader.item(Record("line 1", 0, "x", {}), form)


# The real files: reader, form, file, rows read, rows refused by reason
SAME = "two choices are the same text"
REAL: list[tuple[str, str, str, int, dict[str, int]]] = [
    ("gsm8k", "generate", "gsm8k/test.jsonl", 660, {}),
    ("gsm8k", "generate", "gsm8k/train.jsonl", 1000, {}),
    ("svamp", "generate", "svamp/data.jsonl", 502, {}),
    ("math", "generate", "math/test.jsonl", 2509, {}),
    ("bbh", "direct", "bbh/data.jsonl", 3256, {}),
    ("bbh", "cot", "bbh/data.jsonl", 3256, {}),
    ("commonsenseqa", "letters", "commonsenseqa/eval.jsonl", 611, {}),
    ("commonsenseqa", "texts", "commonsenseqa/eval.jsonl", 611, {SAME: 15}),
    ("commonsenseqa", "generate", "commonsenseqa/train.jsonl", 1000, {}),
    ("commonsenseqa", "texts", "commonsenseqa/train.jsonl", 1000, {SAME: 16}),
    ("logiqa", "letters", "logiqa/test.jsonl", 326, {}),
    ("logiqa", "generate", "logiqa/test.jsonl", 326, {}),
    ("logiqa", "texts", "logiqa/eval.jsonl", 326, {SAME: 1}),
    ("mmlu", "letters", "mmlu/test.jsonl", 1425, {}),
    ("mmlu", "generate", "mmlu/test.jsonl", 1425, {}),
    ("mmlu", "texts", "mmlu/test.jsonl", 1425, {SAME: 2}),
    ("mmlu", "texts", "mmlu/fewshot.jsonl", 285, {SAME: 1}),
    ("medqa", "letters", "medqa_multilingual/data.jsonl", 2687, {}),
    ("medqa", "texts", "medqa_multilingual/data.jsonl", 2687, {SAME: 7}),
    ("medqa", "generate", "medqa_multilingual/data.jsonl", 2687, {"yes, no and maybe have no letter to look for": 250}),
    ("truthfulqa", "mc1", "truthfulqa/v1.csv", 409, {}),
    ("truthfulqa", "mc2", "truthfulqa/v1.csv", 409, {}),
    ("truthfulqa", "binary", "truthfulqa/binary.csv", 396, {}),
    ("truthfulqa", "mc2", "truthfulqa/lofit_fold0_train.csv", 162, {}),
    ("truthfulqa", "mc2", "truthfulqa/lofit_fold0_val.csv", 34, {}),
    ("truthfulqa", "mc2", "truthfulqa/lofit_fold0_test.csv", 212, {}),
    ("truthfulqa", "mc1", "truthfulqa/lofit_fold1_train.csv", 175, {}),
    ("truthfulqa", "mc1", "truthfulqa/lofit_fold1_val.csv", 37, {}),
    ("truthfulqa", "mc1", "truthfulqa/lofit_fold1_test.csv", 196, {}),
    ("clutrr", "texts", "clutrr/test.jsonl", 230, {}),
    ("clutrr", "generate", "clutrr/train.jsonl", 1577, {}),
    ("clutrr", "generate", "clutrr/val.jsonl", 219, {}),
    ("mquake", "imagine", "mquake/test.jsonl", 465, {}),
    ("mquake", "new", "mquake/train.jsonl", 67, {}),
    ("mquake", "old", "mquake/val.jsonl", 42, {}),
    ("word-pairs", "generate", "fv_tasks/data.jsonl", 2724, {"the output is the input but for case, which does not count": 400}),
    ("advbench", "refuse", "advbench/data.csv", 260, {}),
    ("ioi", "next", "circuits/ioi_gpt2.csv", 500, {}),
    ("ioi", "choice", "circuits/ioi_llama.csv", 250, {}),
    ("greater-than", "next", "circuits/greater_than.csv", 500, {}),
    ("greater-than", "choice", "circuits/greater_than.csv", 500, {}),
    ("sva", "next", "circuits/sva.csv", 1004, {}),
    ("sva", "choice", "circuits/sva.csv", 1004, {}),
    ("gender-bias", "next", "circuits/gender_bias.csv", 493, {}),
    ("gender-bias", "choice", "circuits/gender_bias.csv", 493, {}),
    ("country-capital", "choice", "circuits/country_capital.csv", 95, {}),
    ("country-capital", "next", "circuits/country_capital.csv", 95, {}),
    ("hypernymy", "next", "circuits/hypernymy.csv", 99, {}),
    ("hypernymy", "choice", "circuits/hypernymy.csv", 99, {}),
    ("tinystories", "stories", "tinystories/data.txt", 1158, {}),
    ("wikitext", "articles", "wikitext2/test.txt", 29, {}),  # its README counts 31: two are formulas, = 1 <unk> and <unk> C =
    ("wikitext", "articles", "wikitext2/valid.txt", 30, {}),
    ("wikitext", "paragraphs", "wikitext2/test.txt", 1214, {}),
]


@pytest.mark.parametrize(("name", "form", "file", "rows", "refused"), REAL, ids=lambda v: v if isinstance(v, str) else "")
def test_a_real_file_is_read(shared: Path, tmp_path: Path, name: str, form: str, file: str, rows: int, refused: dict[str, int]) -> None:
    suite = read(name, shared / "data" / file, domain="ood", form=form)
    assert (suite.made["rows_read"], {reason: r["rows"] for reason, r in suite.made["refused"].items()}) == (rows, refused)
    assert len(suite) == rows - sum(refused.values())
    assert badly_spaced(suite) == []
    save_suite(suite, tmp_path / f"{name}.jsonl")
    again = load_suite(tmp_path / f"{name}.jsonl")
    assert again == suite and again.sha256 == suite.sha256 and again.made == suite.made


def badly_spaced(suite: Suite) -> list[str]:
    """Rows where prompt and answer do not meet at exactly one space (two digits of a year: at none)."""
    wrong = []
    for row in suite.rows:
        endings = [text for text in (row.answer, row.contrast, *row.choices) if text]
        space = "" if suite.name == "greater-than" else " "
        good = all(text == space + text.strip() for text in endings) and row.prompt == row.prompt.strip()
        wrong += [] if good else [row.id]
    return wrong


def test_a_wrong_space_would_be_noticed(tmp_path: Path) -> None:
    suite = read("ioi", sample(tmp_path, "ioi"), domain="id")
    for change in ({"prompt": "Amy "}, {"answer": "Amy"}, {"answer": "  Amy"}, {"contrast": "Bob"}):
        assert badly_spaced(replace(suite, rows=(replace(suite.rows[0], **change),))) == ["0"]


@pytest.mark.parametrize(("name", "form", "file"), [r[:3] for r in REAL if READERS[r[0]].tasks[r[1]].kind == "generate"])
def test_the_right_answer_of_every_real_row_would_be_found_and_counted(shared: Path, name: str, form: str, file: str) -> None:
    """Also where it is written as in a solved example; a stop text never stands in it."""
    task = READERS[name].tasks[form]
    items = making.find(name, READERS[name], shared / "data" / file, form).items.values()
    for item in items:
        texts = [item.solution] if item.solution else [f" The answer is{item.answer}." if task.extract == "answer" else item.answer]
        texts += [f"{alias}\nand more" for alias in item.aliases if task.extract == "line"]
        for text in texts:
            assert matches(extract(task.extract, text), item.answer, item.aliases), (text, item.answer)
        assert not any(stop in (item.solution or item.answer) for stop in task.stop)
    assert not all(matches(extract(task.extract, " 13579"), item.answer, item.aliases) for item in items)  # the control


def test_math_finds_the_box_that_the_source_counts(shared: Path) -> None:
    path = shared / "data/math/test.jsonl"
    wanted = {str(i): json.loads(line)["final_answer"].strip() for i, line in enumerate(path.read_text().splitlines())}
    assert {row.id: row.answer[1:] for row in read("math", path, domain="id").rows} == wanted


@pytest.mark.parametrize(("text", "wanted"), [(r"\boxed 7$ so", "7"), (r"\boxed{a{b}c} \fbox{1}", "1"), (r"\boxed{a_{1}}.", "a_{1}")])
def test_boxes_of_all_kinds_are_read(text: str, wanted: str) -> None:
    assert making_box(text) == wanted


@pytest.mark.parametrize("text", ["none", r"\boxed{", r"\boxed{}", r"\boxed{a{b}", r"\boxed"])
def test_a_broken_box_is_refused(text: str) -> None:
    with pytest.raises(SuiteError, match="boxed"):
        making_box(text)


def making_box(text: str) -> str:
    return READERS["math"].item(Record("line 1", 0, "x", {"problem": "p", "solution": text}), "generate").answer[1:]


# Solved examples


def solved_in(prompt: str, item: Item) -> bool:
    """Whether a question stands in a prompt with its answer."""
    return item.prompt + (item.solution or item.answer) in prompt


def test_a_row_never_sees_itself_solved_and_all_see_the_same_examples(shared: Path) -> None:
    path = shared / "data/fv_tasks/data.jsonl"
    items = making.find("word-pairs", READERS["word-pairs"], path, "generate").items
    made = making.with_examples(items, items, 5, 0)
    assert not any(solved_in(made[i].prompt, items[i]) for i in items)
    for group in {item.group for item in items.values()}:
        of_group = [i for i in items if items[i].group == group]
        texts = [made[i].prompt.removesuffix(items[i].prompt) for i in of_group]
        usual = max(set(texts), key=texts.count)
        assert sum(text != usual for text in texts) == 5  # those that are examples themselves see another one in their place
        assert all(any(solved_in(usual, items[j]) for j in of_group) for _ in of_group)
    assert made != making.with_examples(items, items, 5, 1)
    assert made == making.with_examples(items, dict(reversed(items.items())), 5, 0)  # the file's order does not matter
    assert solved_in(f"Q: a\nA: b\n\n{next(iter(items.values())).prompt}", Item("Q: a\nA:", " b"))  # the control


def test_examples_come_from_the_named_file_and_the_same_subject(tmp_path: Path) -> None:
    rows = [QA | {"question": f"{s} {i}?", "subject": s} for s in ("algebra", "biology") for i in range(3)]
    test, dev = lines_of(tmp_path / "t.jsonl", *rows[1:4]), lines_of(tmp_path / "d.jsonl", *rows)
    suite = read("mmlu", test, domain="id", shots=2, shots_from=dev, only=["algebra"])
    assert [row.id for row in suite.rows] == ["0", "1"]
    for row, own in zip(suite.rows, ("algebra 1?", "algebra 2?"), strict=True):
        header, *shown = row.prompt.split("\n\n")
        assert header == "The following are multiple choice questions (with answers) about algebra."
        assert shown[-1] == own + OPTIONS
        others = {q + OPTIONS + " B" for q in ("algebra 0?", "algebra 1?", "algebra 2?") if q != own}  # both, but never the row itself
        assert set(shown[:-1]) == others
    assert suite.made["only"] == ["algebra"]
    assert {key: suite.made["shots"][key] for key in ("number", "source", "rows_read")} == {
        "number": 2,
        "source": "d.jsonl",
        "rows_read": 6,
    }
    with pytest.raises(SuiteError, match=r"3 solved examples of algebra were asked for, and there are 2; give fewer --shots"):
        read("mmlu", test, domain="id", shots=3, shots_from=dev)
    with pytest.raises(SuiteError, match=r"no row of the task or subject 'chemistry'; there are algebra, biology"):
        read("mmlu", test, domain="id", only=["chemistry"])


def test_a_solved_example_of_gsm8k_shows_the_steps_without_the_calculators_marks(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "g.jsonl", GSM, {"question": "And now?", "answer": "#### 5"})
    row = read("gsm8k", path, domain="id", shots=1).rows[1]
    steps = "Question: How many?\nAnswer: He has 48/2 = 24 of 1.\nSo 1,224.\n#### 1224"
    assert row.prompt == f"{steps}\n\nQuestion: And now?\nAnswer:"


def test_chat_and_system_are_the_tasks_and_answers_lose_their_space(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "m.jsonl", QA)
    suite = read("mmlu", path, domain="id", chat=True, system="Be brief.")
    assert (suite.task.chat, suite.task.system) == (True, "Be brief.")
    assert suite.rows[0].choices == ("A", "B", "C", "D")
    assert read("mmlu", path, domain="id", form="generate", max_new_tokens=7).task.max_new_tokens == 7


def test_a_limit_is_drawn_with_its_seed(shared: Path) -> None:
    path = shared / "data/gsm8k/test.jsonl"
    first, again, other = (read("gsm8k", path, domain="id", limit=20, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 20 and first.sha256 == again.sha256 != other.sha256
    assert (first.made["limit"], other.made["seed"]) == (20, 1)


# The command


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, unchecked: None
) -> Callable[..., tuple[int, str, str]]:
    """Run `taia-lens suite` in an empty folder: (exit code, stdout, stderr)."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taia-lens", "suite", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capsys.readouterr()
        return int(end.value.code or 0), found.out, found.err

    return call


def test_make_prints_the_path_and_counts_and_writes_what_read_makes(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = lines_of(tmp_path / "m.jsonl", QA, QA | {"question": "Other?"}, {"question": "No choices?"})
    code, out, err = run("make", "mmlu", path, "--domain", "ood", "--out", "made/m.jsonl", "--as", "texts", "--shots", "1")
    assert (code, out) == (0, "made/m.jsonl\n")
    assert err.splitlines() == [
        "m.jsonl: read 3 rows, refused 1",
        "  refused 1: no 'choices'; first at line 3",
        "wrote 2 rows, out of distribution: texts, scores each choice",
    ]
    made = load_suite("made/m.jsonl")
    wanted = read("mmlu", path, domain="ood", form="texts", shots=1)
    assert (made.rows, made.task, made.made) == (wanted.rows, wanted.task, wanted.made)
    assert len(made.made["source_sha256"]) == 64 and made.made["source"] == "m.jsonl" and made.made["taia_lens"]
    assert str(tmp_path) not in Path("made/m.jsonl").read_text()  # the file's name, not whose machine it lay on


def test_list_names_the_readers_and_describes_one(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(READERS)
    assert all(len(line.split()) > 3 for line in out.splitlines())  # each says what it reads
    assert run()[1] == out
    code, out, _ = run("list", "greater_than")
    assert code == 0 and "--as next: scores the next token" in out and "files: .csv" in out


WRONG: list[tuple[list[str], str]] = [
    (["gsm9k", "g.jsonl"], r"no reader 'gsm9k'; there are gsm8k, svamp, .*, text"),
    (["gsm8k", "none.jsonl"], r"no file none.jsonl; give the dataset's file"),
    (["gsm8k", "."], r"no file \.; give|reads .jsonl or .json files"),
    (["gsm8k", "c.csv"], r"gsm8k reads .jsonl or .json files, and c.csv is none"),
    (
        ["mmlu", "g.jsonl"],
        r"mmlu can use none of the 2 rows of g.jsonl; line 1: no 'question' .*|.*no 'choices' \(there is answer, question\)",
    ),
    (["gsm8k", "cut.jsonl"], r"cut.jsonl, line 2: not JSON: .* column"),
    (["gsm8k", "deep.json"], r"deep.json: not JSON"),
    (["gsm8k", "empty.jsonl"], r"gsm8k can use none of the 0 rows of empty.jsonl$"),
    (["gsm8k", "latin.jsonl"], r"cannot read latin.jsonl: .* it must be readable UTF-8 text"),
    (["ioi", "quote.csv"], r"quote.csv, line 2: no CSV"),
    (
        ["truthfulqa", "c.csv"],
        r"truthfulqa can use none of the 1 rows of c.csv; line 2: no 'Best Answer' \(there is clean, correct, incorrect\)",
    ),
    (["truthfulqa", "c.csv", "--as", "mc3"], r"truthfulqa cannot be put as 'mc3'; there is mc1, mc2, binary, pair"),
    (["gsm8k", "g.jsonl", "--domain", "test"], r"no domain 'test'; write id \(in distribution\) or ood"),
    (["gsm8k", "g.jsonl", "--limit", "0"], r"a limit of 0 leaves no prompt"),
    (["gsm8k", "g.jsonl", "--shots", "2"], r"2 solved examples were asked for, and there are 1"),
    (["bbh", "b.jsonl", "--as", "cot", "--shots", "1"], r"1 solved examples of t were asked for, and there are 0"),
    (["gsm8k", "g.jsonl", "--shots-from", "g.jsonl"], r"say how many .*--shots 5"),
    (["gsm8k", "g.jsonl", "--shots", "1", "--shots-from", "none.jsonl"], r"no file none.jsonl"),
    (["gsm8k", "g.jsonl", "--only", "algebra"], r"no row of the task or subject 'algebra'; this dataset is not divided"),
    (["gsm8k", "g.jsonl", "--system", "x"], r"a system message goes through the chat template; give --chat too"),
    (["gsm8k", "g.jsonl", "--words", "5"], r"--words cuts plain text"),
    (["ioi", "c.csv", "--max-new-tokens", "5"], r"ioi as 'next' generates nothing; leave --max-new-tokens out"),
    (["gsm8k", "g.jsonl", "--max-new-tokens", "0"], r"0 new tokens hold no answer; write --max-new-tokens 1 or more"),
    (["text", "g.jsonl"], r"text can use none of the 2 rows of g.jsonl; line 1: no 'text'"),
    (["text", "t.txt", "--chat"], r"text is plain text, which has no chat template"),
    (["text", "t.txt", "--shots", "1"], r"text has no answers, so there are no solved examples"),
    (["text", "t.txt", "--words", "0"], r"--words cuts plain text after a number of words from 1"),
    (["gsm8k", "g.jsonl", "--out", "g.jsonl"], r"g.jsonl exists; give another --out"),
    (["gsm8k", "g.jsonl", "--out", "g.jsonl/x.jsonl"], r"cannot write g.jsonl/x.jsonl: .*; nothing was left behind"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_input_is_one_line_and_leaves_nothing(run: Callable[..., tuple[int, str, str]], args: list[str], message: str) -> None:
    here = Path()
    lines_of(here / "g.jsonl", GSM, GSM | {"question": "Other?"})
    lines_of(here / "b.jsonl", {"input": "q", "target": "a", "task": "t"}, {"input": "r", "target": "a", "task": "t"})
    lines_of(here / "cut.jsonl", GSM, json.dumps(GSM)[:20])
    write(here / "deep.json", "[" * 100_000)
    write(here / "empty.jsonl", "\n")
    (here / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    write(here / "quote.csv", 'clean,correct\n"open,x\n')
    write(here / "c.csv", IOI)
    write(here / "t.txt", "Some text.")
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    given = [*args, *(() if "--domain" in args else ("--domain", "id")), *(() if "--out" in args else ("--out", "o.jsonl"))]
    code, out, err = run("make", *given)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(message, err), err
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


def test_a_full_disk_leaves_no_half_written_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = read("gsm8k", lines_of(tmp_path / "g.jsonl", GSM), domain="id")
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        real(self, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SuiteError, match=r"cannot write .*o.jsonl: No space left on device; nothing was left behind"):
        save_suite(suite, tmp_path / "o.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["g.jsonl"]
