"""From words to a plan: which residual streams there are, who shares them, and in what order they are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from taia_lens.budget import Budget
from taia_lens.engine.plan import EndNeeds, Extent, Leaf, Node, Parent, Plan, Row, Step, Tail, kept_bytes, peak_of, work_of
from taia_lens.engine.words import Level, Taken, Word
from taia_lens.recipe import Side


@dataclass(eq=False)
class _Planner:
    words: Sequence[Word]
    starts: Sequence[int]
    ends: Mapping[Side, Word]
    extent: Extent
    ran: frozenset[Side]
    most: int
    tokens: int
    steps: list[Step | Tail] = field(default_factory=list)
    leaving: dict[int, dict[Side, list[int]]] = field(default_factory=dict)
    start_of: dict[Node, tuple[int, Side | None]] = field(default_factory=dict)
    made: int = 0

    def node(self, start: int = 0, prefix: Side | None = None) -> Node:
        self.made += 1
        self.start_of[self.made] = (start, prefix)
        return self.made

    def go(self, layer: int, live: Mapping[Parent, list[int]], picking: bool, held: int = 0) -> None:
        """Everything from a layer on, of the words that are alive there.

        Where the nodes after a layer are more than there is room for, some of them are followed to the end before the others are
        computed, whose parents wait.

        Args:
            layer: The first.
            live: By node: the words that are there.
            picking: Whether words that leave an end on the way are picked up.
            held: Nodes that wait elsewhere.
        """
        for at in range(layer, self.extent.n_layers):
            parents: dict[Parent, list[int]] = {**live}
            for side, numbers in self.leaving.get(at, {}).items() if picking else ():
                parents[side] = numbers
            alive = held + sum(isinstance(parent, int) for parent in parents)
            parts = list(_parts(self.children(at, parents), max(1, self.most - alive)))
            for part in parts[:-1]:
                self.run(at, part)
                self.go(at + 1, {child.row.node: child.words for child in part}, False, alive)
            if parts:
                self.run(at, parts[-1])
            live = {child.row.node: child.words for child in parts[-1]} if parts else {}
        self.read(live)

    def children(self, layer: int, live: Mapping[Parent, list[int]]) -> list[_Child]:
        """The nodes after a layer, those that nothing is written to first: others may take what they computed."""
        found: dict[tuple, _Child] = {}
        for parent, numbers in live.items():
            for number in numbers:
                word = self.words[number]
                level = word.levels[layer]
                start, prefix = self.begin(parent, number)
                key = (parent, word.home, level, start)
                if key not in found:
                    found[key] = _Child(Row(self.node(start, prefix), parent, level.writes), word.home, level, start, prefix, [])
                found[key].words.append(number)
        return sorted(found.values(), key=lambda child: bool(child.level.writes))

    def begin(self, parent: Parent, number: int) -> tuple[int, Side | None]:
        """Where a child's positions begin: a word that only writes, into an end, leaves the positions before as they are."""
        if isinstance(parent, int):
            return self.start_of[parent]
        word = self.words[number]
        same = self.starts[number] > 0 and parent in self.ran and word.unwritten == self.ends[parent]
        return (self.starts[number], parent) if same else (0, None)

    def run(self, layer: int, children: Sequence[_Child]) -> None:
        """The steps of one layer: first what is run whole, then what takes another's attention, then what takes its FFN too."""
        rows = [child.taking(*source) for child, source in zip(children, self.sources(layer, children), strict=True)]
        attn_of, mlp_of = ({getattr(row, name) for _, row in rows} for name in ("attn_of", "mlp_of"))
        groups: dict[tuple, list[tuple[_Child, Row]]] = {}
        for child, row in rows:
            last = layer == self.extent.n_layers - 1
            only_reads = last and row.node not in mlp_of and not child.level.writing("mlp", "resid")
            key = (_phase(row), only_reads, child.home, child.level.taken, child.start, child.prefix)
            groups.setdefault(key, []).append((child, row))
        for (_, only_reads, *_), together in sorted(groups.items(), key=lambda group: group[0][0]):
            child = together[0][0]
            size = max(1, self.tokens // (self.extent.rows * (self.extent.width - child.start)))
            for i in range(0, len(together), size):
                chunk = tuple(row for _, row in together[i : i + size])
                attn, mlp = (frozenset(row.node for row in chunk if row.node in of) for of in (attn_of, mlp_of))
                self.steps.append(Step(layer, child.home, child.level.taken, child.start, child.prefix, chunk, attn, mlp, only_reads))

    def sources(self, layer: int, children: Sequence[_Child]) -> list[tuple[Parent | None, Parent | None]]:
        """For each child, whose attention output and whose FFN output are the same as its own."""
        firsts: dict[tuple, Parent] = {}
        for side in self.ran:
            end = self.ends[side]
            level = end.levels[layer]
            for start in {child.start for child in children if child.row.parent == side}:
                probe = _Child(Row(0, side, ()), end.home, level, start, None, [])
                firsts[probe.attn_key], firsts[probe.mlp_key] = side, side
        out = []
        for child in children:
            attn, mlp = firsts.get(child.attn_key), firsts.get(child.mlp_key)
            out.append((attn, mlp if attn is not None else None))
            if not child.level.writing_beside("embed", "head", "mlp", "resid"):
                firsts.setdefault(child.attn_key, child.row.node)
            if not child.level.writing_beside("embed", "head", "attn", "resid"):
                firsts.setdefault(child.mlp_key, child.row.node)
        return out

    def read(self, live: Mapping[Parent, list[int]]) -> None:
        leaves = []
        for parent, numbers in live.items():
            tails: dict[tuple[Taken, ...], list[int]] = {}
            for number in numbers:
                tails.setdefault(self.words[number].tail, []).append(number)
            start = self.start_of[parent][0] if isinstance(parent, int) else 0
            leaves += [Leaf(parent, start, self.words[n[0]].home, tail, tuple(n)) for tail, n in tails.items()]
        if leaves:
            self.steps.append(Tail(tuple(leaves)))


@dataclass(frozen=True, eq=False)
class _Child:
    """A node to be: its row, and what it is grouped by."""

    row: Row
    home: Side
    level: Level
    start: int
    prefix: Side | None
    words: list[int]

    @property
    def attn_key(self) -> tuple:
        """What attention's output depends on: all writes but those that come after it. A site that is new is thought to come before."""
        before = self.level.writing_beside("attn", "mlp", "resid")
        return ("attn", self.row.parent, self.start, self.home, self.level.attn, self.level.norms, before)

    @property
    def mlp_key(self) -> tuple:
        """What the FFN's output depends on."""
        return ("mlp", self.attn_key, self.level.writing("attn"), self.level.mlp)

    def taking(self, attn_of: Parent | None, mlp_of: Parent | None) -> tuple[_Child, Row]:
        return self, Row(self.row.node, self.row.parent, self.row.writes, attn_of, mlp_of)


def _phase(row: Row) -> int:
    return (row.attn_of is not None) + (row.mlp_of is not None)


def _parts(children: Sequence[_Child], most: int) -> Iterable[Sequence[_Child]]:
    return (children[i : i + most] for i in range(0, len(children), most))


def make_plan(
    words: Sequence[Word],
    starts: Sequence[int],
    ends: Mapping[Side, Word],
    hooks: Mapping[Side, Sequence[str]],
    extent: Extent,
    budget: Budget,
) -> Plan:
    """Lay out the work of some words.

    Args:
        words: What is to be run.
        starts: For each, the first position that anything is written at.
        ends: The sides as they are.
        hooks: Activations of each that patches take.
        extent: How much one node is.
        budget: How much at a time.
    """
    known = {end: side for side, end in ends.items()}
    same: dict[Side, list[int]] = {side: [] for side in ends}
    leaving: dict[int, dict[Side, list[int]]] = {}
    rooted: dict[tuple[Side, tuple[Taken, ...]], list[int]] = {}
    for number, word in enumerate(words):
        left = {side: _agreement(word, end) for side, end in ends.items() if (word.home, word.root) == (end.home, end.root)}
        if word in known:
            same[known[word]].append(number)
        elif left:
            # Of two ends that agree as far, that which it only writes into: it keeps the positions before.
            side = max(left, key=lambda s: (left[s], word.unwritten == ends[s]))
            leaving.setdefault(left[side], {}).setdefault(side, []).append(number)
        else:
            rooted.setdefault((word.home, word.root), []).append(number)
    ran = frozenset(s for s in ends if same[s] or hooks.get(s) or any(layer and s in sides for layer, sides in leaving.items()))
    # What is kept of the ends, at most: a stream where words leave, what attention and FFN give there, what patches take.
    kept = 3 * sum(len(sides) for sides in leaving.values()) + sum(len(names) for names in hooks.values())
    most = max(1, budget.bytes // extent.node_bytes - kept)
    planner = _Planner(words, starts, ends, extent, ran, most, budget.tokens, leaving=leaving)
    roots = {planner.node(): root for root in rooted}
    start: dict[Parent, list[int]] = {node: rooted[root] for node, root in roots.items()}
    planner.go(0, start, True)
    for side, numbers in leaving.get(extent.n_layers, {}).items():
        planner.read({side: numbers})
    steps = _freeing(planner.steps)
    needs = {side: _needs(side, same[side], side in ran, hooks.get(side, ()), leaving, steps) for side in ends}
    peak = peak_of(steps, roots)
    return Plan(needs, roots, steps, peak, peak * extent.node_bytes + kept_bytes(needs, extent), work_of(needs, steps, extent))


def _agreement(word: Word, end: Word) -> int:
    """How many layers a word has in common with an end."""
    pairs = zip(word.levels, end.levels, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(word.levels))


def _parents(step: Step | Tail) -> set[Parent]:
    if isinstance(step, Tail):
        return {leaf.parent for leaf in step.leaves}
    return {parent for row in step.rows for parent in (row.parent, row.attn_of, row.mlp_of) if parent is not None}


def _freeing(steps: Sequence[Step | Tail]) -> tuple[Step | Tail, ...]:
    """The steps, each with the nodes that it is the last to need."""
    last = {parent: i for i, step in enumerate(steps) for parent in _parents(step) if isinstance(parent, int)}
    gone: dict[int, list[Node]] = {}
    for node, i in last.items():
        gone.setdefault(i, []).append(node)
    return tuple(step if isinstance(step, Tail) or i not in gone else replace(step, frees=tuple(gone[i])) for i, step in enumerate(steps))


def _needs(
    side: Side,
    words: Sequence[int],
    whole: bool,
    hooks: Sequence[str],
    leaving: Mapping[int, Mapping[Side, list[int]]],
    steps: Sequence[Step | Tail],
) -> EndNeeds:
    rows = [(step, row) for step in steps if isinstance(step, Step) for row in step.rows]
    return EndNeeds(
        whole=whole,
        words=tuple(words),
        streams=frozenset(layer for layer, sides in leaving.items() if side in sides),
        attn=frozenset(step.layer for step, row in rows if row.attn_of == side),
        mlp=frozenset(step.layer for step, row in rows if row.mlp_of == side),
        keys=frozenset(step.layer for step, row in rows if step.prefix == side and row.attn_of is None),
        hooks=tuple(dict.fromkeys(hooks)),
    )
