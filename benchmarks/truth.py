"""Heads on the demo base's truth task: LoFiT against LoRA, its grafts, RED, ITI, random and bottom heads; and on routing, where it fails.

Run: python benchmarks/truth.py [--out FOLDER] [--seeds N]. Trains what it needs (about half an hour on 2 cores), keeps every
finished cell in FOLDER, and writes benchmarks/truth.md. Nothing here knows what ought to come out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from safetensors.torch import load_file
from tqdm.auto import tqdm

from taia_lens import lofit, stats, summaries
from taia_lens.demo import BASE, FOLDER, TUNED, demo_suite
from taia_lens.demo.measure import routing_suite
from taia_lens.demo.world import World, routing_question
from taia_lens.loaded import Loaded
from taia_lens.loading import load_one, load_pair
from taia_lens.pair import Pair
from taia_lens.rankers import Options
from taia_lens.recipe import Recipe, taia, taif
from taia_lens.scales import Scales, load_scales
from taia_lens.scoring import prepare_suite, score_many_scales, score_recipes
from taia_lens.store import CellStore, open_store
from taia_lens.studies.heads import heads
from taia_lens.studies.steering import steer
from taia_lens.suite import Suite, make_suite
from taia_lens.summaries.heads import lines as heads_lines
from taia_lens.tuning.run import tune
from taia_lens.tuning.settings import Settings

EPOCHS, BATCH = 10, 16
SELECT = replace(lofit.select_settings(1), epochs=EPOCHS, batch_size=BATCH)
TUNE = replace(lofit.tune_settings(1), epochs=EPOCHS, batch_size=BATCH)
LORA = Settings(r=8, alpha=16, dropout=0.0, lr=2e-3, epochs=20, batch_size=64, micro_batch=64)
RED = Settings(red=True, epochs=EPOCHS, batch_size=BATCH, micro_batch=BATCH)
BY = ("lofit", "lofit-relative", "lofit-offset", "iti", "patch", "graft", "atp", "update")
CHECKED = ("lofit", "iti", "patch")
SHARES = ("3%", "10%")
ALPHAS = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)


@dataclass(frozen=True, eq=False)
class Line:
    """A method: how many numbers it trains (or takes), and its accuracy by prompt, one row a seed."""

    name: str
    numbers: int
    values: np.ndarray


def adapters(out: Path, settings: Settings, name: str, seeds: Sequence[int]) -> list[Path]:
    """One tuning run a seed; those that are there are not made again."""
    folders = [out / f"{name}-{seed}" for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        if not folder.exists():
            tune(BASE, FOLDER / "suites" / "truth-train.jsonl", folder, replace(settings, seed=seed))
    return folders


def grafted(out: Path, suite: Suite, seeds: Sequence[int], store: CellStore) -> Iterator[Line]:
    """LoRA on all projections, and its halves."""
    recipes = {
        "LoRA r 8, all projections": Recipe("tuned"),
        "  its attention only (TAIA)": taia(norms="base", embed="base"),
        "  its FFN only (TAIF)": taif(norms="base", embed="base"),
    }
    folders = adapters(out, LORA, "lora", seeds)
    pairs = [load_pair(BASE, folder) for folder in folders]
    for (name, recipe), part in zip(recipes.items(), ("", "self_attn", "mlp"), strict=True):
        yield Line(name, trained(folders[0], part), np.stack([scored(pair, recipe, suite, store) for pair in pairs]))


def trained(adapter: Path, part: str) -> int:
    """How many numbers a LoRA adapter has in the modules whose name holds `part`."""
    return sum(tensor.numel() for name, tensor in load_file(adapter / "adapter_model.safetensors").items() if part in name)


def scored(subject: Pair | Loaded, what: Recipe | Scales | None, suite: Suite, store: CellStore, metric: str = "accuracy") -> np.ndarray:
    prepared = [prepare_suite(subject, suite, (metric,), 128)]
    with tqdm(disable=True) as bar:
        if isinstance(subject, Pair):
            assert isinstance(what, Recipe)
            (found,) = score_recipes(subject, [what], prepared, store=store, bar=bar)
        else:
            assert not isinstance(what, Recipe)
            (found,) = score_many_scales(subject, [what], prepared, store=store, bar=bar)
    return found[0].values[0]


def arms_of(result: xr.Dataset) -> Iterator[Line]:
    """The bench's arms, those that differ in their seed together."""
    for line in heads_lines(result):
        if line.check:
            found = result.value.sel(metric="accuracy").isel(arm=line.arms)
            yield Line(line.name, int(result.numbers.values[line.arms[0]]), found.values)


