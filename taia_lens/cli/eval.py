"""`taia-lens eval`: lm-evaluation-harness's tasks on a grafted model."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from taia_lens.cli import common
from taia_lens.errors import RecipeError
from taia_lens.recipe import SIDES, Recipe, Side
from taia_lens.recipe_text import named_recipe

if TYPE_CHECKING:
    from taia_lens.harness import Outcome
    from taia_lens.pair import Pair


def evaluate(
    tasks: str = typer.Option(..., help="Tasks of lm-evaluation-harness, separated by commas."),
    recipe: list[str] = typer.Option(["taia"], help="base, vanilla, taia, taif, or a recipe's text; may be given several times."),
    norms: str | None = typer.Option(None, help="Whose norms taia and taif take: base or tuned."),
    embed: str | None = typer.Option(None, help="Whose embeddings and unembedding taia and taif take: base or tuned."),
    base: str | None = typer.Option(None, help=common.BASE_HELP),
    tuned: str | None = typer.Option(None, help=common.TUNED_HELP),
    include_path: Path | None = typer.Option(None, help="A folder with tasks of your own (.yaml)."),
    num_fewshot: int | None = typer.Option(None, help="Shots. Default: each task's own."),
    apply_chat_template: bool = typer.Option(False, "--apply-chat-template", help="Put prompts through the tokenizer's chat template."),
    limit: int | None = typer.Option(None, help="At most this many documents of each task, its first ones."),
    batch_size: int = typer.Option(8, help="Documents at a time."),
    device: str = typer.Option("auto", help=common.DEVICES_HELP),
    dtype: str = typer.Option("auto", help=common.DTYPE_HELP),
    out: Path | None = typer.Option(None, help="The run folder to write. Default: runs/eval-DATE-TIME."),
    as_json: bool = typer.Option(False, "--json", help="Print the numbers on stdout (the folder's path then goes to stderr)."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help=common.PICKLE_HELP),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=common.REMOTE_HELP),
) -> None:
    """Run tasks of lm-evaluation-harness on the base, the tuned model, or any graft of the two.

    Needs the extra: pip install 'taia-lens[eval]'. Writes results.json, samples.jsonl and meta.json into a run folder and prints
    the folder's path.

    Example: taia-lens eval --tasks arc_easy,gsm8k --recipe base --recipe vanilla --recipe taia --base ./base --tuned ./adapter
    """
    started = time.time()
    options = common.PairOptions(base, tuned, device, dtype, allow_pickle, trust_remote_code)
    options.check()
    sides = _side(norms, "norms"), _side(embed, "embed")
    for text in recipe:
        named_recipe(text, norms=sides[0] or "base", embed=sides[1] or "base")  # what cannot be read is said before anything loads
    folder = common.run_folder(out, "eval")
    names = [name.strip() for name in tasks.split(",")]
    with common.status("reading the tasks"):
        from taia_lens import harness

        harness.check_installed()
        common.quiet()
        manager = harness.find_tasks(names, include_path)
    with common.status("loading and checking the pair"):
        pair = options.load()
    recipes = _recipes(pair, recipe, *sides)
    outcome = harness.run_tasks(
        pair,
        recipes,
        names,
        manager,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        apply_chat_template=apply_chat_template,
    )
    asked = {"tasks": names, "limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": apply_chat_template}
    meta = _meta(pair, started) | asked | {"recipes": {name: str(found) for name, found in recipes.items()}}
    _report(folder, outcome, meta, list(recipes), as_json)


def _side(text: str | None, what: str) -> Side | None:
    for side in SIDES:
        if text == side:
            return side
    if text is not None:
        raise RecipeError(f"no side {text!r} to take the {what} from; write --{what} base or --{what} tuned")
    return None


def _recipes(pair: Pair, texts: list[str], norms: Side | None, embed: Side | None) -> dict[str, Recipe]:
    """Each recipe by the text that named it; whose norms and embeddings matters only where taia or taif is among them."""
    from taia_lens.grafting import resolve_sides

    if any(text.strip().lower() in ("taia", "taif") for text in texts):
        norms, embed = resolve_sides(pair, norms, embed)
    return {text.strip(): named_recipe(text, norms=norms, embed=embed) for text in texts}


def _meta(pair: Pair, started: float) -> dict[str, Any]:
    from importlib import metadata

    meta = common.meta(pair, started=started, seed=0)
    del meta["seed"]  # the harness has its own fixed ones
    return meta | {"versions": meta["versions"] | {"lm_eval": metadata.version("lm_eval")}}


def _report(folder: Path, outcome: Outcome, meta: dict[str, Any], recipes: list[str], as_json: bool) -> None:
    from taia_lens.results import whole_folder

    scores = [asdict(score) for score in outcome.scores]
    shown = common.console()
    _print(outcome, recipes)  # before writing: a disk that is full must not cost the numbers
    with whole_folder(folder) as partial:
        (partial / "results.json").write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n")
        (partial / "meta.json").write_text(json.dumps(meta | {"harness": outcome.tasks}, indent=1, default=str) + "\n")
        lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in outcome.samples)
        (partial / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps({"run": str(folder), "recipes": meta["recipes"], "results": scores}, indent=1, allow_nan=False))
        shown.print(f"run folder: {folder}", markup=False)
    else:
        print(folder)


def _print(outcome: Outcome, recipes: list[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title="lm-evaluation-harness, value and its standard error", title_justify="left")
    for name in ("task", "metric", "n"):
        table.add_column(name, justify="right" if name == "n" else "left")
    for name in recipes:
        table.add_column(Text(name), justify="right")
    cells = {(s.task, s.metric, s.filter, s.recipe): s for s in outcome.scores}
    for task, metric, chosen in dict.fromkeys(key[:3] for key in cells):
        of_row = [cells[task, metric, chosen, name] for name in recipes]
        label = metric if chosen == "none" else f"{metric} ({chosen})"
        n = "-" if of_row[0].n is None else str(of_row[0].n)
        table.add_row(Text(task), Text(label), n, *(_shown(score.value, score.stderr) for score in of_row))
    common.console().print(table)


def _shown(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ±{stderr:.4f}"
