"""The shared plan carried out: each distinct prefix once, rows of many recipes in one call of a block."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from taia_lens.batch import sent
from taia_lens.engine.blocks import Blocks, Detour, Out
from taia_lens.engine.calls import Keys
from taia_lens.engine.plan import EndNeeds, Leaf, Parent, Plan, Step, Tail
from taia_lens.engine.reads import READ_FLOATS, Reads, picked
from taia_lens.engine.words import Taken, Word
from taia_lens.engine.writes import Writer
from taia_lens.errors import out_of_memory
from taia_lens.grafting import blend
from taia_lens.recipe import Side, other

Found = Iterator[tuple[int, Tensor]]
Parameters = Mapping[Side, Mapping[str, torch.nn.Parameter]]


@dataclass(eq=False)
class End:
    """What is kept of base or tuned as it is, by layer."""

    streams: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    keys: dict[int, Keys] = field(default_factory=dict)


@dataclass(eq=False)
class Sweep:
    """Many words on one batch.

    Attributes:
        reads: The batch, and what is read.
        parameters: Of base and tuned (or of one model as base), by name.
        blocks: Of each home.
        writer: What puts into activations what recipes say.
        tokens: That one call of a block is given; halved where memory runs out.
        ends: What is kept of base and tuned.
        nodes: Residual streams that are alive: a stack of them, and the number in it.
        kept: Outputs of attention and FFN that others in the layer take.
    """

    reads: Reads
    parameters: Parameters
    blocks: Mapping[Side, Blocks]
    writer: Writer
    tokens: int
    ends: dict[Side, End] = field(default_factory=dict)
    nodes: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(self.reads.batch.tokens)

    @cached_property
    def rows_read(self) -> list[int]:
        """Row of each read: brought from the device once."""
        return self.reads.rows.tolist()

    def run(self, plan: Plan, ends: Mapping[Side, Word], edited: Container[int]) -> Found:
        """Carry a plan out.

        Args:
            plan: The steps.
            ends: Base and tuned as they are.
            edited: Numbers of words whose recipes have edits, if only such as come to nothing.

        Yields:
            The number of a word and what was read: those without edits first.
        """
        # Nothing is in force while the caller has its turn: no pointer, no hook, no grad mode.
        found: list[tuple[int, Tensor]] = []
        for side, needs in plan.ends.items():
            self._end(side, ends[side], needs)
            if needs.words:
                found += self._tail(Tail((Leaf(side, 0, ends[side].home, ends[side].tail, needs.words),)))
        yield from sorted(found, key=lambda one: one[0] in edited)
        self._roots(plan)
        for step in plan.steps:
            if isinstance(step, Tail):
                yield from self._tail(step)
            else:
                self._step(step)

    @torch.no_grad()
    def _roots(self, plan: Plan) -> None:
        for node, (home, taken) in plan.roots.items():
            with pointed(self.parameters, home, taken):
                self.nodes[node] = self.blocks[home].embeddings(), 0

    @torch.no_grad()
    def _end(self, side: Side, word: Word, needs: EndNeeds) -> None:
        """Base or tuned as it is, block by block; what others begin with or take is kept."""
        end = self.ends[side] = End()
        if not needs.whole and not needs.streams:
            return
        with pointed(self.parameters, word.home, word.root):
            stream = self.blocks[word.home].embeddings()
        for layer, level in enumerate(word.levels):
            if layer in needs.streams:
                end.streams[layer] = stream
            if not needs.whole:
                return  # only words that differ from the first layer on begin with it
            names = [name for name in needs.hooks if name.startswith(f"blocks.{layer}.")]
            wanted = [n for n, at in (("attn", needs.attn), ("mlp", needs.mlp), ("keys", needs.keys)) if layer in at]
            detour = Detour(acts=tuple(names), keep=frozenset(wanted))
            with pointed(self.parameters, word.home, level.taken):
                out = self._block(word.home, layer, stream, partial(_always, detour))
            stream = out.stream
            self.writer.acts.setdefault(side, {}).update(out.acts)
            end.kept |= {(name, layer): tensor for name, tensor in out.kept.items()}
            if out.keys is not None and "keys" in wanted:
                end.keys[layer] = out.keys
        end.streams[len(word.levels)] = stream

    @torch.no_grad()
    def _step(self, step: Step) -> None:
        stream = self._stacked(step)
        known = {
            name: torch.cat([self._output(name, step, source) for source in sources])
            for name, sources in (("attn", [r.attn_of for r in step.rows]), ("mlp", [r.mlp_of for r in step.rows]))
            if sources[0] is not None
        }
        keep = frozenset(n for n, nodes in (("attn", step.keep_attn), ("mlp", step.keep_mlp)) if nodes)

        def detour(rows: slice) -> Detour:
            hooks = self.writer.hooks(step, rows)
            only = self._reads_of(rows, step.start, stream.device) if step.only_reads else None
            return Detour(hooks, (), {name: tensor[rows] for name, tensor in known.items()}, keep, only)

        before = None if step.prefix is None or "attn" in known else self.ends[step.prefix].keys[step.layer]
        with pointed(self.parameters, step.home, step.taken):
            out = self._block(step.home, step.layer, stream, detour, step.start, before)
        for i, row in enumerate(step.rows):
            self.nodes[row.node] = out.stream, i
            for name, nodes in (("attn", step.keep_attn), ("mlp", step.keep_mlp)):
                if row.node in nodes:
                    self.kept[name, row.node] = out.kept[name][i * self.n_rows : (i + 1) * self.n_rows]
        for node in step.frees:
            self._free(node)

    def _free(self, node: int) -> None:
        self.nodes.pop(node, None)
        self.kept.pop(("attn", node), None)
        self.kept.pop(("mlp", node), None)

    def _block(
        self,
        home: Side,
        layer: int,
        stream: Float[Tensor, "stacked pos d_model"],
        detour: Callable[[slice], Detour],
        start: int = 0,
        before: Keys | None = None,
    ) -> Out:
        """One block, on as many rows at a time as the machine likes; where memory runs out, on half as many."""
        outs: list[Out] = []
        done, n = 0, len(stream)
        while done < n:
            size = max(1, self.tokens // stream.shape[1])
            rows = slice(done, min(n, done + size))
            keys = None
            if before is not None:
                index = torch.arange(rows.start, rows.stop, device=stream.device) % self.n_rows
                keys = before[0][index, :, :start], before[1][index, :, :start]
            try:
                outs.append(self.blocks[home].run(layer, stream[rows], rows, start, keys, detour(rows)))
            except RuntimeError as error:
                if rows.stop - rows.start == 1 or not out_of_memory(error):
                    raise
                self.tokens = (rows.stop - rows.start) // 2 * stream.shape[1]
                continue
            done = rows.stop
        return _joined(outs)

    def _reads_of(self, rows: slice, start: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which of a stretch of a stack's rows are read, and where."""
        n = self.n_rows
        copies = range(rows.start // n, (rows.stop - 1) // n + 1)
        placed = [(copy * n + row - rows.start, read) for copy in copies for read, row in enumerate(self.rows_read)]
        # Chosen here and not by a mask of booleans, whose size a GPU would be waited for.
        inside = [one for one in placed if 0 <= one[0] < rows.stop - rows.start]
        at, reads = (sent(torch.tensor([one[i] for one in inside]), device) for i in (0, 1))
        return at, sent(self.reads.positions, device)[reads] - start

    def _stacked(self, step: Step) -> Float[Tensor, "stacked pos d_model"]:
        """The streams that a step's rows begin with; nothing is copied where they lie side by side already."""
        first = self.nodes.get(step.rows[0].parent) if isinstance(step.rows[0].parent, int) else None
        n = self.n_rows
        if first is not None:
            stack, begin = first
            own = [self.nodes.get(row.parent) if isinstance(row.parent, int) else None for row in step.rows]
            if all(o is not None and o[0] is stack and o[1] == begin + i for i, o in enumerate(own)):
                return stack[begin * n : (begin + len(own)) * n]
        streams = [self._stream(row.parent, step.layer, step.start) for row in step.rows]
        return streams[0] if len(streams) == 1 else torch.cat(streams)

    def _stream(self, parent: Parent, layer: int, start: int) -> Float[Tensor, "batch pos d_model"]:
        if isinstance(parent, int):
            stack, i = self.nodes[parent]
            return stack[i * self.n_rows : (i + 1) * self.n_rows]
        return self.ends[parent].streams[layer][:, start:]

    def _output(self, name: str, step: Step, source: Parent | None) -> Float[Tensor, "batch pos d_model"]:
        if isinstance(source, int):
            return self.kept[name, source]
        assert source is not None
        return self.ends[source].kept[name, step.layer][:, step.start :]

    def _tail(self, tail: Tail) -> Found:
        """Read leaves, as many at a time as their logits allow; leaves that are read with the same weights together."""
        n_layers = len(next(iter(self.blocks.values())).model.blocks)
        groups: dict[tuple[Side, tuple[Taken, ...]], list[tuple[Leaf, Tensor]]] = {}
        for leaf in tail.leaves:
            stream = self._stream(leaf.parent, n_layers, 0)
            rows, positions = (sent(at, stream.device) for at in (self.reads.rows, self.reads.positions))
            groups.setdefault((leaf.home, leaf.taken), []).append((leaf, stream[rows, positions - leaf.start]))
        for leaf in tail.leaves:
            if isinstance(leaf.parent, int):
                self._free(leaf.parent)
        for (home, taken), leaves in groups.items():
            width = int(self.blocks[home].model.cfg.d_vocab) if self.reads.columns is None else len(self.reads.columns)
            size = max(1, READ_FLOATS // max(1, width * len(self.reads.rows)))
            for some in (leaves[i : i + size] for i in range(0, len(leaves), size)):
                found = self._read(home, taken, [stream for _, stream in some])
                device = self.reads.rows.device
                yield from ((word, one.to(device)) for (leaf, _), one in zip(some, found, strict=True) for word in leaf.words)

    def _read(self, home: Side, taken: Sequence[Taken], leaves: Sequence[Float[Tensor, "read d_model"]]) -> Sequence[Tensor]:
        """What is read of each leaf; where memory runs out, of half of them at a time."""
        try:
            return self._read_at_once(home, taken, torch.cat([*leaves]), len(leaves))
        except RuntimeError as error:
            if len(leaves) == 1 or not out_of_memory(error):
                raise
        middle = len(leaves) // 2
        return [*self._read(home, taken, leaves[:middle]), *self._read(home, taken, leaves[middle:])]

    @torch.no_grad()
    def _read_at_once(self, home: Side, taken: Sequence[Taken], streams: Float[Tensor, "stacked d_model"], n: int) -> Sequence[Tensor]:
        """What is read of each of n leaves."""
        blocks, targets, columns = self.blocks[home], self.reads.targets, self.reads.columns
        with pointed(self.parameters, home, taken):
            if targets is None:
                return blocks.read(streams, None if columns is None else columns.to(streams.device)).split(len(self.reads.rows))
            size = max(1, READ_FLOATS // int(blocks.model.cfg.d_vocab))
            chunks = zip(streams.split(size), targets.to(streams.device).repeat(n).split(size), strict=True)
            return torch.cat([picked(blocks.read(some), of) for some, of in chunks]).split(len(targets))


def _always(detour: Detour, rows: slice) -> Detour:
    return detour


def _joined(outs: Sequence[Out]) -> Out:
    if len(outs) == 1:
        return outs[0]
    kept = {name: torch.cat([out.kept[name] for out in outs]) for name in outs[0].kept}
    acts = {name: torch.cat([out.acts[name] for out in outs]) for name in outs[0].acts}
    pairs = [out.keys for out in outs if out.keys is not None]
    keys = (torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs])) if pairs else None
    return Out(torch.cat([out.stream for out in outs]), kept, keys, acts)


@contextmanager
def pointed(parameters: Parameters, home: Side, taken: Sequence[Taken]) -> Iterator[None]:
    """The home's parameters pointed at the tensors that are taken, for as long as the block runs; what is blended is copied."""
    mine = parameters[home]
    originals = {one.name: mine[one.name].data for one in taken}

    def tensors(side: Side, name: str) -> Tensor:
        return originals[name] if side == home else parameters[side][name].data

    try:
        for one in taken:
            tensor = tensors(one.origin, one.name)
            if one.edits:
                tensor = blend(one.name, tensor, tensors(other(one.origin), one.name), one.edits)
            mine[one.name].data = tensor.to(originals[one.name].device)
        yield
    finally:
        for name, data in originals.items():
            mine[name].data = data
