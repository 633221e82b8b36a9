"""Scales: (1 + gain) * activation + offset at some sites. What LoFiT, ITI, RepE and RED leave behind, as one small value.

Kept as a folder of kilobytes, scales.safetensors and scales.json. Holds no model; the engine applies it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from taia_lens.errors import PairError, ResultError, SiteError
from taia_lens.loaded import Loaded, Shape
from taia_lens.results import whole_folder
from taia_lens.sites import PATCHABLE, Site, parse_sites

CONFIG, WEIGHTS = "scales.json", "scales.safetensors"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Scales:
    """What is done to the activation at each site: (1 + gain) * activation + offset, at every position.

    Attributes:
        sites: Distinct, and all of one component: heads (their z), or the outputs of attn or mlp, or the residual stream.
        gain: A of LoFiT (arXiv 2406.01563); zero leaves the activation's scale as it is. d_head wide at heads, else d_model.
        offset: v of LoFiT, in the activation's own unit.
        made: Where it came from: method, model, data, settings.
    """

    sites: tuple[Site, ...]
    gain: Float[Tensor, "site width"]
    offset: Float[Tensor, "site width"]
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sites:
            raise SiteError("scales need a site; name one, for example L3.h5")
        if len({site.component for site in self.sites}) > 1 or self.component not in PATCHABLE:
            raise SiteError(f"scales are at sites of one component of {', '.join(PATCHABLE)}; found {self.sites[0]} and others")
        if len(set(self.sites)) < len(self.sites):
            twice = next(site for site in self.sites if self.sites.count(site) > 1)
            raise SiteError(f"{twice} is named twice; name each site once")

    @property
    def component(self) -> str:
        return self.sites[0].component

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({site.layer for site in self.sites if site.layer is not None}))

    @property
    def numbers(self) -> int:
        """How many numbers it holds: those of the gains, if any is not zero, and those of the offsets."""
        return sum(t.numel() for t in (self.gain, self.offset) if bool(t.detach().any()))

    @property
    def key(self) -> str:
        """Hash of the sites and the numbers, not of where they came from."""
        digest = hashlib.blake2b(" ".join(map(str, self.sites)).encode(), digest_size=16)
        for tensor in (self.gain, self.offset):
            digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.sites[:4])) + (", ..." if len(self.sites) > 4 else "")
        return f"Scales({len(self.sites)} sites: {shown}; {self.numbers} numbers)"


def width(shape: Shape, component: str) -> int:
    """Numbers that an activation of the component has at one position: of one head, or of the whole output."""
    return shape.d_head if component == "head" else shape.d_model


def check_fits(scales: Scales, model: Loaded, *, other_model: bool = False) -> None:
    """Raise where scales cannot be, or were not made to be, applied to a model.

    Args:
        scales: Whose sites and width count, and whose `made` may name the fingerprint of their model.
        model: The model.
        other_model: Accept a model of the same shape that they were not made for.

    Raises:
        SiteError, PairError: A site or width that the model does not have, or another model.
    """
    name, shape = scales.made.get("model", "another model"), model.shape
    for site in scales.sites:
        if (site.layer or 0) >= shape.n_layers or (site.head or 0) >= shape.n_heads:
            found = f"{model.name} has {shape.n_layers} layers of {shape.n_heads} heads"
            raise SiteError(f"the scales (of {name}) name {site}, and {found}; give the model that they were made for")
    want = width(shape, scales.component)
    if scales.gain.shape[1] != want:
        raise PairError(
            f"the scales (of {name}) are {scales.gain.shape[1]} wide, and {scales.component} of {model.name} is {want} wide; "
            "give the model that they were made for"
        )
    if not other_model and not _same_weights(scales.made, model):
        raise PairError(
            f"the scales were made for {name}, whose weights are not those of {model.name}; give that model, "
            "or say that another is meant: --other-model (other_model=True)"
        )


def _same_weights(made: Mapping[str, Any], model: Loaded) -> bool:
    """Whether the model has the weights that scales were made on; True where nothing tells."""
    if made.get("dtype") == model.dtype:
        return made.get("fingerprint") in (None, model.fingerprint)
    # float16 rounds elsewhere than bfloat16 does, so that rounding both to bfloat16 says nothing.
    if "float16" in (made.get("dtype"), model.dtype):
        return True
    return made.get("rounded") in (None, model.rounded)


def save_scales(out: str | Path, scales: Scales) -> Path:
    """Write a folder, whole or not at all.

    Args:
        out: The folder; must not exist. `load_scales` reads it, and `load_pair` takes it as `tuned`.
        scales: What it will hold.

    Raises:
        ResultError: It exists, or cannot be written.
    """
    out = Path(out)
    with whole_folder(out) as partial:
        write_scales(partial, scales)
    return out


def write_scales(folder: Path, scales: Scales) -> None:
    """The two files, into a folder that is there."""
    tensors = {"gain": scales.gain, "offset": scales.offset}
    save_file({name: t.detach().float().contiguous().cpu() for name, t in tensors.items()}, folder / WEIGHTS)
    head = {"format": FORMAT, "sites": [str(site) for site in scales.sites], "made": dict(scales.made)}
    (folder / CONFIG).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")


def load_scales(folder: str | Path) -> Scales:
    """Read a folder that `save_scales` wrote.

    Raises:
        ResultError: There is none, or it is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ResultError(f"no folder {folder}; give one that 'taia-lens lofit fit' wrote")
    if (folder / "adapter_config.json").is_file():
        raise ResultError(f"{folder} is a PEFT adapter and no scales; give it as --tuned, or merge it: taia-lens graft")
    try:
        head = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        if head["format"] != FORMAT:
            raise ResultError(f"{folder} holds scales of format {head['format']}, and this taia-lens reads format {FORMAT}")
        sites = tuple(site for text in head["sites"] for site in parse_sites(text))
        scales = Scales(sites, tensors["gain"], tensors["offset"], head["made"])
    except FileNotFoundError as error:
        raise ResultError(
            f"no scales in {folder}: it lacks {next((n for n in (CONFIG, WEIGHTS) if not (folder / n).is_file()), CONFIG)}; "
            "give what 'taia-lens lofit fit' wrote"
        ) from error
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError, KeyError, TypeError, OSError, SiteError) as error:
        raise ResultError(f"cannot read the scales in {folder}: {type(error).__name__}: {error}; the files are damaged") from error
    if scales.gain.shape != scales.offset.shape or scales.gain.shape[:1] != (len(sites),):
        raise ResultError(f"cannot read the scales in {folder}: {len(sites)} sites, gains {tuple(scales.gain.shape)}; it is damaged")
    if not all(bool(torch.isfinite(t).all()) for t in (scales.gain, scales.offset)):
        raise ResultError(f"the scales in {folder} hold NaN or inf; the files are damaged")
    return scales


def is_scales(folder: object) -> bool:
    """Whether it is the path of a folder of scales."""
    return isinstance(folder, (str, Path)) and (Path(folder).expanduser() / CONFIG).is_file()
