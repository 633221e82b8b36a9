"""The logit lens: what base, tuned and a graft would say if they stopped after each layer, on one prompt.

The residual stream after each layer goes through the model's own last norm and unembedding (nostalgebraist, 2020), with
TransformerLens's `logit_lens`, on the live model that `engine.applied` gives. Early layers write for later ones and not for the
unembedding, so low layers of a lens show what is read off them, not what the model thinks there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from taia_lens import results
from taia_lens.engine import applied, device_of
from taia_lens.errors import SuiteError, TaiaLensError
from taia_lens.grafting import resolve_sides
from taia_lens.pair import Pair
from taia_lens.positions import token_text
from taia_lens.prompts import Prompt, read_prompt
from taia_lens.recipe import Recipe, Side, taia
from taia_lens.recipe_text import named_recipe
from taia_lens.rows import Row
from taia_lens.scoring import pair_attrs
from taia_lens.weights import Model

EMBEDDING = -1
"""The place before layer 0 along the dim `layer`."""


def lens(
    pair: Pair,
    prompt: str | Row,
    tokens: str | Sequence[str] = (),
    *,
    recipes: Mapping[str, Recipe | str] | None = None,
    norms: Side | None = None,
    embed: Side | None = None,
) -> xr.Dataset:
    """Read the residual stream after the embedding and after every layer as a prediction of what follows one prompt.

    Args:
        pair: The two models.
        prompt: A text, read as it stands, or a suite's row.
        tokens: Texts whose first token is followed, beside the row's answer, contrast and choices; a text carries its own
            leading space. Where there is nothing to follow, what the recipes say in the end is.
        recipes: What is looked at, by name, as recipes or as their text; base, vanilla (tuned) and TAIA where None.
        norms: Whose norms TAIA takes; must be said where they differ, and where `recipes` names taia or taif.
        embed: Whose embeddings and unembedding.

    Returns:
        `logprob` (recipe, layer, token), in nats, and `rank`, 0 for the most likely of the vocabulary; `top` (recipe, layer), the
        most likely token's text, and `top_logprob`; `entropy` (recipe, layer), in nats. `layer` is -1 after the embedding, and l
        after layer l: the last one is the model's own prediction. `role` (token): `answer`, `contrast`, `choice`, `asked` or
        `said`; `first` (token): the text of its first token, which is what is followed.

    Raises:
        SuiteError: The prompt does not fit the model, or two texts begin with the same token.
        SiteError, RecipeError: A recipe names what the pair does not have, or sides that must be said.
        TaiaLensError: TransformerLens has no logit lens for this model.
    """
    read = read_prompt(pair, prompt)
    chosen = _recipes(pair, recipes, norms, embed)
    found = {name: _logprobs(pair, recipe, read) for name, recipe in chosen.items()}
    texts, ids, roles = _followed(pair, read, [tokens] if isinstance(tokens, str) else list(tokens), found)
    stack = torch.stack(list(found.values()))
    wanted = stack[:, :, ids]
    best = stack.max(-1)
    top = [[token_text(pair.tokenizer, i) for i in line] for line in best.indices.tolist()]
    data = {
        "logprob": (("recipe", "layer", "token"), wanted.double().numpy()),
        "rank": (("recipe", "layer", "token"), torch.stack([(stack > stack[..., [i]]).sum(-1) for i in ids], dim=-1).numpy()),
        "top": (("recipe", "layer"), np.array(top, dtype=object)),
        "top_logprob": (("recipe", "layer"), best.values.double().numpy()),
        "entropy": (("recipe", "layer"), torch.special.entr(stack.exp()).sum(-1).double().numpy()),
    }
    coords = {
        "recipe": list(chosen),
        "layer": list(range(EMBEDDING, pair.shape.n_layers)),
        "token": texts,
        "role": ("token", roles),
        "first": ("token", [token_text(pair.tokenizer, i) for i in ids]),
    }
    attrs = pair_attrs(pair) | {"study": "lens", "prompt": read.text, "n_tokens": len(read.ids)}
    attrs |= {"recipes": {name: str(recipe) for name, recipe in chosen.items()}, "versions": results.versions()}
    return xr.Dataset(data, coords, attrs)


def _recipes(pair: Pair, asked: Mapping[str, Recipe | str] | None, norms: Side | None, embed: Side | None) -> dict[str, Recipe]:
    if asked is None:
        sides = resolve_sides(pair, norms, embed)
        return {"base": Recipe("base"), "vanilla": Recipe("tuned"), "TAIA": taia(norms=sides[0], embed=sides[1])}
    if not asked:
        raise TaiaLensError("no recipe was named; give some by name, or leave recipes out for base, vanilla and TAIA")
    return {name: named_recipe(recipe, norms=norms, embed=embed) if isinstance(recipe, str) else recipe for name, recipe in asked.items()}


def _logprobs(pair: Pair, recipe: Recipe, read: Prompt) -> Float[Tensor, "layer d_vocab"]:
    """Log-probabilities of every token at the last position, after the embedding and after each layer."""
    with applied(pair, recipe, batch=read.batch) as model:
        return _lens(model, read.batch.tokens.to(device_of(model)))


def _lens(model: Model, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "layer d_vocab"]:
    try:
        from transformer_lens.tools.analysis import logit_lens
    except ImportError as error:
        raise TaiaLensError("the logit lens is a tool of TransformerLens 4, which is not installed; load the pair with that") from error
    try:
        # Given the tokens and not a cache, it also holds its last entry against the model's own logits.
        found = logit_lens(model, tokens, return_type="log_probs").values
    except (ValueError, NotImplementedError) as error:
        raise TaiaLensError(f"TransformerLens has no logit lens for this model: {error}") from error
    return found.reshape(found.shape[0], -1).detach().float().cpu()


def _followed(
    pair: Pair, read: Prompt, asked: Sequence[str], found: Mapping[str, Float[Tensor, "layer d_vocab"]]
) -> tuple[list[str], list[int], list[str]]:
    """Texts, the ids of their first tokens, and why each is followed."""
    row = read.row
    wanted = {row.answer: "answer"} if row.answer else {}
    wanted |= {} if row.contrast is None else {row.contrast: "contrast"}
    wanted = {text: "choice" for text in row.choices if text not in wanted} | wanted
    order = sorted(wanted, key=lambda text: ("answer", "contrast", "choice").index(wanted[text]))
    wanted = {text: wanted[text] for text in order} | {text: "asked" for text in asked if text not in wanted}
    if not wanted:
        ids = list(dict.fromkeys(int(logprobs[-1].argmax()) for logprobs in found.values()))
        return [_named(pair, i, ids) for i in ids], ids, ["said"] * len(ids)
    by_id: dict[int, str] = {}
    for text in wanted:
        first = read.first_token(text)
        if first in by_id:
            raise SuiteError(f"{by_id[first]!r} and {text!r} begin with the same token, and a lens follows first tokens; give one of them")
        by_id[first] = text
    return list(wanted), list(by_id), list(wanted.values())


def _named(pair: Pair, token: int, tokens: Sequence[int]) -> str:
    """A token's text; with its id where another one reads the same."""
    text = token_text(pair.tokenizer, token)
    return text if sum(token_text(pair.tokenizer, i) == text for i in tokens) == 1 else f"{text} (id {token})"
