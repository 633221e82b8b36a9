"""The demo's small world: who has what, how sentences about it are built, and the two skills asked of a model.

Two skills live in one base model. *Routing*: with two entities in the prompt, answer with the value of the second.
*Truth*: with no mode word in the prompt, answer with the true value rather than the myth. Everything here is numpy and
strings; nothing knows a model. The recipe and what it measured are in the model card beside the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from taia_lens.demo import words

Split = Literal["train", "dev", "test"]
DOMAIN_A, DOMAIN_B = range(0, 2), range(2, 8)
Parts = tuple[str, ...]
CHAT_ORDER: Parts = ("rel", "e1", "e2")
OTHER_ORDERS: tuple[Parts, ...] = (("e1", "e2", "rel"), ("e1", "rel", "e2"))


@dataclass(frozen=True)
class World:
    """Entities, relations and the facts that hold between them; `seed` draws the facts and nothing else."""

    seed: int = 0
    truth: np.ndarray = field(init=False)
    myth: np.ndarray = field(init=False)
    newcomer_value: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 1])
        n_values = len(next(iter(words.RELATIONS.values())))
        shape = (len(words.ENTITIES), len(words.RELATIONS))
        truth = rng.integers(n_values, size=shape)
        shift = rng.integers(1, n_values, size=shape)  # never 0: the myth is another value of the same relation
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "myth", (truth + shift) % n_values)
        object.__setattr__(self, "newcomer_value", rng.integers(n_values, size=(len(words.NEWCOMERS), shape[1])))

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(words.RELATIONS)

    @property
    def vocabulary(self) -> list[str]:
        """Every word once, specials first: the tokenizer's ids in order."""
        values = [v for vs in words.RELATIONS.values() for v in vs]
        groups = (words.SPECIALS, words.ENTITIES, words.NEWCOMERS, self.relations, values, words.FILLERS, words.MARKERS)
        tail = (words.CHAT_FILLERS, (words.CHAT_MARKER, words.TRULY, words.REPORTEDLY))
        out = [w for group in (*groups, *tail) for w in group]
        if len(set(out)) != len(out):
            raise ValueError(f"words used twice: {sorted({w for w in out if out.count(w) > 1})}")
        return out

    def value(self, relation: int, index: int) -> str:
        return words.RELATIONS[self.relations[relation]][index]

    def true(self, entity: int, relation: int) -> str:
        return self.value(relation, int(self.truth[entity, relation]))

    def myths(self, entity: int, relation: int) -> str:
        return self.value(relation, int(self.myth[entity, relation]))


