"""The self-check: laws that any pair must obey before a number from it can be trusted. Needs no data.

Each law has its positive control in the tests: a broken model on which it fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taia_lens.batch import NO_TOKEN, Batch
from taia_lens.engine import Run, applied, evaluate, run_plain
from taia_lens.errors import CheckError
from taia_lens.loaded import Loaded
from taia_lens.pair import Law, Pair, Report
from taia_lens.recipe import Ablate, Graft, Patch, Recipe, Side
from taia_lens.sites import RESID_PRE, Site
from taia_lens.weights import weights

PROBE_ROWS, PROBE_LENGTH = 2, 12

# Bounds are in units in the last place (ulps) of the dtype, element by element: one large entry must not excuse the others.
# A sum of three terms is rounded twice; logits are held against their largest entry, which the softmax is read against.
ULPS = 4.0


def probe(pair: Pair | Loaded) -> Batch:
    """A batch of random ids, the same on every run; its second row is padded."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(pair.shape.d_vocab, (PROBE_ROWS, PROBE_LENGTH), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, PROBE_LENGTH - 3 :] = False
    answer, no_choices = tokens[:, 0], torch.empty(PROBE_ROWS, 0, dtype=torch.long)
    batch = Batch(tuple(range(PROBE_ROWS)), tokens, mask, answer, no_choices, torch.full_like(answer, NO_TOKEN))
    return batch.to(pair.device)


def laws(pair: Pair) -> tuple[Law, ...]:
    """Measure every law on a probe batch.

    Returns:
        Residual identity of both sides, self-patch, zero-ablation of attn, mlp and head, "patch everything gives
        tuned" and "graft everything gives tuned".

    Raises:
        SiteError: A hook is missing or does not fire.
    """
    batch = probe(pair)
    n = pair.shape.n_layers
    contributions = [Site(c, layer) for layer in range(n) for c in ("attn", "mlp")]
    heads = [Site("head", layer, head) for layer in range(n) for head in range(pair.shape.n_heads)]
    residuals = [RESID_PRE.format(layer=layer) for layer in range(n)] + [Site("resid", layer).hook for layer in range(n)]
    hooks = [*residuals, *(site.hook for site in (*contributions, *heads))]
    runs: dict[Side, Run] = {side: run_plain(pair.side(side), batch, hooks) for side in ("base", "tuned")}
    middle = n // 2
    ablated = (Site("attn", middle), Site("mlp", middle), Site("head", middle, 0))
    itself = _self_patch(pair, batch, runs, [*contributions, *heads])
    return (
        *(_residual_identity(runs[side], batch, side, n) for side in ("base", "tuned")),
        itself,
        *(_zero_ablation(pair, batch, runs["base"], site, itself.value) for site in ablated),
        _patch_everything(pair, batch, runs, [Site("embed"), *contributions], n),
        _graft_everything(pair, batch, runs),
    )


def require(report: Report) -> None:
    """Raise where a law fails.

    Raises:
        CheckError: The first law that fails, with what was measured and what was noted while loading.
    """
    for law in report.laws:
        if not law.holds:
            noted = "".join(f"; {note}" for note in report.notes)
            raise CheckError(
                f"the self-check fails: '{law.name}' measured {law.value:.3g}, bound {law.bound:.3g}{noted}; "
                f"numbers from this pair could not be trusted ('taia-lens check' prints every law)"
            )


def noise(logits: Tensor) -> float:
    """The rounding of logits that their dtype and size explain."""
    return ULPS * torch.finfo(logits.dtype).eps * max(1.0, logits.abs().max().item())


def ulps(error: Tensor, terms: Sequence[Tensor]) -> float:
    """The largest error, in ulps of the largest of the terms that were added up, element by element."""
    scale = torch.stack([term.abs() for term in terms]).amax(0).double()
    unit = torch.finfo(error.dtype).eps * scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (error.double().abs() / unit).max().item()


def _residual_identity(run: Run, batch: Batch, side: Side, n: int) -> Law:
    worst = 0.0
    for layer in range(n):
        names = (RESID_PRE.format(layer=layer), *(Site(c, layer).hook for c in ("attn", "mlp", "resid")))
        before, attn, mlp, after = (run.acts[name][batch.mask] for name in names)
        worst = max(worst, ulps(before + attn + mlp - after, (before, attn, mlp, after)))
    return Law(f"resid_pre + attn + mlp == resid_post ({side}; ulps)", worst, ULPS, worst <= ULPS)


def _gap(pair: Pair, recipe: Recipe, batch: Batch, reference: Tensor, runs: dict[Side, Run]) -> float:
    def worst(logits: Tensor) -> dict[str, Tensor]:
        return {"gap": (logits - reference).abs().amax(-1)}

    return evaluate(pair, [recipe], batch, worst, donors=runs)["gap"].max().item()


def _self_patch(pair: Pair, batch: Batch, runs: dict[Side, Run], sites: list[Site]) -> Law:
    recipe = Recipe("base", tuple(Patch(site, "base") for site in sites))
    reference = runs["base"].logits
    value, bound = _gap(pair, recipe, batch, reference, runs), noise(reference)
    return Law("base patched with itself at every site is base", value, bound, value <= bound)


def _zero_ablation(pair: Pair, batch: Batch, run: Run, site: Site, floor: float) -> Law:
    """More than patching the model with itself changes, which is what rounding explains."""
    value = _gap(pair, Recipe("base", (Ablate(site),)), batch, run.logits, {})
    return Law(f"zero-ablating {site} changes the logits", value, floor, value > floor)


def _patch_everything(pair: Pair, batch: Batch, runs: dict[Side, Run], sites: list[Site], n: int) -> Law:
    """Base's blocks then only add up what tuned's wrote: tuned's final residual, whatever base's weights are."""
    stream = [Site("resid", layer).hook for layer in range(n)]
    recipe = Recipe("base", tuple(Patch(site, "tuned") for site in sites))
    with applied(pair, recipe, batch=batch, donors=runs) as model:
        got = run_plain(model, batch, [stream[-1]]).acts[stream[-1]][batch.mask]
    wanted = [runs["tuned"].acts[hook][batch.mask] for hook in stream]
    value, bound = ulps(got - wanted[-1], wanted), 2.0 * n  # one rounding for each of the 2n terms of the sum
    name = "embed and every attn and mlp patched from tuned give tuned's final residual (ulps)"
    return Law(name, value, bound, value <= bound)


def _graft_everything(pair: Pair, batch: Batch, runs: dict[Side, Run]) -> Law:
    """Fails where the two sides run equal weights differently: another rotary base, another epsilon of a norm."""
    components = sorted({w.component for w in weights(pair.base)})
    recipe = Recipe("base", tuple(Graft(component, "tuned") for component in components))
    reference = runs["tuned"].logits
    value, bound = _gap(pair, recipe, batch, reference, {}), noise(reference)
    return Law("base with every weight of tuned is tuned", value, bound, value <= bound)
