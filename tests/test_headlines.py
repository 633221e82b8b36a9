"""The sentences above a result: numbers that are in it, of the cells that are strongest, and none of what is not told apart."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import taia_lens as tl
from taia_lens import results
from taia_lens.pair import Pair
from taia_lens.suite import Suite, make_suite
from taia_lens.summaries.headlines import headlines

N = 40


def scored(dims: dict[str, list], values: np.ndarray, **more: object) -> xr.Dataset:
    """A result with `value` (*dims, example) of one metric, half of its prompts in distribution."""
    rows = [{"prompt": f"p {i}", "answer": " a", "domain": "ood" if i % 2 else "id"} for i in range(N)]
    names, coords = results.suite_coords([make_suite("s", rows)], [("accuracy",)])
    coords |= results.metric_coords(names) | dims
    return xr.Dataset({"value": ((*dims, "example"), values), **more}, coords, {"seed": 0})


@pytest.mark.parametrize("study", ["compare", "layers", "attribution", "drift", "anatomy"])
def test_every_study_of_a_pair_has_something_to_say(study: str, llama: Pair, suite: Suite) -> None:
    made = {
        "compare": lambda: tl.compare(llama, suite, controls=tl.Controls(1, (0.5,)), norms="base", embed="base"),
        "layers": lambda: tl.layers(llama, suite, views=["alone"], metrics=["logprob"]),
        "attribution": lambda: tl.attribution(llama, suite, component="mlp", check=1),
        "drift": lambda: tl.drift(llama, suite, norms="base", embed="base"),
        "anatomy": lambda: tl.anatomy(llama),
    }[study]()
    said = headlines(made)
    assert said and all(sentence.endswith(".") for sentence in said)
    if study == "anatomy":
        assert any(sentence.startswith("mlp: 9 weights differ") for sentence in said)
    else:
        assert [sentence.split(" (")[0] for sentence in said] == ["In distribution", "Out of distribution"]
    assert headlines(made) == said and "not the whole" not in tl.show(made).text


def test_patching_names_the_strongest_sites_and_says_where_there_are_none() -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"p {i}", "answer": " a", "domain": "ood" if i % 2 else "id"} for i in range(N)]
    host, patched = rng.normal(size=N), np.zeros((1, 5, N))
    patched[:] = host
    for layer, change in ((1, 0.1), (2, 3.0), (3, -1.0), (4, 0.5)):
        patched[0, layer, 1::2] += change
    attrs = {"study": "patch", "host": "base", "donor": "tuned", "suite": "s", "seed": 0}
    coords = {"component": ("mlp",), "layer": tuple(range(5))}
    result = results.patch_dataset(
        host[None],
        host[None] + 4,
        patched[None],
        np.zeros(1),
        metrics=("logprob",),
        coords=coords,
        suite=make_suite("s", rows),
        attrs=attrs,
    )
    own, other = headlines(result)
    assert own.startswith("In distribution (s, logprob, n = 20): base has ") and own.endswith(
        "; patched one at a time, no site changes it."
    )
    assert "of 5 sites, patched one at a time, the strongest: L2.mlp +3.000 [+3.000, +3.000], 75% recovered, L3.mlp -1.000" in other
    assert "L4.mlp +0.500" in other and "L1.mlp" not in other


def test_layers_name_only_what_is_told_apart_from_zero() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 3, 2, N))
    noise[0, 1, 0] += 5
    blank = scored({"metric": ["accuracy"]}, np.zeros((1, N)))
    data = {"base": blank.value, "vanilla": blank.value + 1, "alone": (("metric", "layer", "part", "example"), noise)}
    result = xr.Dataset(data, blank.coords, {"seed": 0, "study": "layers"}).assign_coords(layer=range(3), part=["attn", "mlp"])
    for sentence in headlines(result):
        assert "vanilla - base is +1.000" in sentence and "alone, most: L1.attn +" in sentence and "mlp" not in sentence
    calm = result.assign(alone=result.alone - 5 * ((result.layer == 1) & (result.part == "attn")))
    assert all("alone: no part is told apart from 0" in sentence for sentence in headlines(calm))


def test_adapters_and_steering_are_held_against_the_model_itself() -> None:
    values = np.zeros((1, 2, N))
    values[0, 1, ::4] = 1
    numbers = {"numbers": ("model", [0, 8]), "n_sites": ("model", [0, 1])}
    adapters = scored({"metric": ["accuracy"], "model": ["base", "lofit"]}, values, **numbers).assign_attrs(study="adapters", seed=0)
    own, other = headlines(adapters.assign_coords(sites=("model", ["", "L0.h0"])))
    assert own.startswith("In distribution (s, accuracy, n = 20): base has 0.000, lofit 0.500 (+0.500 [")
    assert "lofit 0.000 (+0.000 [+0.000, +0.000])" in other

    steered = np.zeros((1, 2, 1, N))
    steered[0, 1, 0, 1::4] = 1
    more = {"validated": (("direction", "alpha", "row"), np.zeros((1, 2, 3)))}
    more |= {"chosen": ("direction", [5.0]), "numbers": ("direction", [16])}
    dims = {"direction": ["iti"], "alpha": [0.0, 5.0], "metric": ["accuracy"]}
    steering = scored(dims, steered, **more).assign_attrs(study="steering")
    assert "iti at alpha 5 has 0.500, +0.500 [" in headlines(steering)[1] and "+0.000" in headlines(steering)[0]


def test_a_study_without_sentences_has_none() -> None:
    assert headlines(xr.Dataset(attrs={"study": "rank"})) == []
