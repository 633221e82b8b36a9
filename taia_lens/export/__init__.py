"""A recipe as a checkpoint that any other tool loads. Reads files and writes files; holds no model but to verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from taia_lens.errors import PairError, RecipeError, TaiaLensError
from taia_lens.export import lora, plan, sides, skeleton
from taia_lens.export.card import Provenance, card, command_line
from taia_lens.export.donor import open_adapter
from taia_lens.export.files import ADAPTER_WEIGHTS, folder_of, is_adapter, label, sha256
from taia_lens.export.scales import ExportedScales, export_scales
from taia_lens.export.sides import Full, Held, Merged
from taia_lens.export.verify import Verified, verify
from taia_lens.export.write import TensorNote, check_space, copy_settings, write_notes, write_weights
from taia_lens.grafting import notes, resolve_sides
from taia_lens.loading.models import Options, resolve_device
from taia_lens.loading.tokenizers import compare_tokenizers, tokenizer_of
from taia_lens.pair import Difference, Origin, Pair, config_differences
from taia_lens.recipe import Recipe, Side
from taia_lens.recipe_text import named_recipe
from taia_lens.results import whole_folder

Form = Literal["checkpoint", "adapter"]
FORMS: tuple[Form, ...] = ("checkpoint", "adapter")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        recipe: With every side said.
        tensors: Where each tensor comes from; also in tensors.json.
        notes: What a reader may not expect; also in README.md.
        verified: What the verification found; None where it was left out.
    """

    folder: Path
    recipe: Recipe
    tensors: tuple[TensorNote, ...]
    notes: tuple[str, ...]
    verified: Verified | None


@dataclass(frozen=True, eq=False)
class _Opened:
    """Both sides, as files and without weights in memory."""

    base: Full
    tuned: Held
    tokenizer: PreTrainedTokenizerBase
    tokenizer_folder: Path
    notes: tuple[str, ...]

    def side(self, side: Side) -> Held:
        return self.base if side == "base" else self.tuned


