"""Further tensors for a checkpoint that is written already: the biases of a slot that its config opens. They start as zeros."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_lens.export.files import CHUNK, DTYPES, INDEX


@dataclass(frozen=True)
class Vector:
    """A vector of zeros: its dtype in safetensors' words, and its length."""

    dtype: str
    length: int

    @property
    def bytes(self) -> int:
        return self.length * DTYPES[self.dtype].itemsize


def append_zeros(file: Path, new: Mapping[str, Vector]) -> None:
    """Make a file of safetensors anew with these vectors after its own tensors, whose order and bytes stay; and its index, if any."""
    size, header = _header(file)
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    start = end
    for name, vector in new.items():
        header[name] = {"dtype": vector.dtype, "shape": [vector.length], "data_offsets": [start, start + vector.bytes]}
        start += vector.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to begin at a multiple of 8
    longer = file.with_suffix(".longer")
    with file.open("rb") as old, longer.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        old.seek(8 + size)
        shutil.copyfileobj(old, out, CHUNK)
        out.write(bytes(start - end))
    longer.replace(file)
    _list(file, new)


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return size, json.loads(opened.read(size))


def _list(file: Path, new: Mapping[str, Vector]) -> None:
    path = file.parent / INDEX
    if path.is_file():
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"] |= dict.fromkeys(new, file.name)
        metadata = index.get("metadata") or {}
        if "total_size" in metadata:
            index["metadata"] = metadata | {"total_size": metadata["total_size"] + sum(vector.bytes for vector in new.values())}
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
