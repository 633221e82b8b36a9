"""The picture of the logit lens: what each recipe would say after each layer, on one prompt."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from taia_lens.errors import ResultError
from taia_lens.plots.look import COLOURS, SEQUENTIAL, framed, shown
from taia_lens.plots.stacks import Stack, add_missing, models, plain, said, step, ticks, to_the_left, token

_COLOUR = {"base": COLOURS["base"], "vanilla": COLOURS["tuned"], "tuned": COLOURS["tuned"], "taia": COLOURS["attn"], "taif": COLOURS["mlp"]}
_OTHERS = (COLOURS["resid"], COLOURS["head"], COLOURS["rest"])
_DASHES = ("solid", "dash", "dot", "dashdot")
_ROLES = {"answer": "the answer", "contrast": "the contrast", "choice": "the choice", "asked": "the token", "said": "the token"}
EMBEDDING = -1
HEIGHT, LAYER = 150, 17  # pixels of a token's panel, and of a layer's row
MOST = 12  # recipes and tokens beyond that are not readable


def lens_figure(result: xr.Dataset) -> go.Figure:
    """The log-probability of each token by layer, a curve a recipe; below, the most likely token after each layer.

    Args:
        result: What `studies.lens.lens` returned.

    Raises:
        ResultError: There is no recipe, layer or token, or there are too many to be read.
    """
    sizes = {dim: result.sizes[dim] for dim in ("recipe", "layer", "token")}
    if 0 in sizes.values():
        raise ResultError("the result holds no recipe, layer or token; there is nothing to draw")
    for dim in ("recipe", "token"):
        if sizes[dim] > MOST:
            raise ResultError(f"{sizes[dim]} {dim}s cannot be told apart in one figure; draw some: result.isel({dim}=slice({MOST}))")
    stack = Stack((HEIGHT,) * sizes["token"] + (max(60, LAYER * sizes["layer"]),), 84)
    titles = [_title(result.isel(token=i)) for i in range(sizes["token"])] + ["the most likely token after each layer, and its probability"]
    figure = stack.figure(subplot_titles=titles)
    to_the_left(figure)
    for row in range(1, sizes["token"] + 1):
        for i in range(sizes["recipe"]):
            _add_curve(figure, result.isel(recipe=i, token=row - 1), i, row)
        figure.update_yaxes(title_text="log-prob. (nats)", title_font_size=12, nticks=5, row=row, col=1)
        figure.update_xaxes(_layers(result, 10), title_text="after layer", title_standoff=4, row=row, col=1)
    _add_tops(figure, result, stack)
    notes = [
        models(result.attrs),
        said(str(result.attrs["prompt"])),
        "each layer's residual stream at the last position, through the recipe's own last norm and unembedding; the last layer is what "
        "it predicts; one prompt, so there are no intervals",
    ]
    return framed(
        figure, "Logit lens: what is predicted after each layer", notes, inside=stack.inside, below=32, legend=sizes["recipe"], panels=1
    )


def _title(one: xr.Dataset) -> str:
    text, first = str(one.token.item()), str(one["first"].item())
    begins = "" if first.strip() == text.strip() else f" (its first token, “{token(first)}”)"
    return f"{_ROLES.get(str(one.role.item()), 'the token')} “{token(text, 24)}”{begins}"


def _layers(result: xr.Dataset, most: int) -> dict[str, object]:
    """Ticks at layers, the embedding by its name."""
    layers = result.layer.values.tolist()
    every = step(len(layers), most)
    some = [layer for layer in layers if layer == EMBEDDING or (layer % every == 0 and (layer > 0 or every == 1))]
    return {"tickmode": "array", "tickvals": some, "ticktext": ["emb." if layer == EMBEDDING else str(layer) for layer in some]}


def _name(result: xr.Dataset) -> str:
    return str(result.recipe.item())


def _add_curve(figure: go.Figure, one: xr.Dataset, i: int, row: int) -> None:
    name, layers = _name(one), one.layer.values
    colour = _COLOUR.get(name.lower(), _OTHERS[i % len(_OTHERS)])
    dash = "solid" if name.lower() in _COLOUR else _DASHES[1 + i // len(_OTHERS) % 3]
    figure.add_scatter(
        x=layers,
        y=one.logprob.values,
        mode="lines+markers",
        line={"color": colour, "width": 1.5, "dash": dash},
        marker={"size": 5},
        customdata=[_hover(one.isel(layer=j)) for j in range(len(layers))],
        hovertemplate="%{customdata}<extra></extra>",
        name=shown(name, 24),
        legendgroup=str(i),
        showlegend=row == 1,
        meta={"at": {"recipe": name, "token": str(one.token.item())}, "points": plain("layer", layers)},
        row=row,
        col=1,
    )


def _after(layer: int) -> str:
    return "the embedding" if layer == EMBEDDING else f"layer {layer}"


def _hover(cell: xr.Dataset) -> str:
    value = float(cell.logprob)
    where = f"{shown(_name(cell))}, after {_after(int(cell.layer))}"
    return f"{where}<br>{token(str(cell['first'].item()), 32)}: {value:.3f} nats ({np.exp(value):.2%}), rank {int(cell['rank']) + 1}"


def _add_tops(figure: go.Figure, result: xr.Dataset, stack: Stack) -> None:
    cells = result.transpose("layer", "recipe", ...)
    row, layers, names = len(stack.heights), cells.layer.values.tolist(), cells.recipe.values.tolist()
    places = list(range(len(names)))
    chances = np.exp(cells.top_logprob.values)
    most = max(3, 42 // len(names))
    add_missing(figure, chances, places, layers, row, 1)
    figure.add_heatmap(
        x=places,
        y=layers,
        z=chances,
        zmin=0,
        zmax=1,
        colorscale=SEQUENTIAL,
        text=[[token(str(text), most) for text in line] for line in cells.top.values.tolist()],
        texttemplate="%{text}",
        textfont={"size": 10},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[_hover_top(cells.isel(layer=i, recipe=j)) for j in range(len(names))] for i in range(len(layers))],
        hovertemplate="%{customdata}<extra></extra>",
        colorbar=stack.bar(row),
        meta={"at": {}, "rows": plain("layer", cells.layer.values), "columns": plain("recipe", cells.recipe.values)},
        row=row,
        col=1,
    )
    figure.update_xaxes(ticks([shown(name, max(6, 40 // len(names))) for name in names]), zeroline=False, row=row, col=1)
    axis = _layers(result, max(1, stack.heights[-1] // 16))
    figure.update_yaxes(axis, title_text="after layer", title_font_size=12, zeroline=False, row=row, col=1)


def _hover_top(cell: xr.Dataset) -> str:
    where = f"{shown(_name(cell))}, after {_after(int(cell.layer))}"
    return f"{where}<br>{token(str(cell.top.item()), 48)}: {np.exp(float(cell.top_logprob)):.2%}; entropy {float(cell.entropy):.2f} nats"
