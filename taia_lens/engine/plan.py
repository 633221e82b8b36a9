"""Words -> shared work: a trie whose nodes are residual streams, each computed once, as steps that are known before anything runs.

A node is the residual stream of the prompts after some layer, under the beginning of a word. The ends, base and tuned as they
are, are run whole; every other word leaves an end at the first layer where it differs, and from there on shares each block with
the words that still agree with it. Rows of several nodes are stacked, so that a block is run on as many tokens as suits the machine.
Holds no tensor and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taia_lens.engine.words import Taken, Write
from taia_lens.recipe import Side

Node = int
Parent = Node | Side
"""Whose stream a row begins with: a node's, or an end's, of which every layer's is kept."""


@dataclass(frozen=True)
class Extent:
    """How much there is to run: a batch of rows and a model's depth.

    Attributes:
        rows: Prompts.
        width: Tokens of the longest.
        n_layers: Layers.
        node_bytes: Of one node: a residual stream of all rows.
        key_bytes: Of keys and values of all rows, in one layer.
        attention: Share of attention in a block's work.
        unembedding: Work of one read, in blocks of one token.
        reads: Reads.
    """

    rows: int
    width: int
    n_layers: int
    node_bytes: int
    key_bytes: int
    attention: float
    unembedding: float
    reads: int

    @property
    def forward(self) -> float:
        """Work of one forward, in blocks of one token."""
        return self.n_layers * self.rows * self.width + self.reads * self.unembedding


@dataclass(frozen=True)
class Row:
    """One node to compute from its parent, in one layer.

    Attributes:
        node: What it makes.
        parent: Whose stream it begins with.
        writes: Into activations on the way.
        attn_of: Whose attention has the same output, which is then taken and not run again.
        mlp_of: The same for the FFN.
    """

    node: Node
    parent: Parent
    writes: tuple[Write, ...]
    attn_of: Parent | None = None
    mlp_of: Parent | None = None


@dataclass(frozen=True)
class Step:
    """A call of one block on the stacked rows of some nodes.

    Attributes:
        layer: Which block.
        home: Of which model.
        taken: Its weights that are pointed elsewhere.
        start: Positions before this are not run; their keys and values are the end's `prefix`.
        prefix: Which end's; None where everything is run.
        rows: In the order in which they are stacked.
        keep_attn: Nodes of which attention's output is kept for others in this layer.
        keep_mlp: The same for the FFN's.
        only_reads: Whether the FFN is run at the positions that are read only: it is the last block's, and nothing is written after it.
        frees: Nodes that nothing needs after this step.
    """

    layer: int
    home: Side
    taken: tuple[Taken, ...]
    start: int
    prefix: Side | None
    rows: tuple[Row, ...]
    keep_attn: frozenset[Node] = frozenset()
    keep_mlp: frozenset[Node] = frozenset()
    only_reads: bool = False
    frees: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """What some words come to: a stream after the last block, read with these weights."""

    parent: Parent
    start: int
    home: Side
    taken: tuple[Taken, ...]
    words: tuple[int, ...]


@dataclass(frozen=True)
class Tail:
    """The reading of some leaves; their nodes are freed."""

    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class EndNeeds:
    """What is kept of an end's run.

    Attributes:
        whole: Whether it is run at all; else its embeddings are enough.
        words: Words that are this end.
        streams: Layers whose input is begun with.
        attn: Layers whose attention output is taken by others.
        mlp: The same for the FFN.
        keys: Layers whose keys and values are.
        hooks: Activations that patches take.
    """

    whole: bool
    words: tuple[int, ...]
    streams: frozenset[int] = frozenset()
    attn: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that will be run, in order.

    Attributes:
        ends: What is run and kept of base and tuned.
        roots: Nodes that are embeddings of neither end, and the weights taken there.
        steps: Blocks and readings.
        peak: The most nodes that are alive at a time.
        bytes: What they take up, with what is kept of base and tuned.
        work: In forwards' worth: blocks (weighed by whether attention and FFN are run), positions and reads.
    """

    ends: dict[Side, EndNeeds]
    roots: dict[Node, tuple[Side, tuple[Taken, ...]]]
    steps: tuple[Step | Tail, ...]
    peak: int
    bytes: int
    work: float


def peak_of(steps: Sequence[Step | Tail], roots: Mapping[Node, object]) -> int:
    """The most nodes that are alive at a time."""
    alive: set[object] = set(roots)
    peak = len(roots)
    for step in steps:
        if isinstance(step, Tail):
            alive -= {thing for leaf in step.leaves for thing in (leaf.parent, ("attn", leaf.parent), ("mlp", leaf.parent))}
        else:
            kept = {(name, node) for name, nodes in (("attn", step.keep_attn), ("mlp", step.keep_mlp)) for node in nodes}
            alive |= {row.node for row in step.rows} | kept
            peak = max(peak, len(alive))
            alive -= {thing for node in step.frees for thing in (node, ("attn", node), ("mlp", node))}
    return peak


def kept_bytes(ends: Mapping[Side, EndNeeds], extent: Extent) -> int:
    """What is kept of base and tuned."""
    streams = sum(len(needs.streams) + len(needs.attn) + len(needs.mlp) + len(needs.hooks) for needs in ends.values())
    return streams * extent.node_bytes + sum(len(needs.keys) for needs in ends.values()) * extent.key_bytes


def work_of(ends: Mapping[Side, EndNeeds], steps: Sequence[Step | Tail], extent: Extent) -> float:
    """In forwards' worth: blocks, weighed by whether attention and FFN are run, positions and reads."""
    work = sum(extent.forward for needs in ends.values() if needs.whole)
    for step in steps:
        if isinstance(step, Tail):
            work += len(step.leaves) * extent.reads * extent.unembedding
        else:
            tokens = extent.rows * (extent.width - step.start)
            after = extent.reads if step.only_reads else tokens
            attention, ffn = (sum(of is None for of in found) for found in ([r.attn_of for r in step.rows], [r.mlp_of for r in step.rows]))
            work += attention * extent.attention * tokens + ffn * (1 - extent.attention) * after
    return work / extent.forward
