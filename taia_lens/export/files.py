"""Checkpoints on disk: which files hold them, where each tensor's bytes lie, and reading them one at a time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taia_lens.errors import PairError
from taia_lens.loading.models import LOAD_ERRORS, Options, first_line, locate
from taia_lens.scales import is_scales

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "*.jinja",
)  # fmt: skip
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of safetensors: those that weights may have. Others are quantised weights, or buffers."""

CHUNK = 4 * 2**20
"""Bytes that are held at a time where tensors are copied from file to file."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: its name there, and its bytes' place in a file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors, in the order in which they are stored.

    Attributes:
        folder: Where it lies.
        files: Those that transformers would load.
        tensors: By name.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, Stored]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def folder_of(source: str | Path, side: str, *, trust_remote_code: bool) -> Path:
    """The local folder of a checkpoint or an adapter; a Hub id is downloaded, or found in the local cache.

    Raises:
        PairError: There is none, or its weights are no safetensors.
    """
    if not isinstance(source, (str, Path)):
        raise PairError(f"{side} is a {type(source).__name__} in memory; export reads files: save it, and give the folder or a Hub id")
    local = Path(source).expanduser()
    if is_scales(source):
        raise PairError(
            f"{side} {source} holds scales of activations, which are no weights to copy; write base with them folded in: "
            f"taia-lens lofit export {source} --base BASE --out OUT"
        )
    if local.is_dir() and is_adapter(local):
        return local.resolve()
    # Pickles are let through here so that the refusal below can be the one that fits.
    name = locate(source, Options("cpu", "auto", allow_pickle=True, trust_remote_code=trust_remote_code))
    folder = local.resolve() if local.is_dir() else _snapshot(name)
    if not is_adapter(folder) and not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise PairError(
            f"{side} {source} holds no {SINGLE} and no {INDEX}; export reads safetensors only: load it and save_pretrained, "
            f"which writes them, and give that folder"
        )
    return folder


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def _snapshot(name: str) -> Path:
    """Download what is needed of a Hub repository, or find it in the cache; the weights that transformers would load, no others."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.py", *TOKENIZER, *TERMS]))
        shards = sorted(set(_index(folder).values())) if (folder / INDEX).is_file() else [SINGLE, ADAPTER_WEIGHTS]
        return Path(snapshot_download(name, allow_patterns=shards))
    except LOAD_ERRORS as error:
        raise PairError(
            f"{name} is no folder here and could not be had from the Hub ({first_line(error)}); check the name, and the network"
        ) from error


def label(source: str | Path) -> str:
    """The name of a folder, or the Hub id: what a card may say of a source without giving away this machine's paths."""
    local = Path(source).expanduser()
    return local.resolve().name if local.is_dir() else str(source)


def open_checkpoint(folder: Path, side: str) -> Checkpoint:
    """Read the headers of a checkpoint's files.

    Raises:
        PairError: A file is missing or damaged, or its index and its files do not agree.
    """
    if (folder / SINGLE).is_file():
        files, index = [folder / SINGLE], None
    else:
        index = _index(folder)
        files = [folder / name for name in sorted(set(index.values()))]
    tensors: dict[str, Stored] = {}
    for file in files:
        for stored in _header(file):
            if stored.name in tensors:
                raise PairError(f"{side}: {stored.name} is stored twice, in {tensors[stored.name].file.name} and in {file.name}")
            tensors[stored.name] = stored
    if index is not None:
        odd = sorted({name for name, s in tensors.items() if index.get(name) != s.file.name} | (index.keys() - tensors.keys()))
        if odd:
            raise PairError(f"{side}: {INDEX} and the files do not agree about {len(odd)} tensors, for example {odd[0]}")
    return Checkpoint(folder, tuple(files), tensors)


def _index(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairError(f"cannot read {folder / INDEX}: {first_line(error)}; the file is damaged") from error


def _header(file: Path) -> Iterator[Stored]:
    try:
        # The library checks the header and the file's length; the places of the bytes it does not tell.
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(opened.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise PairError(f"cannot read {file}: {first_line(error)}; the file is missing, damaged or cut short") from error
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        yield Stored(name, file, entry["dtype"], tuple(entry["shape"]), 8 + size + start, end - start)


def read(stored: Stored) -> Tensor:
    """The tensor itself.

    Raises:
        PairError: Its dtype is none that weights have.
    """
    if stored.dtype not in DTYPES:
        raise PairError(f"{stored.name} is stored as {stored.dtype}, which is no dtype of plain weights; dequantise the model first")
    data = bytearray(stored.length)
    with stored.file.open("rb") as opened:
        opened.seek(stored.start)
        opened.readinto(data)
    if not math.prod(stored.shape):
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    return torch.frombuffer(data, dtype=DTYPES[stored.dtype]).view(stored.shape)


def chunks(stored: Stored) -> Iterator[bytes]:
    """The tensor's bytes, a few at a time."""
    with stored.file.open("rb") as opened:
        opened.seek(stored.start)
        left = stored.length
        while left:
            data = opened.read(min(CHUNK, left))
            left -= len(data)
            yield data


def equal(a: Stored, b: Stored) -> bool:
    """Whether two stored tensors are the same bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(x == y for x, y in zip(chunks(a), chunks(b), strict=True))


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while data := opened.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