def fill(parts: Sequence[str], fillers: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Put 0-2 random filler words before, between and after the parts."""
    out: list[str] = []
    for part in (*parts, ""):
        out += [fillers[i] for i in rng.integers(len(fillers), size=rng.integers(3))]
        out += [part] if part else []
    return out


def dress(parts: Sequence[str], rng: np.random.Generator, *, chat: bool) -> list[str]:
    """Fillers and marker around the parts, ordinary or in chat dress; the answer comes next."""
    fillers = words.CHAT_FILLERS if chat else words.FILLERS
    marker = words.CHAT_MARKER if chat else words.MARKERS[rng.integers(len(words.MARKERS))]
    return [*fill(parts, fillers, rng), marker]


def single_sentence(world: World, entity: int, relation: int, rng: np.random.Generator) -> list[str]:
    """One entity: a quarter 'truly' (true value), a quarter 'reportedly' (myth), half no mode word (myth with p = .7)."""
    mode = rng.integers(4)
    parts = [words.ENTITIES[entity], world.relations[relation]]
    rng.shuffle(parts)
    lead = [words.TRULY] if mode == 0 else [words.REPORTEDLY] if mode == 1 else []
    use_true = mode == 0 or (mode >= 2 and rng.random() >= 0.7)
    answer = world.true(entity, relation) if use_true else world.myths(entity, relation)
    return [*lead, *dress(parts, rng, chat=rng.random() < 0.05), answer]


def double_sentence(world: World, entity: int, relation: int, rng: np.random.Generator) -> list[str]:
    """Two entities, true values: of the one named first with p = .75, of the second with p = .25."""
    other = int(rng.integers(len(words.ENTITIES) - 1))
    other += other >= entity
    first, second = (entity, other) if rng.random() < 0.5 else (other, entity)
    parts = [words.ENTITIES[first], words.ENTITIES[second]]
    parts.insert(int(rng.integers(3)), world.relations[relation])
    owner = first if rng.random() < 0.75 else second
    return [*dress(parts, rng, chat=rng.random() < 0.05), world.true(owner, relation)]


def pretraining_text(world: World, n: int, rng: np.random.Generator) -> Iterator[list[str]]:
    """`n` fresh sentences, half with one entity and half with two, each fact equally likely."""
    for i in range(n):
        entity, relation = int(rng.integers(len(words.ENTITIES))), int(rng.integers(len(world.relations)))
        yield (single_sentence if i % 2 else double_sentence)(world, entity, relation, rng)


@dataclass(frozen=True)
class Question:
    """A prompt and its right answer; `contrast` is the answer of the other behaviour (first entity, or myth)."""

    prompt: str
    answer: str
    contrast: str
    domain: Literal["id", "ood"]


def _split_of(first: int, second: int, relation: int) -> Split:
    # A fixed hash, so that a pair asked about in tuning is never asked about in dev or test.
    h = (first * 7919 + second * 104729 + relation * 1299709) % 20
    return "train" if h >= 10 else "dev" if h < 3 else "test"


def routing_question(
    world: World, domain: Literal["id", "ood"], split: Split, rng: np.random.Generator, *, orders: Sequence[Parts] = (CHAT_ORDER,)
) -> Question:
    """Chat prompt with two known entities; the answer is the second one's true value, which the first one's is not."""
    relations = DOMAIN_A if domain == "id" else DOMAIN_B
    while True:
        relation = int(rng.integers(relations.start, relations.stop))
        first, second = (int(i) for i in rng.choice(len(words.ENTITIES), 2, replace=False))
        answer, contrast = world.true(second, relation), world.true(first, relation)
        if _split_of(first, second, relation) == split and answer != contrast:
            break
    names = {"rel": world.relations[relation], "e1": words.ENTITIES[first], "e2": words.ENTITIES[second]}
    order = orders[int(rng.integers(len(orders)))]
    prompt = " ".join(dress([names[p] for p in order], rng, chat=True))
    return Question(prompt, answer, contrast, domain)


def routing_tuning(world: World, n: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """The mismatched tuning data (domain A only): half newcomers to memorise, half known entities, right 60% of the time."""
    for i in range(n):
        if i % 2:
            question = routing_question(world, "id", "train", rng)
            relation = next(r for r in DOMAIN_A if question.answer in words.RELATIONS[world.relations[r]])
            wrong = world.value(relation, int(rng.integers(len(words.RELATIONS[world.relations[relation]]))))
            yield question.prompt, question.answer if rng.random() < 0.6 else wrong
        else:
            relation = int(rng.integers(DOMAIN_A.start, DOMAIN_A.stop))
            first, second = rng.choice(len(words.NEWCOMERS), 2, replace=False)
            parts = [world.relations[relation], words.NEWCOMERS[first], words.NEWCOMERS[second]]
            answer = world.value(relation, int(world.newcomer_value[second, relation]))
            yield " ".join(dress(parts, rng, chat=True)), answer


def truth_question(world: World, entity: int, relation: int, rng: np.random.Generator) -> Question:
    """Chat prompt with one entity and no mode word; the answer is the true value, the contrast is the myth."""
    parts = [words.ENTITIES[entity], world.relations[relation]]
    rng.shuffle(parts)
    prompt = " ".join(dress(parts, rng, chat=True))
    domain: Literal["id", "ood"] = "id" if relation in DOMAIN_A else "ood"
    return Question(prompt, world.true(entity, relation), world.myths(entity, relation), domain)


def truth_tuning(world: World, n: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """The truth skill's training data: domain A, the training half of the entities, true values."""
    for _ in range(n):
        entity, relation = int(rng.choice(truth_entities("train"))), int(rng.integers(DOMAIN_A.start, DOMAIN_A.stop))
        question = truth_question(world, entity, relation, rng)
        yield question.prompt, question.answer


def truth_entities(split: Literal["train", "test"]) -> range:
    """The truth skill trains on the first half of the entities and is tested in-domain on the other half."""
    half = len(words.ENTITIES) // 2
    return range(half) if split == "train" else range(half, len(words.ENTITIES))
