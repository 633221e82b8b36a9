"""Where one head looks on one prompt, in base and in tuned. No intervention: a pattern shows where, and not what comes of it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from taia_lens import results
from taia_lens.engine import run_plain
from taia_lens.errors import TaiaLensError
from taia_lens.pair import Pair
from taia_lens.prompts import read_prompt
from taia_lens.recipe import SIDES
from taia_lens.rows import Row
from taia_lens.scoring import pair_attrs
from taia_lens.sites import PATTERN, Site, select


def attention(pair: Pair, prompt: str | Row, layer: int, head: int) -> xr.Dataset:
    """Read the attention pattern of one head on one prompt, in both models.

    Args:
        pair: The two models.
        prompt: A text, read as it stands, or a suite's row.
        layer: The head's layer.
        head: Its number.

    Returns:
        `pattern` (side, query, key): the share of its attention that the token at `query` gives to the token at `key`. A row
        sums to 1, but for models whose heads may attend to nothing (sinks). `query_token` and `key_token` are the tokens' texts.

    Raises:
        SiteError: No such layer or head, or an architecture without the pattern's hook.
        SuiteError: The prompt does not fit the model.
    """
    (layer,), (head,) = select(layer, pair.shape.n_layers, "layer"), select(head, pair.shape.n_heads, "head")
    read = read_prompt(pair, prompt)
    hook = PATTERN.format(layer=layer)
    found = []
    for side in SIDES:
        pattern = run_plain(pair.side(side), read.batch, [hook]).acts[hook]
        if pattern.ndim != 4 or pattern.shape[1] != pair.shape.n_heads:
            shape = " x ".join(map(str, pattern.shape))
            raise TaiaLensError(f"this model's attention pattern at layer {layer} is {shape}, and not one map a head; choose another layer")
        found.append(pattern[0, head].double().cpu().numpy())
    places = list(range(len(read.ids)))
    tokens = np.array(read.tokens, dtype=object)
    coords = {"side": list(SIDES), "query": places, "key": places, "query_token": ("query", tokens), "key_token": ("key", tokens)}
    attrs = pair_attrs(pair) | {"study": "attention", "prompt": read.text, "layer": layer, "head": head}
    attrs |= {"site": str(Site("head", layer, head)), "n_tokens": len(read.ids)}
    return xr.Dataset({"pattern": (("side", "query", "key"), np.stack(found))}, coords, attrs | {"versions": results.versions()})
