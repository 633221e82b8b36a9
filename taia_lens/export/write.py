"""Writing an export: shards are copied and then changed in place, a tensor at a time; what is no weight comes along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taia_lens.errors import ResultError
from taia_lens.export.files import CHUNK, INDEX, SINGLE, TERMS, TOKENIZER, Stored, chunks
from taia_lens.export.plan import Cuts, Step, contents
from taia_lens.export.sides import Full, Held, Merged
from taia_lens.results import check_out


@dataclass(frozen=True)
class TensorNote:
    """One line of tensors.json: where a tensor comes from, and why, where no graft says so.

    Attributes:
        name: As it is stored.
        component: None for what no graft moves.
        layer: None outside the blocks.
        source: `base`, `tuned`, or in words.
        why: Empty where the recipe takes it.
        changed: Whether its bytes are other than base's; None where it is not stored.
    """

    name: str
    component: str | None
    layer: int | None
    source: str
    why: str
    changed: bool | None


def check_space(out: Path, size: int) -> None:
    """Raise where `out` exists already, or the disk has less than `size` bytes left.

    Raises:
        ResultError: With what is free.
    """
    check_out(out)
    parent = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise ResultError(f"cannot write {out}: it needs {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; give --out on another disk")


def write_weights(folder: Path, plan: Sequence[Step], base: Full, host: Held, donor: Held, cuts: Cuts) -> tuple[TensorNote, ...]:
    """Write the base's files anew, with every tensor of the plan.

    The files are copied as they are, so names, order, sharding and index are the base's; then the bytes of each tensor that is
    not the base's are put over its own. Not more than a tensor is held at a time.

    Returns:
        A note for every tensor, stored or tied.
    """
    copy_weights(folder, base)
    notes = {}
    for step in plan:
        for stored, content in contents(step, host, donor, base, cuts):
            changed = False
            if content is not stored:  # else it is there already
                pieces = chunks(content) if isinstance(content, Stored) else tensor_bytes(content)
                changed = overwrite(folder / stored.file.name, stored, pieces)
            notes[stored.name] = TensorNote(stored.name, step.component, step.layer, step.source, step.why, changed)
    notes |= ignored_notes(base)
    if notes.keys() != base.checkpoint.tensors.keys():
        odd = sorted(notes.keys() ^ base.checkpoint.tensors.keys())
        raise ResultError(f"{len(odd)} tensors were written twice or never, for example {odd[0]}")
    return (*(notes[name] for name in base.checkpoint.tensors), *tied_notes(base))


def copy_weights(folder: Path, base: Full) -> None:
    """The base's files of weights, as they are."""
    for file in base.checkpoint.files:
        shutil.copyfile(file, folder / file.name)
    if base.checkpoint.files[0].name != SINGLE:
        shutil.copyfile(base.folder / INDEX, folder / INDEX)


def ignored_notes(base: Full) -> dict[str, TensorNote]:
    return {s.name: TensorNote(s.name, None, None, "base", "transformers does not read it", False) for s in base.layout.ignored}


def tied_notes(base: Full) -> tuple[TensorNote, ...]:
    tied = {name: first for name, first in base.skeleton.tied.items() if name not in base.checkpoint.tensors}
    return tuple(TensorNote(name, "unembed", None, f"tied to {first}", "it is not stored", None) for name, first in tied.items())


def tensor_bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    for piece in flat.split(CHUNK):
        yield memoryview(piece.numpy())


def overwrite(file: Path, stored: Stored, pieces: Iterable[bytes | memoryview]) -> bool:
    """Put bytes over a tensor's; says whether they were others."""
    changed, at = False, stored.start
    with file.open("r+b") as opened:
        for piece in pieces:
            opened.seek(at)
            if opened.read(len(piece)) != piece:
                changed = True
                opened.seek(at)
                opened.write(piece)
            at += len(piece)
    if at != stored.start + stored.length:
        raise ResultError(f"{stored.name} takes {stored.length} bytes in {file.name}, and {at - stored.start} were written")
    return changed


def copy_settings(folder: Path, base: Full, host: Held, tokenizer: Path) -> None:
    """Everything of a checkpoint that is no weight: the host's configuration, the pair's tokenizer, the base's licence.

    Args:
        folder: Written into.
        base: The base.
        host: The recipe's host; an adapter has its base's configuration.
        tokenizer: The folder that brings the tokenizer.
    """
    settings = host.base.folder if isinstance(host, Merged) else host.folder
    for source, patterns in (
        (settings, ("config.json", *(["*.py"] if base.skeleton.trust_remote_code else []))),
        (settings if (settings / "generation_config.json").is_file() else base.folder, ("generation_config.json",)),
        (tokenizer, TOKENIZER),
        (base.folder, TERMS),
    ):
        for pattern in patterns:
            for file in sorted(source.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)


def write_notes(folder: Path, notes: Sequence[TensorNote]) -> None:
    """tensors.json: every tensor once, with where it comes from."""
    lines = [{"name": n.name, "from": n.source} | _rest(n) for n in notes]
    (folder / "tensors.json").write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n", encoding="utf-8")


def _rest(note: TensorNote) -> dict[str, object]:
    rest = {"why": note.why or None, "component": note.component, "layer": note.layer, "differs from base": note.changed}
    return {key: value for key, value in rest.items() if value is not None}
