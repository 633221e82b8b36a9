"""RED (arXiv 2402.15179): h <- s * FFN(x) + b at every layer, before it is added to the residual stream; 2 * d_model * layers numbers.

peft 0.21 has no RED. Its IA3 on the FFN's output projection is a gain on what that projection gives, its BEFT a bias on a linear
layer; its mixed models take neither, so no one adapter is both, and neither is at what is *added* where a norm stands behind the FFN
(Gemma) or where experts are bare tensors (Mixtral). So RED is trained as what it is, scales at each layer's mlp: gain s - 1, offset b.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from taia_lens import lofit
from taia_lens.errors import TaiaLensError
from taia_lens.loaded import Loaded
from taia_lens.lofit.forms import plain
from taia_lens.lofit.texts import Item, Texts
from taia_lens.lofit.train import Trained, train
from taia_lens.scales import Scales
from taia_lens.sites import Site
from taia_lens.tuning.data import Data
from taia_lens.tuning.settings import Settings


def train_red(model: Loaded, data: Data, settings: Settings, *, progress: bool = False) -> tuple[Scales, list[float]]:
    """RED's scales from the answers in `data`, and the mean loss of each pass; s starts at 1 and b at 0.

    As with the other methods every row is learnt from: none is held out. Of several passes the one with the lowest loss on
    the data is kept; the rate falls linearly to zero.

    Raises:
        TaiaLensError: The loss is no number.
    """
    how = lofit.Settings(
        lr=settings.rate,
        epochs=int(settings.epochs),
        batch_size=settings.batch_size,
        micro_batch=settings.at_once,
        patience=int(settings.epochs),
        sigma=0.0,
        weight_decay=0.0,
        max_length=settings.max_length,
        seed=settings.seed,
    )
    texts = Texts(data.name, tuple(Item(str(i), (example,)) for i, example in enumerate(data.examples)), dict(data.left_out))
    sites = tuple(Site("mlp", layer) for layer in range(model.shape.n_layers))
    form = plain(model, sites, ("gain", "offset"), sigma=how.sigma, l1=0.0, seed=how.seed, method="red")
    found = train(model, form, texts, texts, how, progress=progress)
    if found.stopped is not None:  # as the other methods: what was learnt before it is no finished training
        raise TaiaLensError(f"{found.stopped}; lower the learning rate ({how.lr:g})")
    scales = form.scales(found.values, None)
    made = _made(model, data, how, found)
    scales = Scales(sites, scales.gain.detach().cpu(), scales.offset.detach().cpu(), made)
    return replace(scales, made=made | {"numbers": scales.numbers}), [epoch.loss for epoch in found.history]


def _made(model: Loaded, data: Data, how: lofit.Settings, found: Trained) -> dict[str, object]:
    return {
        "method": "red",
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rounded": model.rounded,
        "dtype": model.dtype,
        "data": {"name": data.name, "sha256": data.sha256, "texts": len(data.examples)},
        "settings": asdict(how),
        "training": found.record(),
    }
