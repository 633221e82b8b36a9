"""Run folders read and held against each other: what a report may be made of, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from taia_lens import results
from taia_lens.errors import ResultError

NEEDS: dict[str, tuple[str, ...]] = {
    "compare": ("value", "recipe", "role", "prompt"),
    "layers": ("base", "vanilla", "part", "prompt"),
    "patch": ("host", "donor", "patched", "noise", "prompt"),
    "attribution": ("host", "donor", "patched", "noise", "prompt"),
    "heads": ("score", "se", "top", "replicates", "value", "edited", "numbers", "prompt"),
    "lofit-select": ("norm", "relative", "effect", "scale"),
    "transfer": ("norm", "top", "value", "base", "tuned_on", "prompt"),
    "steering": ("value", "validated", "chosen", "numbers", "prompt"),
    "adapters": ("value", "numbers", "n_sites", "prompt"),
    "lofit-paper": ("value", "base", "of_fold", "numbers"),
    "anatomy": ("ratio", "share", "effective_rank", "component", "part"),
    "drift": ("residual", "cka", "chance", "prompt"),
    "lens": ("logprob", "rank", "top", "entropy"),
    "attention": ("pattern", "query", "key"),
}
"""What is read of each study's result, in the order in which a report shows the studies."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder: its name, the result, and what meta.json holds."""

    name: str
    result: xr.Dataset
    meta: dict[str, Any]

    @property
    def study(self) -> str:
        return str(self.result.attrs["study"])

    @property
    def fingerprint(self) -> dict[str, str] | str:
        """The content hashes of both sides, or of the one model."""
        return self.result.attrs["fingerprint"]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read run folders, in the order in which a report shows them.

    Raises:
        ResultError: None was given, one is missing, damaged or of another version, or two are of different models.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ResultError("a report is made of run folders, and none was given; write taia-lens report RUN...")
    twice = next((path for i, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:i]]), None)
    if twice is not None:
        raise ResultError(f"{twice} was given twice; name each run folder once")
    runs = [_read(path) for path in paths]
    _check_one_pair(runs)
    return sorted(runs, key=lambda run: list(NEEDS).index(run.study))


def _read(path: Path) -> Run:
    result, meta = results.load(_result_file(path)), _meta(path)
    study, version = result.attrs.get("study"), result.attrs.get("versions", {}).get("taia-lens", "of no known version")
    again = f"run its command again: {meta['command']}"
    if study not in NEEDS:
        raise ResultError(f"{path} holds a result of the study {study}, and a report knows {', '.join(NEEDS)}; leave it out")
    missing = [name for name in NEEDS[study] if name not in result.variables] + ["fingerprint"] * ("fingerprint" not in result.attrs)
    if missing:
        here = results.versions()["taia-lens"]
        raise ResultError(f"{path} was written by another version ({version}; this is {here}): its result has no {missing[0]}; {again}")
    if 0 in result.sizes.values():
        raise ResultError(f"the result in {path} is empty: it has no {next(d for d, n in result.sizes.items() if not n)}; leave it out")
    return Run(path.resolve().name, result, meta)


def _result_file(path: Path) -> Path:
    if not path.exists():
        raise ResultError(f"no run folder {path}; its path is what the command printed")
    if not path.is_dir():
        raise ResultError(f"{path} is a file; give the run folder, which holds result.nc and meta.json")
    if not (path / "result.nc").is_file():
        inside = sorted(p.parent.name for p in path.glob("*/result.nc"))
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        hint = f"; it holds run folders: {', '.join(inside[:3])}{more}; name them" if inside else "; a study writes one with --out"
        raise ResultError(f"{path} is no run folder of a study: it holds no result.nc{hint}")
    return path / "result.nc"


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultError(f"{path} holds no meta.json, which says how its numbers were made; give a whole run folder") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot read {path / 'meta.json'}: {error}; the file is damaged") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("command"), str):
        raise ResultError(f"{path / 'meta.json'} does not say by which command; the file is damaged or of another program")
    return meta


def _check_one_pair(runs: Sequence[Run]) -> None:
    """A report answers one question about one pair; runs of its base or tuned side alone may stand beside it."""
    of_pairs = [run for run in runs if isinstance(run.fingerprint, dict)]
    first = (of_pairs or runs)[0]
    known = list(first.fingerprint.values()) if isinstance(first.fingerprint, dict) else [first.fingerprint]
    for run in runs:
        same = run.fingerprint == first.fingerprint if isinstance(run.fingerprint, dict) else run.fingerprint in known
        if not same:
            raise ResultError(
                f"{first.name} is of {models_of(first)}, and {run.name} of {models_of(run)}, whose weights are others; "
                "a report is of one pair: write one for each"
            )


def models_of(run: Run) -> str:
    """The models that a run is of, in words."""
    a = run.result.attrs
    return f"{a['base']} and {a['tuned']}, {dtype_of(run)}" if "tuned" in a else f"{a['model']}, {dtype_of(run)}"


def dtype_of(run: Run) -> str:
    """The dtype of the weights, as meta.json has it."""
    return str(run.meta["pair"]["origin"]["dtype"] if "pair" in run.meta else run.meta["model"]["dtype"])
