"""The paper's tasks: which files are a fold's splits, and the suites that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.readers import read
from taia_lens.suite import Suite

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Exam:
    """A suite to test on, the metric of it that counts, and what the paper calls that."""

    suite: Suite
    metric: str
    name: str


@dataclass(frozen=True)
class Fold:
    """One cut of a task's data.

    Attributes:
        name: `fold0`, `fold1`; `all` where there is one.
        train: To learn from; `training(seed)` draws from it where the paper does.
        validation: Judges each epoch.
        tests: To report.
        draw: How many training rows are drawn; None for all.
    """

    name: str
    train: Suite
    validation: Suite
    tests: tuple[Exam, ...]
    draw: int | None = None

    def training(self, seed: int) -> Suite:
        """The training rows of a seed."""
        return self.train if self.draw is None else self.train.limit(self.draw, seed=seed)


@dataclass(frozen=True)
class Task:
    """How a task's files become suites.

    Attributes:
        reader: Of `readers.READERS`.
        files: What a split's file may be called, in this order; `{fold}` and `{split}` are filled in.
        folders: Where it may lie under the folder that is named.
        n_folds: How many folds there are; 0 for one cut that has no number.
        train: The reader's form to learn from.
        tests: Form, metric and the paper's name of each test.
        draw: How many training rows the paper draws.
    """

    reader: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    n_folds: int
    train: str
    tests: tuple[tuple[str, str, str], ...]
    draw: int | None = None


TASKS = {
    "truthfulqa": Task(
        "truthfulqa",
        ("lofit_fold{fold}_{split}.csv", "fold_{fold}_{split}_seed_42.csv"),
        ("", "truthfulqa"),
        2,
        "pair",
        (("mc1", "choice_accuracy", "MC1"), ("mc2", "mc2", "MC2")),
    ),
    "mquake": Task("mquake", ("{split}.jsonl",), ("", "mquake", "MQuAKE"), 0, "imagine", (("imagine", "exact_match", "exact match"),)),
    "clutrr": Task(
        "clutrr", ("{split}.jsonl", "{split}.json"), ("", "clutrr"), 0, "generate", (("generate", "exact_match", "exact match"),), draw=300
    ),
}


def folds(
    task: str, data: str | Path, *, which: Sequence[int] | None = None, pairs: str = "one", limit: int | None = None
) -> tuple[Fold, ...]:
    """Read a task's splits.

    Args:
        task: A name of TASKS.
        data: The folder that holds the task's files (or a folder of that folder's name).
        which: Numbers of the folds; all where None.
        pairs: TruthfulQA: `one` pair of answers a question, or `all`.
        limit: At most this many rows of each split, its first draw: for a trial.

    Raises:
        TaiaLensError: No such task or fold.
        SuiteError: A file is missing or cannot be used.
    """
    if task not in TASKS:
        raise TaiaLensError(f"no task {task!r} of the paper; there are {', '.join(TASKS)}")
    known = TASKS[task]
    if which is not None and not known.n_folds:
        raise TaiaLensError(f"{task} has one split and no folds; leave folds out")
    numbers: list[int | None] = [None] if not known.n_folds else list(range(known.n_folds)) if which is None else list(dict.fromkeys(which))
    if not numbers or any(n is not None and not 0 <= n < known.n_folds for n in numbers):
        raise TaiaLensError(f"no fold {', '.join(map(str, numbers)) or 'named'}; {task} has {', '.join(map(str, range(known.n_folds)))}")
    return tuple(_fold(task, known, Path(data).expanduser(), number, pairs, limit) for number in numbers)


def _fold(task: str, known: Task, data: Path, number: int | None, pairs: str, limit: int | None) -> Fold:
    name = "all" if number is None else f"fold{number}"
    paths = {split: _find(task, known, data, number, split) for split in SPLITS}
    form = "mc1" if pairs == "all" and known.train == "pair" else known.train

    def suite(split: str, form: str) -> Suite:
        found = read(known.reader, paths[split], domain="id", form=form, limit=limit)
        return replace(found, name=f"{task}-{name}-{split}-{form}")

    tests = tuple(Exam(suite("test", form), metric, title) for form, metric, title in known.tests)
    return Fold(name, suite("train", form), suite("val", form), tests, known.draw)


def _find(task: str, known: Task, data: Path, number: int | None, split: str) -> Path:
    """The split's file, under one of the names that it may have."""
    names = [text.format(fold=number, split=split) for text in known.files]
    places = [data / folder / name for folder in known.folders for name in names]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SuiteError(
            f"no {split} split of {task} in {data}: it has no {' or '.join(names)}; give the folder of LoFiT's splits (--data)"
        )
    return found
