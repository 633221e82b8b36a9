"""Results: a labelled Dataset in, a labelled Dataset out. Provenance, saving, loading, summaries. Imports no torch."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from taia_lens.errors import ResultError
from taia_lens.metric_names import METRICS
from taia_lens.suite import Row, Suite

VERSIONED = (
    "taia-lens",
    "torch",
    "transformer-lens",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "numpy",
    "scipy",
    "xarray",
    "plotly",
)


def patch_dataset(
    host: np.ndarray,
    donor: np.ndarray,
    patched: np.ndarray,
    noise: np.ndarray,
    *,
    metrics: tuple[str, ...],
    coords: Mapping[str, tuple],
    suite: Suite,
    attrs: Mapping[str, Any],
    tokens: Sequence[str] = (),
) -> xr.Dataset:
    """Put a patching study's numbers under their names; one value per (metric, site[, pos], example).

    Where `coords` has `pos`, `tokens` says for each position what stands there in all prompts, empty where they differ.
    """
    ends = ("metric", "example")
    data = {
        "host": (ends, host),
        "donor": (ends, donor),
        "patched": (("metric", *coords, "example"), patched),
        "noise": (("metric",), noise),
    }
    labels = {
        "metric": list(metrics),
        "unit": ("metric", [METRICS[name].unit for name in metrics]),
        **{name: list(values) for name, values in coords.items()},
        "example": [row.id for row in suite.rows],
        **_texts(suite.rows),
    } | ({"token": ("pos", list(tokens))} if tokens else {})
    return xr.Dataset(data, labels, dict(attrs) | {"versions": versions()})


def suite_coords(suites: Sequence[Suite], metrics: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The metrics of several suites, each once, and the coords of all their examples, one suite after the other."""
    rows = [(suite, row) for suite in suites for row in suite.rows]
    coords = {
        "example": [f"{suite.name}/{row.id}" for suite, row in rows],
        "suite": ("example", [suite.name for suite, _ in rows]),
        **_texts([row for _, row in rows]),
    }
    return tuple(dict.fromkeys(name for names in metrics for name in names)), coords


def _texts(rows: Sequence[Row]) -> dict[str, Any]:
    """What is kept of each example besides its id: a colleague who opens the run folder has no suite."""
    texts = {name: ("example", np.array([getattr(row, name) for row in rows], dtype=object)) for name in ("prompt", "answer")}
    return {"domain": ("example", [row.domain for row in rows])} | texts


def metric_coords(names: Sequence[str]) -> dict[str, Any]:
    """The coords of a `metric` dim: each one's name, its unit, and which way is better."""
    return {
        "metric": list(names),
        "unit": ("metric", [METRICS[name].unit for name in names]),
        "better": ("metric", [METRICS[name].better for name in names]),
    }


def spread(names: Sequence[str], metrics: Sequence[tuple[str, ...]], values: Sequence[np.ndarray]) -> np.ndarray:
    """Values (metric, example) of several suites as one array over all metrics and examples; NaN where a metric does not apply."""
    out = np.full((len(names), sum(v.shape[1] for v in values)), np.nan)
    start = 0
    for own, block in zip(metrics, values, strict=True):
        for i, name in enumerate(own):
            out[names.index(name), start : start + block.shape[1]] = block[i]
        start += block.shape[1]
    return out


def versions() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return dict(_versions())


@cache  # reading them takes longer than a small cell, and every cell's key holds them
def _versions() -> dict[str, str]:
    out = {"python": sys.version.split()[0]}
    for name in VERSIONED:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def summary(result: xr.Dataset) -> xr.Dataset:
    """Means, effects, recovered fractions and their 95% paired intervals of a patching result: `summaries.patch_summary`.

    Args:
        result: What `studies.patching.patch` returned.
    """
    # By name, when called: summaries stand above results, and import them.
    found: xr.Dataset = import_module("taia_lens.summaries.patching").patch_summary(result)
    return found


def save(result: xr.Dataset, path: str | Path) -> None:
    r"""Write a result as netCDF; attrs that are no plain text or number are kept as JSON.

    HDF5 ends a text at its NUL, a character that a model can write: it is kept as the four characters `\x00`.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    attrs = {k: v if isinstance(v, (str, int, float)) else "json:" + json.dumps(v) for k, v in result.attrs.items()}
    # To memory first: where HDF5 itself cannot write, it raises a RuntimeError of its own, and crashes when Python ends.
    content = io.BytesIO()
    with h5netcdf.File(content, "w") as handle:
        _without_nul(result.assign_attrs(attrs)).dump_to_store(H5NetCDFStore(handle))
    Path(path).write_bytes(content.getbuffer())


def _without_nul(result: xr.Dataset) -> xr.Dataset:
    texts = {name: v for name, v in result.variables.items() if v.dtype.kind in "OU" and any("\0" in str(t) for t in v.values.flat)}
    escaped = {
        name: v.copy(data=np.array([str(t).replace("\0", "\\x00") for t in v.values.flat], object).reshape(v.shape))
        for name, v in texts.items()
    }
    return result.assign(escaped)


def load(path: str | Path) -> xr.Dataset:
    """Read a result: a file, or the run folder that holds it.

    Raises:
        ResultError: There is none, or the file is damaged.
    """
    path = Path(path)
    path = path / "result.nc" if path.is_dir() else path
    try:
        result = xr.load_dataset(path, engine="h5netcdf")
    except FileNotFoundError as error:
        raise ResultError(f"no result at {path}; give a run folder (its path is what the command printed), or its result.nc") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot read {path}: {error}; the file is damaged or no result") from error
    return result.assign_attrs({name: _as_it_was(value) for name, value in result.attrs.items()})


def _as_it_was(value: Any) -> Any:
    """An attr as it was before `save`; netCDF gives numbers back as numpy's, which JSON does not take."""
    if isinstance(value, str) and value.startswith("json:"):
        return json.loads(value[5:])
    return value.item() if isinstance(value, np.generic) else value


def check_out(out: Path) -> None:
    """Refuse, before anything is computed, a run folder that exists or cannot be written.

    Raises:
        ResultError: It exists, or its parent cannot be written.
    """
    if out.exists():
        raise ResultError(f"{out} exists; give another --out, or move it away: a run never overwrites another")
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise ResultError(f"cannot write {out}: {parent} is a file, not a folder; give another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResultError(f"cannot write {out}: no permission in {parent}; give a folder of yours with --out")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder, whole or not at all: what the block writes goes to a folder beside it, which is renamed at the end.

    Raises:
        ResultError: It exists, or cannot be written; nothing is left behind.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise ResultError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        yield partial
        # mkdtemp makes the folder private, safetensors its files: a colleague may read what the umask lets them read.
        mask = _umask()
        for path in (partial, *partial.rglob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        partial.rename(out)
    except OSError as error:
        raise ResultError(f"cannot write {out}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_run(out: Path, result: xr.Dataset, meta: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]) -> Path:
    """Write a run folder, whole or not at all: everything goes to a folder beside it, which is renamed at the end.

    Args:
        out: The run folder; must not exist.
        result: Written as `result.nc`.
        meta: Written as `meta.json`.
        writers: Further files, by name.

    Raises:
        ResultError: It cannot be written; nothing is left behind.
    """
    with whole_folder(out) as partial:
        save(result, partial / "result.nc")
        (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        for name, write in writers.items():
            write(partial / name)
    return out


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
