"""Activations kept on disk: safetensors files and an index keyed by model, tokens and site. Reads back what it wrote, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taia_lens.batch import Batch
from taia_lens.engine.run import Run, run_plain
from taia_lens.errors import ResultError
from taia_lens.pair import Pair
from taia_lens.recipe import Side

_LOGITS = "logits"


@dataclass(frozen=True)
class ActivationStore:
    """A folder of activations of unedited models. A key of another model, batch or site never answers."""

    folder: Path

    def run(self, pair: Pair, side: Side, batch: Batch, hooks: Sequence[str]) -> Run:
        """What `run_plain` gives, read from disk where all of it is there, else computed and kept.

        Raises:
            ResultError: The folder cannot be written, or a file in it is damaged.
        """
        keys = {hook: "|".join((pair.fingerprint[side], batch.key, hook)) for hook in (_LOGITS, *hooks)}
        index = self._index()
        if set(keys.values()) <= set(index):
            return self._read(index, keys, str(pair.device))
        run = run_plain(pair.side(side), batch, hooks)
        self._write(index, keys, run)
        return run

    def _index(self) -> dict[str, str]:
        path = self.folder / "index.json"
        if not path.exists():
            return {}
        try:
            index = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ResultError(f"{path} is damaged ({error.msg}); remove the folder {self.folder} to start afresh") from error
        if not isinstance(index, dict):
            raise ResultError(f"{path} is damaged (no object); remove the folder {self.folder} to start afresh")
        return index

    def _read(self, index: dict[str, str], keys: dict[str, str], device: str) -> Run:
        tensors = {}
        for hook, key in keys.items():
            path = self.folder / index[key]
            try:
                with safe_open(path, framework="pt", device=device) as handle:
                    tensors[hook] = handle.get_tensor(hook)
            except (OSError, SafetensorError) as error:
                raise ResultError(f"{path} is damaged or missing ({error}); remove the folder {self.folder} to start afresh") from error
        return Run(tensors.pop(_LOGITS), tensors)

    def _write(self, index: dict[str, str], keys: dict[str, str], run: Run) -> None:
        import hashlib

        name = hashlib.blake2b("".join(sorted(keys.values())).encode(), digest_size=12).hexdigest() + ".safetensors"
        tensors = {hook: tensor.contiguous() for hook, tensor in (run.acts | {_LOGITS: run.logits}).items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{name}.{os.getpid()}.partial"
            save_file(tensors, partial)
            partial.replace(self.folder / name)
            # The index is replaced last and whole: a stop in between leaves a file that nothing names, never a wrong one.
            partial = self.folder / f"index.{os.getpid()}.partial"
            partial.write_text(json.dumps(index | {key: name for key in keys.values()}, indent=0))
            partial.replace(self.folder / "index.json")
        except (OSError, SafetensorError) as error:
            raise ResultError(f"cannot keep activations in {self.folder}: {error}") from error
