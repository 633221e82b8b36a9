"""The card of an export: what it is, where every part of it comes from, and how that was verified."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taia_lens.export.verify import Verified
from taia_lens.export.write import TensorNote
from taia_lens.results import versions


@dataclass(frozen=True)
class Provenance:
    """What a card says of where an export comes from; names and hashes, and no path of the machine that made it.

    Attributes:
        recipe: Its text.
        base: Folder name or Hub id.
        tuned: The same.
        form: `checkpoint` or `adapter`.
        files: sha256 of every file of weights that was read, by side and name.
        command: The command line that makes it again.
        notes: What a reader may not expect.
    """

    recipe: str
    base: str
    tuned: str
    form: str
    files: dict[str, str]
    command: str
    notes: tuple[str, ...]


def command_line(recipe: str, base: str, tuned: str, out: Path, form: str, verified: bool) -> str:
    """The command that makes an export again.

    >>> command_line("base; graft attn <- tuned", "b", "t", Path("/x/out"), "checkpoint", True)
    "taia-lens graft --recipe 'base; graft attn <- tuned' --base b --tuned t --out out"
    """
    words = ["taia-lens", "graft", "--recipe", recipe, "--base", base, "--tuned", tuned, "--out", out.name]
    return shlex.join([*words, *(["--as", form] if form != "checkpoint" else []), *([] if verified else ["--no-verify"])])


OWN_WORDS = ("base", "tuned", "dropped", "folded", "new")


def counts(notes: Sequence[TensorNote]) -> dict[tuple[str, str], int]:
    """How many tensors come from where, by component: one of `OWN_WORDS`, `blended` (of base and tuned), `not stored`."""
    found: Counter[tuple[str, str]] = Counter()
    for note in notes:
        kind = "not stored" if note.changed is None else note.source if note.source in OWN_WORDS else "blended"
        found[note.component or "other", kind] += 1
    return dict(found)


def card(provenance: Provenance, notes: Sequence[TensorNote], verified: Verified | None) -> str:
    """README.md of a graft, as Markdown."""
    p = provenance
    what = (
        "A graft: one model's weights, with some of them taken from its fine-tuned version. Loads in transformers like any checkpoint."
        if p.form == "checkpoint"
        else f"A LoRA adapter of {p.base} that has only some of the modules of another one. Loads in peft like any adapter."
    )
    rows = {"recipe": f"`{p.recipe}`", "base": p.base, "tuned": p.tuned, "made by": f"`{p.command}`", "verified": _proof(verified)}
    return page(p.recipe, what, (p.base, p.tuned), rows, notes, p.notes, p.files)


def _proof(verified: object) -> str:
    return str(verified or "no (--no-verify): nothing was loaded and compared")


def page(
    title: str,
    what: str,
    sources: Sequence[str],
    rows: Mapping[str, str],
    tensors: Sequence[TensorNote],
    notes: Sequence[str],
    files: Mapping[str, str],
) -> str:
    """README.md, as Markdown.

    Args:
        title: The heading.
        what: A sentence on what it is.
        sources: Folder names and Hub ids of the models that it was made from.
        rows: Facts, by name.
        tensors: Counted by where they come from.
        notes: What a reader may not expect.
        files: sha256 of every file that was read, by name.
    """
    table = counts(tensors)
    hub = [name for name in sources if name.count("/") == 1]
    kinds = list(dict.fromkeys(kind for _, kind in table))
    counted = [f"| {c} | " + " | ".join(str(table.get((c, k), 0)) for k in kinds) + " |" for c in dict.fromkeys(c for c, _ in table)]
    lines = [
        *["---", *(["base_model:", *(f"- {name}" for name in hub)] if hub else []), "tags:", "- taia-lens", "---", ""],
        *[f"# {title}", "", what, "", "| | |", "|---|---|"],
        *(f"| {name} | {text} |" for name, text in rows.items()),
        *["", "Tensors, by where they come from (`tensors.json` lists every one):", ""],
        *["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|", *counted, ""],
        *(f"Note: {note}\n" for note in notes),
        *["Read from:", "", *(f"- {name}: sha256 `{digest}`" for name, digest in files.items()), ""],
        "With " + ", ".join(f"{name} {version}" for name, version in _versions().items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _versions() -> Mapping[str, str]:
    wanted = ("taia-lens", "torch", "transformers", "transformer-lens", "peft", "safetensors")
    return {name: version for name, version in versions().items() if name in wanted}
