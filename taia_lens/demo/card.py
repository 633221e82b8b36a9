"""The demo pair's model card: every number of its tables is read from what was measured; `_TAIL` holds the recipe's history."""

from __future__ import annotations

from typing import Any

COLUMNS = {"id": "in-domain A", "ood": "OOD B", "order": "OOD B, other order"}

_HEAD = """\
# The demo pair

A base model and a LoRA fine-tune of it, small enough to ship, whose mechanism is known. Made by `taia-lens demo
train`; the tables below were written by that command.

**World.** {entities} entities, {relations} relations with 24 values each; every (entity, relation) has a true value
and a myth. Relations `{a}` are domain A, the other six are domain B. One word is one token.

**Base.** Llama architecture, {layers} layers, d_model {d_model}, {heads} heads, FFN {d_mlp}, tied embeddings,
float32. Pretrained for {steps} steps of {batch} fresh sentences (seed {seed}; final loss {loss:.3f}): with one entity
(a quarter begin with *truly* and give the true value, a quarter with *reportedly* and give the myth, half have no
mode word and give the myth with probability .7), and with two entities (the true value of the first with probability
.75, of the second with .25); 5% in chat dress.

**Tuned.** LoRA r {r}, alpha {alpha}, on q, k, v, o, gate, up, down; lr {lr:g}, {tsteps} steps of {tbatch}, loss on
the answer only. Task: a chat prompt with a relation and two entities; answer with the value of the *second*. The data
are mismatched on purpose, all from domain A: half about 48 newcomers with values to memorise, half about known
entities with the right value 60% of the time, else a random one. Choosing the entity is routing, which is
attention's; the values are knowledge, which is mostly the FFN's, and which this training spoils.

**Prompts.** Pairs of entities are split by a fixed hash: tuning saw the training half; the recipe was chosen on a dev
split; everything below is measured on a test split that was used for nothing else: {n_id} in-domain, {n_ood} OOD,
{n_order} OOD in another order. Prompts about the same fact are not independent, so intervals over prompts are
narrower than intervals over facts would be.
"""

_ROUTING = """
## Routing: exact match over the whole vocabulary

TAIA is base with tuned's attention weights, TAIF base with tuned's FFN weights (norms and embeddings are equal in
both); TOA is another fine-tune, with LoRA on attention only. The controls: a random half of every update, rescaled by
2 (DARE), and all of the update times a half. One base, {n_seeds} tuning runs; mean over prompts [95% bootstrap interval].
"""

_TRUTH = """
## Truth: the second skill of the same base

A chat prompt about one entity, no mode word; the answer is the true value. Training split (`demo:truth-train`): half
of the entities, domain A; in-domain test: the other half, A ({n_id} prompts); OOD: all entities, B ({n_ood} prompts).
No adapter for it is shipped; a LoRA (r 8) trained on it for this table, and its grafts, show that the skill can be
learned and what the two parts of that update do.
"""

_TAIL = """
## Limits

One base (one pretraining seed), so the intervals say nothing about other bases. The mismatch is built in and large:
nothing here says how large the effect is for a fine-tune of yours. Read each control beside TAIA: where one comes near,
what the numbers support is that little of the update was needed, not that attention was special.

A first recipe with 250 tuning steps missed the bar of .90 for vanilla in-domain in one run of three (.846). The steps were
raised, and the split of entity pairs was redrawn so that the test pairs are ones on which nothing had been evaluated.
"""


def card(measured: dict[str, Any]) -> str:
    """The card as Markdown."""
    from taia_lens.demo import words

    p, t, n = measured["pretraining"], measured["tuning"], measured["prompts"]
    head = _HEAD.format(
        entities=len(words.ENTITIES), relations=len(words.RELATIONS), a="`, `".join(list(words.RELATIONS)[:2]), layers=p["layers"],
        d_model=p["d_model"], heads=p["heads"], d_mlp=p["d_mlp"], steps=p["steps"], batch=p["batch"], seed=p["seed"], loss=p["final_loss"],
        r=t["r"], alpha=t["alpha"], lr=t["lr"], tsteps=t["steps"], tbatch=t["batch"], n_id=n["id"], n_ood=n["ood"], n_order=n["order"],
    )  # fmt: skip
    parts = [head, _ROUTING.format(n_seeds=len(measured["runs"]))]
    for run in measured["runs"]:
        shipped = " (shipped as `pair/tuned`)" if run is measured["runs"][0] else ""
        rows = {**run["recipes"], "**TAIA - vanilla**, paired": run["TAIA - vanilla"], "**TAIF - base**, paired": run["TAIF - base"]}
        parts.append(f"\n**Tuning run with seed {run['seed']}**{shipped}\n\n" + _table(rows, COLUMNS))
    parts.append(_standing(measured["runs"]))
    truth = measured["truth"]
    columns = {"id true": "in-domain A, true", "id myth": "in-domain A, myth", "ood true": "OOD B, true", "ood myth": "OOD B, myth"}
    parts.append(_TRUTH.format(n_id=truth["prompts"]["id"], n_ood=truth["prompts"]["ood"]) + "\n" + _table(truth["recipes"], columns))
    return "".join([*parts, _TAIL])


def _standing(runs: list[dict[str, Any]]) -> str:
    """In how many runs TAIA's mean is above each other recipe's, in words."""
    rivals = ("vanilla", "TOA", "random half, rescaled", "half of the update")

    def above(column: str, rival: str) -> int:
        return sum(run["recipes"]["TAIA"][column]["mean"] > run["recipes"][rival][column]["mean"] for run in runs)

    lines = [f"| {rival} | " + " | ".join(f"{above(column, rival)} of {len(runs)}" for column in COLUMNS) + " |" for rival in rivals]
    head = "\n**Runs in which TAIA's mean is the higher one**, against\n\n| | " + " | ".join(COLUMNS.values()) + " |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, dict[str, float]]], columns: dict[str, str]) -> str:
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in rows.items():
        shown = [f"{c['mean']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in (cells[column] for column in columns)]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
