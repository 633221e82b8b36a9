"""A pair: two models of one architecture, what differs between them, and which weights belong to which component.

Knows TransformerLens's model interface (`cfg`, `blocks`, module names) and no loader; runs no forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from taia_lens.budget import BUDGET, Budget
from taia_lens.errors import PairError
from taia_lens.html import Html, card, folded, inline, listed, paragraph, table
from taia_lens.loaded import HARMLESS, Loaded, Shape, architecture, config
from taia_lens.recipe import Side
from taia_lens.weights import Model, Weight, stored_buffers, weights


@dataclass(frozen=True)
class Difference:
    """How much one tensor differs: Frobenius norms of base and of tuned - base."""

    name: str
    component: str
    layer: int | None
    base_norm: float
    update_norm: float


@dataclass(frozen=True)
class Law:
    """One law of the self-check: what was measured, what it may be at most (or at least), and whether it holds."""

    name: str
    value: float
    bound: float
    holds: bool

    @property
    def relation(self) -> str:
        """How the value must stand to the bound; the zero-ablations must change something."""
        return ">" if self.name.startswith("zero-ablating") else "<="


@dataclass(frozen=True)
class Origin:
    """Where the two sides came from."""

    base: str
    tuned: str
    dtype: str


@dataclass(frozen=True)
class Report:
    """What loading and the self-check found.

    `merge_drift` is the largest |logit difference| between the merged and the unmerged adapter on a probe, where tuned was
    an adapter; `added_tokens` are those that only the tuned tokenizer has; `plain_because` says why recipes are run one by one
    and share no work, and is empty where they do.
    """

    merge_drift: float | None = None
    added_tokens: tuple[str, ...] = ()
    tokenizer: str = ""
    notes: tuple[str, ...] = ()
    laws: tuple[Law, ...] = ()
    plain_because: str = "the pair was not checked"


@dataclass(frozen=True, eq=False)
class Pair:
    """Base and tuned, checked against each other; made by `load_pair`.

    Tensors equal in both share storage, where both sides are on one device. Nothing is folded, centred or cast. `changed` names
    the weights that are not equal in both: those of `differences`, and what the bridge split off them; `budget` says how much is
    run, and held, at a time.
    """

    base: Model
    tuned: Model
    tokenizer: PreTrainedTokenizerBase
    origin: Origin
    differences: tuple[Difference, ...]
    changed: frozenset[str]
    report: Report = Report()
    budget: Budget = BUDGET

    def side(self, side: Side) -> Model:
        return self.base if side == "base" else self.tuned

    @property
    def models(self) -> tuple[Model, ...]:
        return self.base, self.tuned

    def loaded(self, side: Side) -> Loaded:
        """One side by itself, unedited."""
        return self._sides[side]

    @cached_property
    def _sides(self) -> dict[Side, Loaded]:
        # Kept, since each hashes its weights once: on a large model that takes as long as loading it.
        why = self.report.plain_because
        return {
            "base": Loaded(self.base, self.tokenizer, self.origin.base, why, self.budget),
            "tuned": Loaded(self.tuned, self.tokenizer, self.origin.tuned, why, self.budget),
        }

    @property
    def shape(self) -> Shape:
        return Shape.of(self.base)

    @property
    def device(self) -> torch.device:
        """Base's, where batches go and numbers come from; tuned may lie on another."""
        return next(self.base.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All that weights lie on: base's first, then what else of base's and tuned's."""
        return tuple(dict.fromkeys(parameter.device for model in self.models for parameter in model.parameters()))

    @property
    def weights(self) -> dict[Side, tuple[Weight, ...]]:
        """Each side's parameters, with the component that each belongs to; found once, since every batch asks for them."""
        return {side: loaded.weights for side, loaded in self._sides.items()}

    @cached_property
    def alike(self) -> bool:
        """Whether both sides run equal weights alike: no hyper-parameter differs."""
        return not config_differences(self.base, self.tuned)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """A content hash of each side's weights and hyper-parameters."""
        return {side: loaded.fingerprint for side, loaded in self._sides.items()}

    def __repr__(self) -> str:
        s, o = self.shape, self.origin
        size = f"{s.n_layers} layers, {s.n_heads} heads, d_model {s.d_model}"
        return f"Pair({o.base} | {o.tuned}: {size}; {len(self.differences)} tensors differ)"

    def _repr_html_(self) -> Html:
        s, o, r = self.shape, self.origin, self.report
        heads = f"{s.n_heads} heads" + (f" ({s.n_key_value_heads} key-value)" if s.n_key_value_heads != s.n_heads else "")
        size = f"{s.n_layers} layers, {heads}, d_model {s.d_model}, vocabulary {s.d_vocab:,}"
        where = " and ".join(map(str, self.devices))
        sides = paragraph("base ", inline(o.base), "<br>tuned ", inline(o.tuned))
        made = f"{self.loaded('base').n_parameters:,} parameters each, {o.dtype}, on {where}"
        notes = list(r.notes)
        if r.merge_drift is not None:
            notes.append(f"adapter merged in float32; merged and unmerged logits differ by at most {r.merge_drift:.2g} on a probe")
        if r.added_tokens:
            notes.append(f"tokens only in tuned: {', '.join(r.added_tokens[:10])} ({len(r.added_tokens)} in all)")
        about = paragraph(inline(architecture(self.base)), f": {size}; {made}")
        return card("Pair: base | tuned", sides, about, _differing(self), _laws_html(r.laws), listed(notes))


def _differing(pair: Pair) -> Html:
    """How many tensors of each component differ, and by how much."""
    rows = []
    for name in dict.fromkeys(w.component for w in pair.weights["base"]):
        found = [d for d in pair.differences if d.component == name]
        base, update = (sum(getattr(d, norm) ** 2 for d in found) ** 0.5 for norm in ("base_norm", "update_norm"))
        layers = {d.layer for d in found if d.layer is not None}
        of = sum(w.component == name and not w.copy for w in pair.weights["base"])
        size = "-" if not found else f"{update / base:.3g}" if base else "inf"
        rows.append((name, f"{len(found)} of {of}", str(len(layers)) if layers else "-", size))
    heads = ("component", "tensors that differ", "in layers", "|tuned - base| / |base|")
    total = sum(not w.copy for w in pair.weights["base"])
    return table(heads, rows, numbers=(1, 2, 3), caption=f"{len(pair.differences)} of {total} tensors differ; sizes are of those that do")


def _laws_html(laws: tuple[Law, ...]) -> Html:
    """The self-check: its verdict, and behind it every law; open where one fails."""
    if not laws:
        return paragraph("The pair was not checked.")
    failed = [law for law in laws if not law.holds]
    said = f"Self-check: {len(failed)} of {len(laws)} laws FAIL" if failed else f"Self-check: all {len(laws)} laws hold"
    sorted_laws = failed + [law for law in laws if law.holds]
    rows = [("holds" if law.holds else "FAILS", law.name, f"{law.value:.2g}", f"{law.relation} {law.bound:.2g}") for law in sorted_laws]
    return folded(said, table(("", "law", "measured", "bound"), rows, numbers=(2, 3), texts=(1,)), opened=bool(failed))


def join(base: Model, tuned: Model, tokenizer: PreTrainedTokenizerBase, origin: Origin) -> Pair:
    """Hold two models against each other and make them a pair; tensors that are equal then share storage.

    Raises:
        PairError: Two architectures, two shapes, NaN or inf in a weight, or no difference at all.
    """
    if base is tuned:
        raise PairError("base and tuned are the same object; give two models")
    _same_shape(base, tuned)
    ours, theirs = weights(base), {w.name: w for w in weights(tuned)}
    if {w.name for w in ours} != set(theirs):
        odd = sorted({w.name for w in ours} ^ set(theirs))
        raise PairError(f"base and tuned have different tensors, for example {odd[0]}; both must be of one architecture")
    differences, changed = [], set()
    for mine in ours:
        yours = theirs[mine.name]
        _comparable(mine, yours)
        difference = _difference(mine, yours)
        if difference is None:
            if mine.parameter.device == yours.parameter.device:
                yours.parameter.data = mine.parameter.data
            continue
        changed.add(mine.name)
        if not mine.copy:
            differences.append(difference)
    buffers, others = stored_buffers(base), stored_buffers(tuned)
    for name, buffer in buffers.items():
        if name not in others or not torch.equal(buffer, others[name].to(buffer.device)):
            raise PairError(f"base and tuned differ in {name}, which the checkpoint has and which is no weight; no recipe moves it")
    if not differences:
        raise PairError("base and tuned are identical: no tensor differs; was the adapter trained, and is tuned the right folder?")
    return Pair(base, tuned, tokenizer, origin, tuple(differences), frozenset(changed))


def config_differences(base: Model, tuned: Model) -> tuple[str, ...]:
    """Hyper-parameters that are not the same on both sides, in words; a graft moves weights and leaves these behind."""
    a, b = config(base), config(tuned)
    keys = [k for k in sorted(a.keys() | b.keys()) if k not in HARMLESS and "dropout" not in k and a.get(k) != b.get(k)]
    return tuple(f"{key} is {a.get(key)} in base and {b.get(key)} in tuned" for key in keys)


def _same_shape(base: Model, tuned: Model) -> None:
    if type(base) is not type(tuned):
        raise PairError(f"base is a {type(base).__name__} and tuned is a {type(tuned).__name__}; load both the same way")
    if architecture(base) != architecture(tuned):
        raise PairError(f"base is {architecture(base)} and tuned is {architecture(tuned)}; a pair has one architecture")
    a, b = Shape.of(base), Shape.of(tuned)
    if a != b:
        field_name = next(name for name in vars(a) if getattr(a, name) != getattr(b, name))
        mend = (
            "a tuned model with added tokens must be resized back to the base's vocabulary"
            if field_name == "d_vocab"
            else "give a base and its own fine-tune"
        )
        raise PairError(f"shapes differ: {field_name} is {getattr(a, field_name)} in base and {getattr(b, field_name)} in tuned; {mend}")


def _comparable(mine: Weight, yours: Weight) -> None:
    a, b = mine.parameter, yours.parameter
    if a.shape != b.shape:
        raise PairError(f"{mine.name} is {tuple(a.shape)} in base and {tuple(b.shape)} in tuned; shapes must agree")
    if a.dtype != b.dtype:
        raise PairError(f"{mine.name} is of dtype {a.dtype} in base and {b.dtype} in tuned; load both with one dtype, e.g. dtype float32")
    if a.device.type != b.device.type:  # a CPU and a GPU round differently, and no law could tell that from a mistake
        raise PairError(f"{mine.name} is on device {a.device} in base and {b.device} in tuned; put both on devices of one kind")
    for side, tensor in (("base", a), ("tuned", b)):
        if not torch.isfinite(tensor).all():
            raise PairError(f"{side} has NaN or inf in {mine.name}; the checkpoint is damaged or its training diverged")


def _difference(mine: Weight, yours: Weight) -> Difference | None:
    a: Tensor = mine.parameter.detach()
    b = yours.parameter.detach().to(a.device)
    if torch.equal(a, b):
        return None
    norms = [torch.linalg.vector_norm(t.double()).item() for t in (a, b.double() - a.double())]
    return Difference(mine.name, mine.component, mine.layer, *norms)


def relative_updates(pair: Pair) -> dict[tuple[str, int | None], float]:
    """|tuned - base| / |base| of every component at every layer that differs; inf where the base's weights are all zero.

    Frobenius norms over all tensors of the component, those that are equal too.
    """
    base: dict[tuple[str, int | None], float] = {}
    for weight in weights(pair.base):
        if not weight.copy:
            key = (weight.component, weight.layer)
            base[key] = base.get(key, 0.0) + torch.linalg.vector_norm(weight.parameter.detach().double()).item() ** 2
    update: dict[tuple[str, int | None], float] = {}
    for difference in pair.differences:
        key = (difference.component, difference.layer)
        update[key] = update.get(key, 0.0) + difference.update_norm**2
    return {key: (size / base[key]) ** 0.5 if base[key] else float("inf") for key, size in update.items()}
