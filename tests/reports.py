"""Run folders for the tests of reports: results made by hand, so that no model is loaded, with texts that must be shown as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from taia_lens import results
from taia_lens.report.runs import Run

SCRIPT = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
PROMPTS = (
    f"{SCRIPT} is it",
    "法国的首都是什么？",
    "ما هي عاصمة فرنسا؟",
    'a "quoted" & <b>bold</b> one',
    "line one\nline two",
    "long " + "word " * 200,
)
PRINT = {"base": "b" * 32, "tuned": "c" * 32}
VERSIONS = {"python": "3.11", "taia-lens": "0.1.0", "torch": "2.9"}


def examples(n: int, suite: str | None = None) -> dict[str, Any]:
    """The coords of n examples, every other one out of distribution."""
    prompts = [PROMPTS[i] if i < len(PROMPTS) else f"prompt {i} of many" for i in range(n)]
    names = [f"row-{i}" if suite is None else f"{suite}/row-{i}" for i in range(n)]
    coords: dict[str, Any] = {"example": names, "domain": ("example", ["id" if i % 2 else "ood" for i in range(n)])}
    coords |= {
        "prompt": ("example", np.array(prompts, object)),
        "answer": ("example", np.array([f" answer {i}" for i in range(n)], object)),
    }
    return coords if suite is None else coords | {"suite": ("example", [suite] * n)}


def metrics(names: Sequence[str] = ("accuracy", "logprob")) -> dict[str, Any]:
    units = {"accuracy": "fraction", "logprob": "nats"}
    return {"metric": list(names), "unit": ("metric", [units[n] for n in names]), "better": ("metric", [1] * len(names))}


def about(study: str, **more: Any) -> dict[str, Any]:
    """What a study of a pair says of itself; the base is called by a tag."""
    models = {"base": f"models/{IMAGE}", "tuned": "models/tuned", "dtype": "float32", "device": "cpu", "fingerprint": PRINT}
    return {"study": study, "seed": 0, "batch_size": 8, "versions": VERSIONS} | models | more


def values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Accuracy and log-probability (metric, ...)."""
    logprob = rng.normal(-2, 1, shape)
    return np.stack([(logprob > -2).astype(float), logprob])


def patch_result(n: int = 24, layers: int = 3, suite: str = "capitals") -> xr.Dataset:
    rng = np.random.default_rng(0)
    labels = {"component": ("attn", "mlp"), "layer": tuple(range(layers))}
    ends = ("metric", "example")
    data = {"host": (ends, values(rng, n)), "donor": (ends, values(rng, n)), "noise": (("metric",), np.zeros(2))}
    data["patched"] = (("metric", *labels, "example"), values(rng, 2, layers, n))
    coords = examples(n) | metrics() | {k: list(v) for k, v in labels.items()}
    attrs = about("patch", host="base", donor="tuned", positions="all", suite=suite, suite_sha256="d" * 64)
    return xr.Dataset(data, coords, attrs).drop_vars("better")


def grid_result(n: int = 24, suite: str = "capitals", extra: str = "x0.5") -> xr.Dataset:
    rng = np.random.default_rng(1)
    recipes = ["base", "vanilla", "TAIA", "TAIF", f"update {extra}"]
    coords = examples(n, suite) | metrics(["accuracy"]) | {"recipe": recipes}
    coords |= {"role": ("recipe", ["end", "end", "named", "named", "control"]), "text": ("recipe", recipes)}
    data = {"value": (("metric", "recipe", "example"), values(rng, len(recipes), n)[:1])}
    coalitions = {"": "base", "attn": "TAIA", "mlp": "TAIF", "attn+mlp": "vanilla"}
    attrs = about("compare", norms="base", embed="base", attention_share=0.4, coalitions=coalitions, notes=["a note of the study"])
    return xr.Dataset(data, coords, attrs | {"suites": {suite: {"sha256": "d" * 64}}})


def generated_result(n: int = 24) -> xr.Dataset:
    """A grid whose answers were written: each recipe's text is kept."""
    grid = grid_result(n)
    texts = np.array([[f"{name} wrote {SCRIPT} {i}" for i in range(n)] for name in grid.recipe.values], dtype=object)
    return grid.assign(transcript=(("recipe", "example"), texts))


def layers_result(n: int = 24, layers: int = 2) -> xr.Dataset:
    rng = np.random.default_rng(2)
    base, vanilla = rng.integers(0, 2, (2, 1, n)).astype(float)
    parts, ends = ("metric", "layer", "part", "example"), ("metric", "example")
    alone = rng.integers(0, 2, (1, layers, 2, n)) - base[:, None, None]
    last = vanilla[:, None, None] - rng.integers(0, 2, (1, layers, 2, n))
    cumulated = rng.integers(0, 2, (1, 2, 3, layers, n)) - base[:, None, None, None]
    share = np.broadcast_to((vanilla - base)[:, None, None] / (2 * layers + 1), (1, layers, 2, n))
    data = {
        "base": (ends, base),
        "vanilla": (ends, vanilla),
        "alone": (parts, alone),
        "last": (parts, last),
        "shapley": (parts, share.copy()),
    }
    data |= {"cumulated": (("metric", "direction", "series", "layer", "example"), cumulated), "rest_alone": (ends, 0 * base)}
    data |= {"rest_last": (ends, 0 * base), "rest_shapley": (ends, share[:, 0, 0].copy())}
    data["pairs"] = (("pair", "metric", "layer", "part", "where"), rng.normal(0, 0.1, (2, 1, layers, 2, 2)))
    coords = examples(n, "capitals") | metrics(["accuracy"]) | {"layer": list(range(layers)), "part": ["attn", "mlp"]}
    coords |= {"where": ["capitals|id", "capitals|ood"]}
    attrs = about("layers", players="component", rest=1, notes=[], permutation_seed=0, evaluations=9, work=9.0)
    return xr.Dataset(data, coords, attrs | {"suites": {"capitals": {"sha256": "d" * 64}}})


def write(folder: Path, result: xr.Dataset, command: str | None = None) -> Path:
    """A run folder as a command writes it."""
    laws = [{"name": "base with every weight of tuned is tuned", "value": 0.0, "bound": 1e-6, "holds": True}]
    report = {"merge_drift": None, "added_tokens": [], "tokenizer": "one for both", "notes": ["a note on the pair"], "laws": laws}
    origin = {name: result.attrs.get(name, "") for name in ("base", "tuned", "dtype")}
    pair = {"origin": origin, "fingerprint": result.attrs["fingerprint"], "report": report | {"plain_because": ""}, "tensors_differing": 7}
    meta: dict[str, Any] = {"command": command or f"taia-lens {result.attrs['study']} --suite '{SCRIPT}.jsonl' --out {folder.name}"}
    meta |= {"created": "2026-01-02T03:04:05+00:00", "seconds": 1.5, "seed": 0, "versions": VERSIONS}
    one = {"name": result.attrs.get("model", ""), "dtype": "float32", "fingerprint": result.attrs["fingerprint"]}
    meta |= {"pair": pair} if "tuned" in result.attrs else {"model": one}
    meta |= {"suites": [{"name": "capitals", "asked": None, "sha256": "d" * 64, "rows": {"id": 12, "ood": 12}}]}
    return results.write_run(folder, result, json.loads(json.dumps(meta)), {})


def as_run(result: xr.Dataset) -> Run:
    """A result as the report reads it."""
    return Run("run", result, {})
