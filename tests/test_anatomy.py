"""The update's anatomy finds what was planted: sizes, ranks, and where the update lies in the weight it changes."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import component_of, make, tuned_from
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from taia_lens import plots, results, tables
from taia_lens.errors import TaiaLensError
from taia_lens.loading import load_pair
from taia_lens.pair import Pair, relative_updates
from taia_lens.studies.anatomy import NO_LAYER, anatomy

Run = Callable[..., tuple[int, str, str]]
Plant = Callable[[Tensor], Tensor]


def rotation(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Random orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))).Q


def planted(name: str, plants: dict[str, Plant], tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A pair in which the weights that match a pattern are changed by a function of themselves, as (out, in) matrices."""
    base = make(name, 0)
    tuned = copy.deepcopy(base)
    turned = {id(p) for m in tuned.modules() if type(m).__name__ == "Conv1D" for p in m.parameters()}
    for pattern, plant in plants.items():
        (weight,) = (p for n, p in tuned.named_parameters() if re.search(pattern, n))
        view = weight.data.T if id(weight) in turned and weight.ndim == 2 else weight.data
        view += plant(view)
    return load_pair(base, tuned, tokenizer=tokenizer)


def even(rank: int, size: float = 0.5) -> Plant:
    """An update of so many equal singular values in random directions."""
    return lambda w: size * rotation(w.shape[-2], rank, 1) @ rotation(w.shape[-1], rank, 2).T


def only(result: xr.Dataset, i: int = 0) -> xr.Dataset:
    return result.isel(weight=i)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_planted_rank_is_found(rank: int, tokenizer: PreTrainedTokenizerBase) -> None:
    pair = planted("llama", {"layers.1.*down_proj": even(rank), "layers.2.*q_proj": lambda w: torch.eye(32)}, tokenizer)
    found = anatomy(pair)
    assert sorted(found.layer.values.tolist()) == [1, 2]
    down = found.isel(weight=found.part.values.tolist().index("down"))
    assert (down.component.item(), int(down.layer), int(down.rows), int(down.cols)) == ("mlp", 1, 32, 48)
    assert int(down["rank"]) == rank
    np.testing.assert_allclose([down.effective_rank, down.stable_rank], rank, rtol=1e-4)
    np.testing.assert_allclose(down.update_norm, 0.5 * rank**0.5, rtol=1e-5)
    whole = found.isel(weight=found.part.values.tolist().index("q"))
    assert int(whole["rank"]) == 32 and float(whole.effective_rank) == pytest.approx(32)  # a control: not everything is of low rank
    assert int(whole.directions) == 16 and int(down.directions) == rank


def test_uneven_singular_values_give_a_rank_in_between(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = torch.tensor([4.0, 2.0, 1.0, 1.0])
    pair = planted("llama", {"layers.0.*o_proj": lambda w: rotation(32, 4, 1) * sizes @ rotation(32, 4, 2).T}, tokenizer)
    found = only(anatomy(pair))
    p = sizes / sizes.sum()
    assert float(found.effective_rank) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-5)
    assert float(found.stable_rank) == pytest.approx(22 / 16, rel=1e-5)
    assert int(found["rank"]) == 4 and int(found.directions) == 3


FIRST_O = {
    "llama": "layers.0.self_attn.o_proj.weight",
    "gpt2": "h.0.attn.c_proj.weight",  # inputs first
    "neox": "layers.0.attention.dense.weight",
}


