"""Base with scales folded into its weights, as a checkpoint that any other tool loads; and the proof that it is the hooked base."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taia_lens.errors import PairError
from taia_lens.export.append import Vector, append_zeros
from taia_lens.export.card import page
from taia_lens.export.files import DTYPES, Stored, folder_of, is_adapter, label, open_checkpoint, sha256
from taia_lens.export.fold import folded
from taia_lens.export.proof import Proof, hooked, prove
from taia_lens.export.sides import Full, open_full, value
from taia_lens.export.skeleton import build
from taia_lens.export.slots import Slot, find_slot
from taia_lens.export.write import (
    TensorNote,
    check_space,
    copy_settings,
    copy_weights,
    ignored_notes,
    overwrite,
    tensor_bytes,
    tied_notes,
    write_notes,
)
from taia_lens.loaded import Loaded
from taia_lens.loading.models import Options, resolve_device
from taia_lens.loading.tokenizers import tokenizer_of
from taia_lens.results import whole_folder
from taia_lens.scales import CONFIG, WEIGHTS, Scales, check_fits, load_scales

LOST = 0.1  # of what the scales do: more than this lost to rounding is worth a note


@dataclass(frozen=True)
class ExportedScales:
    """What was written.

    Attributes:
        folder: Where.
        slot: Where the offsets went.
        tensors: What became of each tensor; also in tensors.json.
        notes: What a reader may not expect; also in README.md.
        proof: What the verification found; None where it was left out.
    """

    folder: Path
    slot: str
    tensors: tuple[TensorNote, ...]
    notes: tuple[str, ...]
    proof: Proof | None


@torch.no_grad()
def export_scales(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    verified: bool = True,
    other_model: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> ExportedScales:
    """Write base with an adapter of scales folded in: no hooks, no adapter, the same logits.

    (1 + A) goes into the columns of the output projections, v into their biases (or the values' biases, where that is exact).
    Files, names and dtypes are the base's; where a bias is new, config.json says so. README.md says what was done.

    Args:
        base: A folder with safetensors, or a Hub id.
        adapter: A folder of scales, from 'taia-lens lofit fit'.
        out: The folder to write; must not exist. It is whole or not there.
        verified: Load what was written in plain transformers and hold its logits against base with the adapter on hooks.
        other_model: Accept a base that the adapter was not made for.
        device: Where the verification runs.
        trust_remote_code: Also run modelling code that comes with a checkpoint.

    Raises:
        PairError: The architecture has no place for the offsets, the adapter is another model's, or base cannot be read.
        CheckError: What was written is not the hooked base; nothing is left behind.
        ResultError: The adapter is damaged, or nothing can be written; nothing is left behind.
    """
    out, scales = Path(out), load_scales(adapter)
    check_space(out, 0)
    full = _open(base, trust_remote_code)
    check_fits(scales, Loaded(full.skeleton.lens, full.skeleton.tokenizer, label(base)), other_model=True)  # its shape, for now
    slot = find_slot(full, scales)
    check_space(out, full.checkpoint.bytes)
    options = Options(resolve_device(device), "auto", allow_pickle=False, trust_remote_code=trust_remote_code)
    wanted = hooked(full, base, scales, options, other_model=other_model)
    with whole_folder(out) as folder:
        tensors = _write(folder, full, scales, slot)
        write_notes(folder, tensors)
        proof = prove(folder, wanted, options) if verified else None
        notes = _notes(scales, slot, proof)
        rows = _rows(base, adapter, out, scales, slot, proof, verified)
        what = "A model with an adapter of scales folded into its weights. Loads in transformers like any checkpoint."
        title = f"{label(base)} with {scales.made.get('method', 'scales')}"
        text = page(title, what, (label(base),), rows, tensors, notes, _hashes(full, Path(adapter).expanduser()))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return ExportedScales(out, str(slot), tensors, notes, proof)


def _open(base: str | Path, trust_remote_code: bool) -> Full:
    """The base as files, without weights in memory."""
    folder = folder_of(base, "base", trust_remote_code=trust_remote_code)
    if is_adapter(folder):
        raise PairError(f"base {base} is an adapter; give the model that the scales were made for")
    tokenizer = tokenizer_of(folder, "base", Options("cpu", "auto", allow_pickle=False, trust_remote_code=trust_remote_code))
    if tokenizer is None:
        raise PairError(f"base {base} brings no tokenizer; put the tokenizer's files into its folder")
    return open_full(folder, "base", build(folder, "base", tokenizer, trust_remote_code=trust_remote_code))


def _write(folder: Path, base: Full, scales: Scales, slot: Slot) -> tuple[TensorNote, ...]:
    """The base's files, with what folding changes put over its own."""
    copy_weights(folder, base)
    copy_settings(folder, base, base, base.folder)
    added = _added(base, slot)
    if added:
        append_zeros(folder / base.checkpoint.files[-1].name, {name: vector for name, vector in added.values()})
        _switch_on(folder / "config.json", str(slot.switch))
    places = open_checkpoint(folder, "what is written").tensors
    notes = _kept(base) | {name: TensorNote(name, *_owner(base, like), "new", "zero", True) for like, (name, _) in added.items()}
    for change in folded(base, scales, slot, lambda name: _read(base, slot, name)):
        stored = places[_stored_name(base, added, change.name)]
        new = change.value.to(DTYPES[stored.dtype])
        if not bool(torch.isfinite(new).all()):
            raise PairError(f"folding the scales into {stored.name} gives NaN or inf: the adapter's numbers are too large for it")
        changed = overwrite(folder / stored.file.name, stored, tensor_bytes(new))
        notes[stored.name] = TensorNote(stored.name, change.component, change.layer, "folded", change.what, changed)
    return (*notes.values(), *tied_notes(base))


def _kept(base: Full) -> dict[str, TensorNote]:
    """A note for every stored tensor of the base, as if nothing became of it."""
    found = ignored_notes(base)
    for group in base.layout.groups:
        owner = _owner(base, group.targets[0])
        found |= {stored.name: TensorNote(stored.name, *owner, "base", "", False) for stored in group.stored}
    return {name: found[name] for name in base.checkpoint.tensors}


def _owner(base: Full, parameter: str) -> tuple[str | None, int | None]:
    skeleton = base.skeleton
    name = skeleton.canonical.get(parameter, parameter)
    return next(((w.component, w.layer) for w in skeleton.weights if skeleton.parameter.get(w.name) == name), (None, None))


def _added(base: Full, slot: Slot) -> dict[str, tuple[str, Vector]]:
    """Of each weight that gets a bias: the name that it is stored under, and what it is before anything is folded in."""
    out = {}
    for bias, length in slot.added.items():
        weight = bias.removesuffix(".bias") + ".weight"
        stored = _single(base, weight)
        out[weight] = stored.name.removesuffix(".weight") + ".bias", Vector(stored.dtype, length)
    return out


def _single(base: Full, parameter: str) -> Stored:
    group = base.layout.of[parameter]
    if group.converter is not None or len(group.stored) != 1:
        raise PairError(f"{parameter} is stored in pieces ({group.stored[0].name} and others): scales cannot be folded into it")
    return group.stored[0]


def _stored_name(base: Full, added: Mapping[str, tuple[str, Vector]], parameter: str) -> str:
    weight = parameter.removesuffix(".bias") + ".weight"
    return added[weight][0] if parameter.endswith(".bias") and weight in added else _single(base, parameter).name


def _read(base: Full, slot: Slot, parameter: str) -> Tensor:
    return torch.zeros(slot.added[parameter]) if parameter in slot.added else value(base, _single(base, parameter))


def _switch_on(path: Path, key: str) -> None:
    """Set a key of config.json, where the text model's settings are."""
    config = json.loads(path.read_text(encoding="utf-8"))
    (config["text_config"] if isinstance(config.get("text_config"), dict) else config)[key] = True
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _notes(scales: Scales, slot: Slot, proof: Proof | None) -> tuple[str, ...]:
    notes = []
    if slot.switch:
        notes.append(f"config.json now says {slot.switch}: true, which gives the model {len(slot.added)} biases; all but v's are zero")
    if proof is not None and proof.drift > LOST * proof.effect:
        notes.append(
            f"rounding to {proof.dtype} takes {proof.drift / max(proof.effect, 1e-30):.0%} of what the adapter does to the logits; "
            "fold it into a float32 copy of base, or keep the adapter, whose numbers stay float32"
        )
    return tuple(notes)


def _rows(
    base: str | Path, adapter: str | Path, out: Path, scales: Scales, slot: Slot, proof: Proof | None, verified: bool
) -> dict[str, str]:
    words = ["taia-lens", "lofit", "export", label(adapter), "--base", label(base), "--out", out.name]
    sites = ", ".join(map(str, scales.sites[:12])) + (f" and {len(scales.sites) - 12} more" if len(scales.sites) > 12 else "")
    return {
        "base": label(base),
        "adapter": f"{label(adapter)} ({scales.made.get('method', 'scales')}): {scales.numbers} numbers at {sites}",
        "offsets": str(slot),
        "made by": f"`{shlex.join([*words, *([] if verified else ['--no-verify'])])}`",
        "verified": str(proof or "no (--no-verify): nothing was loaded and compared"),
    }


def _hashes(base: Full, adapter: Path) -> dict[str, str]:
    files = [("base", file) for file in base.checkpoint.files] + [("adapter", adapter / name) for name in (WEIGHTS, CONFIG)]
    return {f"{side}/{file.name}": sha256(file) for side, file in files}