def row(line: Line, base: np.ndarray, domains: np.ndarray) -> str:
    cells = []
    for domain in ("id", "ood"):
        values = line.values[:, domains == domain]
        mean = values.mean(0)
        low, high = stats.mean_interval(mean, seed=0)
        gain = mean - base[domains == domain]
        least, most = values.mean(1).min(), values.mean(1).max()
        cells.append(f"{mean.mean():.3f} [{float(low):.3f}, {float(high):.3f}] ({least:.3f}-{most:.3f})")
        p = float(stats.sign_flip_p(gain, seed=0)) if gain.any() else 1.0
        cells.append(f"{gain.mean():+.3f} ({'p < .001' if p < 0.001 else f'p = {p:.3f}'})" if gain.any() else "-")
    return f"| {line.name} | {line.numbers:,} | {cells[0]} | {cells[2]} | {cells[3]} |"


def table(lines: Sequence[Line], base: np.ndarray, domains: np.ndarray) -> list[str]:
    head = "| method | numbers | in distribution (over seeds) | out of distribution (over seeds) | OOD less base |"
    return [head, "|---|---|---|---|---|", *(row(line, base, domains) for line in lines)]


def truth(out: Path, seeds: Sequence[int], store: CellStore) -> list[str]:
    train, test = demo_suite("truth-train"), demo_suite("truth")
    domains = np.array([r.domain for r in test.rows])
    model = load_one(BASE)
    base = scored(model, None, test, store)
    lines = [Line("base", 0, base[None]), *grafted(out, test, seeds, store)]
    red = [load_scales(folder) for folder in adapters(out, RED, "red", seeds)]
    lines.append(Line("RED (every FFN output)", red[0].numbers, np.stack([scored(model, s, test, store) for s in red])))
    pair = load_pair(BASE, out / "lora-0")
    options = Options(selecting=SELECT, tuning=TUNE)
    ranked = heads(pair, train, test, by=BY, k=SHARES[0], check=(), draws=0, seeds=seeds, options=options, store=store, progress=True)
    text = []
    for share in SHARES:
        found = heads(
            pair, train, test, by=CHECKED, k=share, check=("offsets", "graft"), draws=3, seeds=seeds, options=options, settings=TUNE,
            store=store, progress=True,
        )  # fmt: skip
        k = found.attrs["k"]
        lines += [replace(line, name=f"{line.name}, {k} heads" if "all heads" not in line.name else line.name) for line in arms_of(found)]
        swept = [steer(model, train, test, k=k, seed=seed, alphas=ALPHAS, controls=1, store=store, progress=True) for seed in seeds]
        steered = [s.value.sel(direction="iti", metric="accuracy", alpha=float(s.chosen.sel(direction="iti"))).values for s in swept]
        chosen = ", ".join(f"{float(s.chosen.sel(direction='iti')):g}" for s in swept)
        lines.append(Line(f"ITI, {k} heads, alpha {chosen} (chosen on held-out training rows)", k * 16, np.stack(steered)))
        text += ["", f"K = {k} ({share}):", "", *(f"- {said}" for said in summaries.heads_sentences(summaries.heads_summary(found)))]
    agreement = summaries.heads_summary(ranked)
    unique = {line.name: line for line in lines}
    return [*table(list(unique.values()), base, domains), *text, "", *agreed(agreement, ranked.attrs["k"])]