def along(side: str) -> Plant:
    """Four of the weight's own leading directions, on both sides or on one; random ones on the other."""

    def plant(w: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(w, full_matrices=False)
        out = rotation(w.shape[0], 4, 1) if side == "in" else u[:, :4]
        return out @ (rotation(w.shape[1], 4, 2) if side == "out" else v[:4].T).T

    return plant


@pytest.mark.parametrize("name", FIRST_O)
def test_an_update_along_the_weights_own_directions_is_seen_on_the_right_side(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for side in ("both", "out", "in"):
        found = only(anatomy(planted(name, {FIRST_O[name]: along(side)}, tokenizer)))
        assert (found.component.item(), found.part.item(), int(found.layer), int(found.directions)) == ("attn", "o", 0, 4)
        for end in ("out", "in"):
            overlap = float(found[f"overlap_{end}"])
            assert overlap == pytest.approx(1, abs=1e-3) if side in ("both", end) else overlap < 0.5, (side, end)


def test_random_directions_overlap_as_often_as_chance_says(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    found = anatomy(load_pair(base, tuned_from(base, 5), tokenizer=tokenizer), most=4)
    of = found.isel(weight=found.effective_rank.notnull().values)
    for end in ("out", "in"):
        assert len(set(of[f"chance_{end}"].values)) > 1
        # 23 matrices: the mean of the differences has a standard error of about 0.01.
        assert abs(float((of[f"overlap_{end}"] - of[f"chance_{end}"]).mean())) < 0.03
    np.testing.assert_allclose(of.chance_out.values, 4 / of.rows.values)


def test_numbers_are_those_of_a_singular_value_decomposition(pair: Pair, name: str) -> None:
    """Every architecture; every number again, by another way to it."""
    found = anatomy(pair)
    tensors = {s: {n.replace("._original_component", ""): p for n, p in pair.side(s).named_parameters()} for s in ("base", "tuned")}
    seen = 0
    for i in range(found.sizes["weight"]):
        one = only(found, i)
        base, tuned = (tensors[side][one.weight.item()].double() for side in ("base", "tuned"))
        update = tuned - base
        np.testing.assert_allclose(one.ratio, update.norm() / base.norm(), rtol=1e-9)
        if base.ndim != 2:
            continue
        (u, s, v), (u0, s0, v0) = (torch.linalg.svd(m, full_matrices=False) for m in (update, base))
        p, r = s / s.sum(), int(one.directions)
        np.testing.assert_allclose(one.effective_rank, (-(p * p.log()).sum()).exp(), rtol=1e-6)
        np.testing.assert_allclose(one.spectral_ratio, s[0] / s0[0], rtol=1e-6)
        np.testing.assert_allclose(one.stable_rank, (s**2).sum() / s[0] ** 2, rtol=1e-6)
        sides = [float((a.T @ b).square().sum() / r) for a, b in ((u[:, :r], u0[:, :r]), (v[:r].T, v0[:r].T))]
        turned = (int(one.rows), int(one.cols)) != tuple(base.shape) or sides[0] != pytest.approx(float(one.overlap_out), rel=1e-5)
        wanted = sides[::-1] if turned else sides
        np.testing.assert_allclose([one.overlap_out, one.overlap_in], wanted, rtol=1e-5)
        assert turned <= (name == "gpt2" or one.component.item() == "embed")
        seen += 1
    assert seen >= 14


def test_shares_add_up_to_the_whole_update_and_fused_weights_count_once(pair: Pair) -> None:
    found = anatomy(pair)
    assert float(found.share.sum()) == pytest.approx(1)
    total = sum(d.update_norm**2 for d in pair.differences)
    np.testing.assert_allclose((found.update_norm**2).sum(), total, rtol=1e-9)
    assert not any(name.endswith("qkv.weight") for name in found.weight.values)
    mine = found.isel(weight=np.flatnonzero((found.component.values == "attn") & (found.layer.values == 1)))
    ratio = float((mine.update_norm**2).sum() / (mine.base_norm**2).sum()) ** 0.5
    assert ratio == pytest.approx(relative_updates(pair)["attn", 1], rel=1e-6)


def test_vectors_have_a_size_and_no_rank(llama: Pair) -> None:
    found = anatomy(llama)
    norms = found.isel(weight=np.flatnonzero(found.component.values == "norms"))
    assert norms.sizes["weight"] == 7 and (norms.ratio > 0).all() and norms.effective_rank.isnull().all()
    assert norms.layer.values.tolist().count(NO_LAYER) == 1 and (norms.rows == 1).all()


def test_experts_are_measured_one_by_one(tokenizer: PreTrainedTokenizerBase) -> None:
    def in_one_expert(w: Tensor) -> Tensor:
        out = torch.zeros_like(w)
        out[2] = even(2)(w[2])
        return out

    found = only(anatomy(planted("mixtral", {"layers.1.*experts.down_proj": in_one_expert}, tokenizer)))
    assert (int(found.experts), int(found.rows), int(found.cols), int(found["rank"])) == (4, 32, 48, 2)
    assert float(found.effective_rank) == pytest.approx(2, rel=1e-4)  # of the one that changed; three of zero would halve it


def test_rounding_to_bfloat16_does_not_hide_a_low_rank(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    tuned = copy.deepcopy(base)
    tuned.model.layers[0].mlp.up_proj.weight.data += even(3, 2.0)(tuned.model.layers[0].mlp.up_proj.weight.data)
    narrow = load_pair(base.bfloat16(), tuned.bfloat16(), tokenizer=tokenizer)
    found = only(anatomy(narrow))
    assert int(found["rank"]) == 3
    wide = only(anatomy(load_pair(base.float(), tuned.float(), tokenizer=tokenizer)))
    assert int(wide["rank"]) == 32  # the same numbers, taken for exact ones


def test_a_base_weight_of_zeros_has_no_ratio_and_no_directions(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    base.model.layers[0].self_attn.v_proj.weight.data.zero_()
    found = only(anatomy(load_pair(base, tuned_from(base, 1, "layers.0.*v_proj"), tokenizer=tokenizer)))
    assert np.isinf(found.ratio) and np.isinf(found.spectral_ratio) and np.isnan(found.overlap_out)
    (record,) = tables.anatomy_records(found.expand_dims("weight"))
    assert record["ratio"] is None and json.dumps(record, allow_nan=False)


def test_no_directions_is_an_error_in_words(llama: Pair) -> None:
    with pytest.raises(TaiaLensError, match="0 directions compare nothing; write 1 or more"):
        anatomy(llama, most=0)


def test_it_is_drawn_and_tabled_and_comes_back_from_disk(pair: Pair, tmp_path: Path) -> None:
    found = anatomy(pair)
    results.save(found, tmp_path / "a.nc")
    xr.testing.assert_identical(results.load(tmp_path / "a.nc"), found)
    figure = plots.anatomy_figure(found)
    assert [trace.type for trace in figure.data] == ["heatmap"] * 4 and "share of its squared norm: " in figure.layout.title.subtitle.text
    inside = found.effective_rank.notnull() & (found.layer >= 0)
    assert np.isfinite(np.array(figure.data[1].z, dtype=float)).sum() == int(inside.sum())
    console = Console(width=140, file=io.StringIO())
    for table in tables.anatomy_tables(found):
        console.print(table)
    text = console.file.getvalue()
    assert "all attn" in text and "by layer" in text and "…" not in text
    assert len(tables.anatomy_records(found)) == found.sizes["weight"]


def test_biases_stand_apart_from_their_matrices(pair_of: Callable[[str], Pair]) -> None:
    console = Console(width=140, file=io.StringIO())
    for table in tables.anatomy_tables(anatomy(pair_of("qwen2"))):
        console.print(table)
    lines = {line.split()[0] + (" bias" if " bias " in line else ""): line for line in console.file.getvalue().splitlines() if line.strip()}
    assert lines["attn.q"].split()[1] == "3" and lines["attn.q bias"].split()[2] == "3" and "attn.o bias" not in lines


def test_an_update_of_norms_alone_is_drawn_too(tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    found = anatomy(load_pair(base, tuned_from(base, 1, "norm"), tokenizer=tokenizer))
    assert set(found.component.values) == {"norms"}
    (bars,) = plots.anatomy_figure(found).data
    assert bars.type == "bar" and len(bars.y) == 7
    tables.anatomy_tables(found)


def test_the_command_writes_a_run_folder_and_finds_the_demo_adapters_rank(run: Run) -> None:
    code, out, err = run("anatomy", "--json", "--out", "here")
    assert code == 0 and "mlp.down" in err and "all attn" in err and "run folder: here" in err
    assert sorted(p.name for p in Path("here").iterdir()) == ["figure.html", "meta.json", "result.nc"]
    assert json.loads(Path("here/meta.json").read_text())["command"] == "taia-lens anatomy --json --out here"
    found = json.loads(out)["results"]
    assert len(found) == 112 and {weight["rank"] for weight in found} == {16}
    assert max(weight["effective_rank"] for weight in found) < 16
    assert run("anatomy", "--most", "0")[0] == 2


def test_every_weight_of_a_model_has_a_component_here_as_elsewhere(llama: Pair) -> None:
    found = anatomy(llama)
    for name, component in zip(found.weight.values.tolist(), found.component.values.tolist(), strict=True):
        assert component_of(name) == component
