"""Steering: ITI's and RepE's directions added to a model, by strength, beside what LoFiT learns, on the same prompts.

ITI (Li et al., arXiv 2306.03341) adds alpha * sigma * theta to z at some heads; RepE (Zou et al., arXiv 2310.01405) adds a
direction to the residual stream after some layers. Both are fitted and not trained, so their strength has to be chosen: it
is, on validation rows, and what is reported is on the test rows. A random direction of the same length is the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from taia_lens import results
from taia_lens.errors import SiteError, SuiteError, TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit import heads_of, how_many, top_heads
from taia_lens.metric_names import METRICS
from taia_lens.rankers import Options, directions, iti_scales, repe_directions, repe_scales
from taia_lens.scales import Scales, check_fits
from taia_lens.scoring import Prepared, check_suites, metrics_of, model_attrs, prepare_suite, score_many_scales, suites_attr
from taia_lens.sites import Site, select
from taia_lens.store import CellStore
from taia_lens.suite import Suite

METHODS = {"iti": "probe", "iti-mass-mean": "mass-mean", "repe": "pca", "repe-mean": "mean"}
"""What steers, and the kind of direction that it is fitted with."""

# In standard deviations along the direction: at a few heads many are needed (the paper's 15 and 20), in the whole stream few.
ALPHAS = {"iti": (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0), "repe": (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)}
HELD_OUT = 0.2  # of the training rows, to choose alpha on, as in ITI's code


def steer(
    model: Loaded,
    train: Suite,
    suites: Suite | Sequence[Suite],
    *,
    validation: Suite | None = None,
    method: str = "iti",
    k: str | float | int = "3%",
    heads: Sequence[Site] | None = None,
    layers: str | int | Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    arms: Mapping[str, Scales] | None = None,
    controls: int = 3,
    folds: int = 5,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    store: CellStore | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Steer a model by a direction at several strengths, and score it on every prompt.

    Args:
        model: Nothing of it is changed.
        train: Rows with right and wrong answers, of the domain `id`: the direction is fitted on these.
        suites: The test prompts.
        validation: Rows that alpha is chosen on; where None, a fifth of `train`, drawn with `seed`, which nothing is fitted on then.
        method: `iti` (a probe's weight), `iti-mass-mean` (difference of the means), `repe` (first principal component of the
            differences of pairs) or `repe-mean`.
        k: ITI: how many heads, `16` or `3%`, those whose probe is most accurate on rows held out.
        heads: ITI: these heads instead.
        layers: RepE: after which layers; the middle half where None.
        alphas: Strengths, in standard deviations of the activations along the direction; 0, the model itself, is always there;
            None for up to 30 at heads, and up to 5 in the residual stream.
        arms: Further scales on the same prompts, by name: what LoFiT learnt.
        controls: How many random directions of the same length, at the same sites.
        folds: Of the training rows, for the probes' accuracy.
        metrics: Names from `metric_names.METRICS`; where None, the main one of each suite's task.
        batch_size: Rows at a time; it changes speed, not results.
        seed: Of the split, the folds, the random directions and the bootstrap.
        store: Where finished cells are kept and found.
        progress: Show a bar.

    Returns:
        `value` (direction, alpha, metric, example), the first direction being the fitted one; `validated` (direction, alpha, row)
        by the metric `chosen_by`; `chosen` (direction), the alpha with the best mean there, the smallest of equal ones;
        `arm_value` (arm, metric, example); `numbers`, how many numbers each holds. `summaries.steering_summary` gives intervals.

    Raises:
        TaiaLensError and its kinds: Something asked for does not exist, or does not fit.
    """
    _check(method, heads, layers, controls, arms or {})
    strengths = _strengths(ALPHAS[method.partition("-")[0]] if alphas is None else alphas)
    chosen_suites = check_suites([suites] if isinstance(suites, Suite) else list(suites))
    fitted_on, judged_on = _split(train, validation, seed)
    _check_apart(judged_on, chosen_suites)
    for scales in (arms or {}).values():
        check_fits(scales, model)
    tests = tuple(prepare_suite(model, suite, metrics_of(suite, metrics), batch_size) for suite in chosen_suites)
    judge = prepare_suite(model, judged_on, metrics_of(judged_on, metrics)[:1], batch_size)
    unit = _unit(model, fitted_on, method, k, heads, layers, Options(batch_size=batch_size, seed=seed, folds=folds), progress)
    steered = {method: unit} | {f"random {i}": _shuffled(unit, seed, i) for i in range(controls)}
    with tqdm(desc="steer", unit="piece", leave=False, disable=not progress) as bar:
        swept = _sweep(model, steered, strengths, (judge, *tests), store, bar)
        scored = score_many_scales(model, list((arms or {}).values()), tests, store=store, bar=bar)
    others = {name: [s.values for s in scores] for name, scores in zip(arms or {}, scored, strict=True)}
    found = _Found(swept, others, {name: scales.numbers for name, scales in {**steered, **(arms or {})}.items()})
    attrs = _attrs(model, unit, method, (train, fitted_on, judged_on), judge.metrics[0], tests, validation is None)
    return _dataset(found, strengths, tests, judge).assign_attrs(
        attrs | {"batch_size": batch_size, "seed": seed, "versions": results.versions()}
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """Values by direction, alpha and suite (the first suite being the validation rows); by arm and suite; numbers of each."""

    swept: Mapping[str, Sequence[Sequence[np.ndarray]]]
    others: Mapping[str, Sequence[np.ndarray]]
    numbers: Mapping[str, int]


def _dataset(found: _Found, strengths: Sequence[float], tests: Sequence[Prepared], judge: Prepared) -> xr.Dataset:
    metrics = [p.metrics for p in tests]
    names, coords = results.suite_coords([p.suite for p in tests], metrics)
    validated = np.stack([[values[0][0] for values in line] for line in found.swept.values()])
    data: dict[str, Any] = {
        "value": (
            ("direction", "alpha", "metric", "example"),
            np.stack([[results.spread(names, metrics, values[1:]) for values in line] for line in found.swept.values()]),
        ),
        "validated": (("direction", "alpha", "row"), validated),
        "chosen": ("direction", [_best(line, strengths, judge.metrics[0]) for line in validated]),
        "numbers": ("direction", [found.numbers[name] for name in found.swept]),
    }
    labels: dict[str, Any] = coords | {
        **results.metric_coords(names),
        "direction": list(found.swept),
        "alpha": list(strengths),
        "row": [row.id for row in judge.suite.rows],
    }
    if found.others:
        data["arm_value"] = (("arm", "metric", "example"), np.stack([results.spread(names, metrics, v) for v in found.others.values()]))
        data["arm_numbers"] = ("arm", [found.numbers[name] for name in found.others])
        labels["arm"] = list(found.others)
    return xr.Dataset(data, labels)


def _check(method: str, heads: Sequence[Site] | None, layers: object, controls: int, arms: Mapping[str, Scales]) -> None:
    if method not in METHODS:
        raise TaiaLensError(f"no method {method!r} to steer by; there are {', '.join(METHODS)}")
    is_iti = method.startswith("iti")
    if is_iti and layers is not None:
        raise SiteError(f"{method} is at heads, and layers were named; name heads (or their number k), or steer by repe")
    if not is_iti and heads is not None:
        raise SiteError(f"{method} is in the residual stream, and heads were named; name layers, or steer by iti")
    if controls < 0:
        raise TaiaLensError(f"{controls} random directions are none; write 0 or more")
    taken = next((name for name in arms if name == method or name.startswith("random ")), None)
    if taken is not None:
        raise TaiaLensError(f"the scales called {taken!r} have the name of a direction; give them another")


def _strengths(alphas: Sequence[float]) -> tuple[float, ...]:
    found = sorted({0.0, *(float(a) for a in alphas)})
    if not all(np.isfinite(found)):
        raise TaiaLensError(f"alpha must be a number, found {', '.join(map(str, alphas))}; write numbers with commas between: 1,5,15")
    if len(found) < 2:
        raise TaiaLensError("no alpha but 0, which is the model itself; write some: 1, 5, 15")
    return tuple(found)


def _split(train: Suite, validation: Suite | None, seed: int) -> tuple[Suite, Suite]:
    """Rows to fit the direction on, and rows to choose alpha on: both in distribution only."""
    own = _in_distribution(train)
    if validation is not None:
        judge, known = _in_distribution(validation), {row.prompt for row in own.rows}
        shared = sum(row.prompt in known for row in judge.rows)
        if shared:
            raise SuiteError(
                f"alpha would be chosen on {shared} prompts of {validation.name} that the direction is fitted on; give other rows"
            )
        return own, judge
    prompts = list(dict.fromkeys(row.prompt for row in own.rows))
    n = round(HELD_OUT * len(prompts))
    if not n or n == len(prompts):
        raise SuiteError(
            f"the suite {train.name} has {len(prompts)} prompts in distribution, and a fifth is held out; give more, or a validation suite"
        )
    held = {prompts[i] for i in np.random.default_rng(seed).choice(len(prompts), n, replace=False)}
    fit, judge_rows = (tuple(row for row in own.rows if (row.prompt in held) == side) for side in (False, True))
    return replace(own, rows=fit), replace(own, name=f"{own.name} (held out)", rows=judge_rows)


def _in_distribution(suite: Suite) -> Suite:
    rows = tuple(row for row in suite.rows if row.domain == "id")
    if not rows:
        raise SuiteError(f"the suite {suite.name} has no row of the domain id, and directions and alpha come from those; give one that has")
    return replace(suite, rows=rows)


def _check_apart(judged_on: Suite, tests: Sequence[Suite]) -> None:
    """What alpha is chosen on must not be what is reported."""
    seen = {(row.prompt, row.answer) for row in judged_on.rows}
    for suite in tests:
        if all((row.prompt, row.answer) in seen for row in suite.rows):
            raise SuiteError(f"alpha would be chosen on the rows of {suite.name}, which are reported; give other rows as validation")


def _unit(
    model: Loaded,
    train: Suite,
    method: str,
    k: str | float | int,
    heads: Sequence[Site] | None,
    layers: str | int | Sequence[int] | None,
    options: Options,
    progress: bool,
) -> Scales:
    """The scales of alpha 1: one standard deviation along the direction, at every site."""
    n = model.shape.n_layers
    if method.startswith("repe"):
        wanted = select(range(n // 4, max(n // 4 + 1, 3 * n // 4)) if layers is None else layers, n, "layer")
        stream = repe_directions(model, train, METHODS[method], options=options, progress=progress)
        scales = repe_scales(stream, wanted, 1.0)
        return replace(scales, offset=stream.sigma[list(wanted), None] * scales.offset)
    number = how_many(str(k), len(heads_of(model)))
    found = directions(model, train, METHODS[method], options=options, progress=progress)
    ranked = top_heads(xr.DataArray(found.accuracy.numpy(), dims=("layer", "head")), number)
    return iti_scales(found, ranked if heads is None else heads, 1.0)


def _shuffled(unit: Scales, seed: int, number: int) -> Scales:
    """A random direction at every site, as long as the fitted one there."""
    generator = torch.Generator().manual_seed(seed * 100_003 + number)
    drawn = torch.randn(unit.offset.shape, generator=generator)
    length = unit.offset.norm(dim=-1, keepdim=True)
    return Scales(unit.sites, unit.gain, length * drawn / drawn.norm(dim=-1, keepdim=True), {"method": "random"})


def _sweep(
    model: Loaded, steered: Mapping[str, Scales], alphas: Sequence[float], prepared: Sequence[Prepared], store: CellStore | None, bar: tqdm
) -> dict[str, list[list[np.ndarray]]]:
    """Values by direction, alpha and suite; alpha 0 is scored once, and is the model as it is."""
    strong = [alpha for alpha in alphas if alpha != 0]
    asked = [None, *(replace(unit, offset=alpha * unit.offset) for unit in steered.values() for alpha in strong)]
    base, *scored = [[s.values for s in scores] for scores in score_many_scales(model, asked, prepared, store=store, bar=bar)]
    rest = iter(scored)
    return {name: [base if alpha == 0 else next(rest) for alpha in alphas] for name in steered}


def _best(validated: np.ndarray, alphas: Sequence[float], metric: str) -> float:
    """The alpha with the best mean on the validation rows; of equal ones the smallest."""
    mean = METRICS[metric].better * validated.mean(-1)
    return min((a for a, m in zip(alphas, mean, strict=True) if m >= mean.max() - 1e-12), key=abs)


def _rows(suite: Suite) -> dict[str, Any]:
    """What an attr keeps of a suite."""
    return {"name": suite.name, "sha256": suite.sha256, "rows": len(suite)}


def _attrs(
    model: Loaded, unit: Scales, method: str, rows: tuple[Suite, Suite, Suite], metric: str, tests: Sequence[Prepared], held_out: bool
) -> dict[str, Any]:
    train, fitted_on, judged_on = rows
    seen = {(row.prompt, row.answer) for row in (*train.rows, *judged_on.rows)}
    overlap = sum((row.prompt, row.answer) in seen for p in tests for row in p.suite.rows)
    notes = [f"{overlap} of the test prompts are also among the rows that the direction or alpha came from"] if overlap else []
    return model_attrs(model) | {
        "study": "steering",
        "method": method,
        "sites": " ".join(map(str, unit.sites)),
        "chosen_by": metric,
        "fitted_on": _rows(fitted_on),
        "validated_on": _rows(judged_on) | {"held_out_of_train": held_out},
        "suites": suites_attr(tests),
        "notes": notes,
    }