@torch.no_grad()
def export_graft(
    base: str | Path,
    tuned: str | Path,
    recipe: Recipe | str,
    out: str | Path,
    *,
    norms: Side | None = None,
    embed: Side | None = None,
    form: Form = "checkpoint",
    verified: bool = True,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Exported:
    """Write the model that a recipe of grafts makes, as a checkpoint that any tool loads, or as a LoRA adapter.

    Tensors go from file to file one at a time, whatever the models' size; the verification loads both models. The names, shards
    and dtypes are the base's, config.json is the host's. README.md says where all came from, tensors.json lists every tensor.

    Args:
        base: A folder with safetensors, or a Hub id.
        tuned: The same, or a LoRA adapter of base.
        recipe: Grafts; or the text of some, or a name: base, vanilla, taia, taif.
        out: The folder to write; must not exist. It is whole or not there.
        norms: Whose norms taia and taif take; must be said where they differ.
        embed: Whose embeddings and unembedding.
        form: `adapter`, where tuned is one, keeps of it the modules that the recipe takes.
        verified: Load what was written in plain transformers and hold every weight and the logits against the live graft.
        device: Where adapters are merged and the verification runs.
        trust_remote_code: Also run modelling code that comes with a checkpoint.

    Raises:
        RecipeError: The recipe edits activations, names what there is not, takes tied embeddings from one side only, or cannot
            be said as an adapter.
        PairError: A side cannot be read, is quantised, or the two are no pair.
        CheckError: What was written is not the live graft; nothing is left behind.
        ResultError: It cannot be written; nothing is left behind.
    """
    out = Path(out)
    if form not in FORMS:
        raise TaiaLensError(f"no form {form!r} to write; there are {', '.join(FORMS)}")
    opened = _open(base, tuned, resolve_device(device), trust_remote_code)
    recipe = _said(recipe, opened, norms, embed) if isinstance(recipe, str) else recipe
    plan.check_recipe(recipe, opened.base.skeleton)
    todo = plan.steps(recipe, opened.base)
    check_space(out, opened.base.checkpoint.bytes if form == "checkpoint" else 0)
    with whole_folder(out) as folder:
        tensors = _write(folder, recipe, todo, opened, form)
        write_notes(folder, tensors)
        found = None
        if verified:
            found = verify(base, tuned, recipe, folder, adapter=form == "adapter", device=device, trust_remote_code=trust_remote_code)
        said = (*notes(recipe, opened.base.skeleton.shape), *opened.notes)
        command = command_line(str(recipe), label(base), label(tuned), out, form, verified)
        provenance = Provenance(str(recipe), label(base), label(tuned), form, _hashes(opened), command, said)
        (folder / "README.md").write_text(card(provenance, tensors, found), encoding="utf-8")
    return Exported(out, recipe, tensors, said, found)


def _open(base: str | Path, tuned: str | Path, device: str, trust_remote_code: bool) -> _Opened:
    folders = {side: folder_of(source, side, trust_remote_code=trust_remote_code) for side, source in (("base", base), ("tuned", tuned))}
    if is_adapter(folders["base"]):
        raise PairError(f"base {base} is an adapter; give its base model as base, and the adapter as tuned")
    options = Options(device, "auto", allow_pickle=False, trust_remote_code=trust_remote_code)
    tokenizers = {side: tokenizer_of(folder, side, options) for side, folder in folders.items()}
    added = compare_tokenizers(tokenizers["base"], tokenizers["tuned"])
    side, tokenizer = next(((s, t) for s, t in tokenizers.items() if t is not None), ("", None))
    if tokenizer is None:
        raise PairError("neither side brings a tokenizer; put the tokenizer's files into the base's folder")
    noted = [f"tuned's tokenizer has {len(added)} tokens that base's, which is written, has not"] if added else []
    bare = skeleton.build(folders["base"], "base", tokenizer, trust_remote_code=trust_remote_code)
    full = sides.open_full(folders["base"], "base", bare)
    held: Held
    if is_adapter(folders["tuned"]):
        held = Merged(full, open_adapter(folders["tuned"], bare, device))
    else:
        other = skeleton.build(folders["tuned"], "tuned", tokenizer, trust_remote_code=trust_remote_code)
        skeleton.same_model(bare, other)
        held = sides.open_full(folders["tuned"], "tuned", other)
        sides.check_dtypes(full, held)
        noted += [f"{text}; the host's stays" for text in config_differences(bare.lens, other.lens)]
    return _Opened(full, held, tokenizer, folders[side], tuple(noted))


def _said(text: str, opened: _Opened, norms: Side | None, embed: Side | None) -> Recipe:
    """The recipe of that text; taia and taif may leave unsaid whose norms and embeddings they take where these do not differ."""
    if text.strip().lower() not in ("taia", "taif"):
        return named_recipe(text)
    bare, asked = opened.base.skeleton, {"norms": norms, "embed": embed, "unembed": embed}
    unsaid = [w for w in bare.weights if not w.copy and w.component in asked and asked[w.component] is None]
    found = [w for w in unsaid if sides.differs(opened.base, opened.tuned, bare.parameter[w.name])]
    differences = tuple(Difference(w.name, w.component, w.layer, float("nan"), float("nan")) for w in found)
    pair = Pair(bare.lens, bare.lens, opened.tokenizer, Origin("", "", ""), differences, frozenset(w.name for w in found))
    norms, embed = resolve_sides(pair, norms, embed)
    return named_recipe(text, norms=norms, embed=embed)


def _write(folder: Path, recipe: Recipe, todo: list[plan.Step], opened: _Opened, form: Form) -> tuple[TensorNote, ...]:
    if form == "adapter":
        if not isinstance(opened.tuned, Merged):
            raise RecipeError("tuned is a checkpoint of its own, so there is no adapter to keep modules of; write --as checkpoint")
        return lora.write_adapter(folder, lora.kept_modules(recipe, todo, opened.tuned), todo, opened.tuned)
    host, donor = opened.side(recipe.host), opened.side("tuned" if recipe.host == "base" else "base")
    written = write_weights(folder, todo, opened.base, host, donor, plan.fused_indices(todo, opened.base.skeleton))
    copy_settings(folder, opened.base, host, opened.tokenizer_folder)
    return written


def _hashes(opened: _Opened) -> dict[str, str]:
    tuned = opened.tuned
    theirs = [tuned.folder / ADAPTER_WEIGHTS] if isinstance(tuned, Merged) else tuned.checkpoint.files
    files = [("base", file) for file in opened.base.checkpoint.files] + [("tuned", file) for file in theirs]
    return {f"{side}/{file.name}": sha256(file) for side, file in files}


__all__ = ["FORMS", "Exported", "ExportedScales", "Form", "TensorNote", "Verified", "export_graft", "export_scales"]