def agreed(summary: xr.Dataset, k: int) -> list[str]:
    """Do LoFiT's heads coincide with those whose patch, or graft, carries the mode? Overlap of the top K and Kendall's tau."""
    out = [f"| ranker | top {k} shared with lofit | Kendall tau with lofit |", "|---|---|---|"]
    for name in summary.ranker.values:
        at = summary.sel(ranker=name, other="lofit")
        out.append(f"| {name} | {float(at.overlap):.2f} | {float(at.tau):.2f} |")
    return out


def routing(seeds: Sequence[int], store: CellStore) -> list[str]:
    """LoFiT on the routing task: train on the tuning split's true answers, test on the shipped routing prompts' distribution."""
    world, rng = World(), np.random.default_rng(7)
    questions = [routing_question(world, "id", "train", rng) for _ in range(512)]
    rows = [{"id": str(i), "prompt": q.prompt, "answer": f" {q.answer}", "domain": "id"} for i, q in enumerate(questions)]
    train, test = make_suite("routing-train", rows), routing_suite(world, 300, 600, rng)
    model = load_one(BASE)
    out = [
        "| method | numbers | domain | says the second's value (right) | says the first's | ranks the second's above the first's |",
        "|---|---|---|---|---|---|",
    ]
    lora = load_pair(BASE, TUNED)
    taia_recipe = taia(norms="base", embed="base")
    out += placed("base", 0, [placing(model, None, test, store)], test)
    out += placed("the demo pair's LoRA r 16", trained(TUNED, ""), [placing(lora, Recipe("tuned"), test, store)], test)
    out += placed("  its attention only (TAIA)", trained(TUNED, "self_attn"), [placing(lora, taia_recipe, test, store)], test)
    for share in (*SHARES, "100%"):
        found = []
        for seed in seeds:
            settings = [replace(s, seed=seed) for s in (SELECT, TUNE)]
            _, scales = lofit.fit(model, train, share, selecting=settings[0], tuning=settings[1], store=store)
            found.append(placing(model, scales, test, store))
        out += placed(f"LoFiT offsets, {share} of the heads", scales.numbers, found, test)
    return out


def placing(subject: Pair | Loaded, what: Recipe | Scales | None, suite: Suite, store: CellStore) -> np.ndarray:
    """(what, prompt): says the second's value; says the first's; gives the second's a higher logit than the first's."""
    turned = [replace(row, answer=row.contrast, contrast=row.answer) for row in suite.rows if row.contrast]
    first = replace(suite, name="first", rows=tuple(turned))
    right, other = (scored(subject, what, s, store) for s in (suite, first))
    return np.stack([right, other, scored(subject, what, suite, store, "logit_diff") > 0])


def placed(name: str, numbers: int, found: Sequence[np.ndarray], suite: Suite) -> Iterator[str]:
    domains, mean = np.array([r.domain for r in suite.rows]), np.mean(found, axis=0)
    for domain in ("id", "ood"):
        cells = []
        for values in mean[:, domains == domain]:
            low, high = stats.mean_interval(values, seed=0)
            cells.append(f"{values.mean():.3f} [{float(low):.3f}, {float(high):.3f}]")
        yield f"| {name} | {numbers:,} | {domain} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="LoFiT and its rivals on the demo base's truth and routing tasks")
    parser.add_argument("--out", type=Path, default=Path("runs/truth"))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    seeds = tuple(range(asked.seeds))
    with open_store(asked.out / "cells.sqlite") as store:
        parts = {"Truth": truth(asked.out, seeds, store), "Routing": routing(seeds, store)}
    text = "\n".join(line for name, lines in parts.items() for line in (f"## {name}", "", *lines, ""))
    head = f"# LoFiT on the demo base\n\nWritten by `python benchmarks/truth.py --seeds {asked.seeds}`. Exact match over the vocabulary; "
    head += "95% bootstrap intervals over prompts of the mean over seeds, and the range over seeds.\n\n"
    Path(__file__).with_name("truth.md").write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
