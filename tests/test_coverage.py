"""By simulation: intervals cover the truth as often as they say, tests cry wolf no more often than they say, null pairs included.

Each claim has a positive control: an interval of half the width, a test that ignores the pairing, p that are not adjusted,
an update that does something. Seeds are fixed; a limit says how much of it is the noise of so many trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from architectures import make, tuned_from
from scipy.special import log_expit
from scipy.stats import binom, norm
from transformers import PreTrainedTokenizerBase

from taia_lens.batch import Batch, make_batches
from taia_lens.engine import evaluate, run_plain
from taia_lens.loading import load_pair
from taia_lens.metrics import Context, measure
from taia_lens.pair import Pair
from taia_lens.recipe import Graft, Recipe
from taia_lens.stats import adjust, difference_interval, difference_p, mean_interval, rate_interval, sign_flip_p
from taia_lens.suite import make_suite

pytestmark = pytest.mark.slow

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(0.2, 1.0, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.exponential(1.0, shape)


def logprobs(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Differences of two models' log-probabilities of an answer: near 0 where both know it, large where one does not."""
    shared = 1.5 * rng.normal(size=shape)
    return log_expit(1.5 + shared + rng.normal(0.3, 1.0, shape)) - log_expit(1.5 + shared + rng.normal(0, 0.6, shape))


def accuracies(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Differences of two models' 0/1 accuracies, 70% and 60%, which mostly know the same answers."""
    return _right(rng, shape, (0.7, 0.6))


def high_accuracies(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return _right(rng, shape, (0.95, 0.9))


def _right(rng: np.random.Generator, shape: tuple[int, int], rates: tuple[float, float]) -> np.ndarray:
    shared = np.sqrt(0.7) * rng.normal(size=shape)
    a, b = (shared + np.sqrt(0.3) * rng.normal(size=shape) < norm.ppf(rate) for rate in rates)
    return a.astype(float) - b.astype(float)


DRAWS = (normal, skewed, logprobs, accuracies, high_accuracies)
TRIALS = {50: 2000, 100: 2000, 200: 2000, 600: 1000}


@cache
def mean_of(draw: Draw) -> float:
    return float(np.mean([draw(np.random.default_rng(i), (1000, 1000)).mean() for i in range(5)]))


def covered(truth: float, low: np.ndarray, high: np.ndarray) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def coverage(draw: Draw, n: int, trials: int, *, width: float = 1.0) -> float:
    """How often the interval of the mean of n draws, made `width` times as wide, holds the true mean.

    In 20 parts, each with its own resamples: one call resamples all its cells alike, and moves the ends of all of them alike.
    """
    truth, hits = mean_of(draw), []
    for seed in range(20):
        low, high = mean_interval(draw(np.random.default_rng(1000 + seed), (trials // 20, n)), seed=seed)
        middle, half = (low + high) / 2, width * (high - low) / 2
        hits.append(covered(truth, middle - half, middle + half))
    return float(np.mean(hits))


def noise(rate: float, trials: int) -> float:
    """Two standard errors of a rate over so many trials."""
    return 2 * float(np.sqrt(rate * (1 - rate) / trials))


@pytest.mark.parametrize("draw", DRAWS, ids=lambda d: d.__name__)
def test_from_200_examples_on_an_interval_covers_between_93_and_97_times_in_100(draw: Draw) -> None:
    for n in (200, 600):
        assert 0.93 <= coverage(draw, n, TRIALS[n]) <= 0.97, n


@pytest.mark.parametrize("draw", DRAWS, ids=lambda d: d.__name__)
def test_with_fewer_it_still_does_but_for_heavy_tails_and_rare_mistakes(draw: Draw) -> None:
    least = 0.91 if draw in (logprobs, high_accuracies) else 0.93
    for n in (50, 100):
        assert least <= coverage(draw, n, TRIALS[n]) <= 0.97, n


@pytest.mark.parametrize("draw", DRAWS, ids=lambda d: d.__name__)
def test_with_20_it_covers_as_often_as_the_docstring_of_stats_says(draw: Draw) -> None:
    least, most = (0.73, 0.79) if draw is high_accuracies else (0.88, 0.96)
    assert least <= coverage(draw, 20, 2000) <= most


def test_a_sign_flip_test_of_skewed_differences_cries_wolf_as_often_as_its_docstring_says() -> None:
    trials, rng = 4000, np.random.default_rng(1)
    for n, said in ((12, 0.09), (50, 0.07), (200, 0.054)):
        wolf = float((sign_flip_p(uneven(rng, (trials, n)), seed=0) <= 0.05).mean())
        assert abs(wolf - said) <= 0.005 + noise(said, trials), n  # what is said is rounded, too


def test_an_interval_of_half_the_width_is_found_out() -> None:
    for draw in DRAWS:
        assert coverage(draw, 100, 400, width=0.5) < 0.8, draw


@pytest.mark.parametrize(("a", "b"), [((normal, 100), (skewed, 300)), ((accuracies, 200), (high_accuracies, 100))], ids=["reals", "0/1"])
def test_the_interval_of_a_difference_between_domains_covers_too(a: tuple[Draw, int], b: tuple[Draw, int]) -> None:
    rng = np.random.default_rng(0)
    groups = [draw(rng, (1000, n)) for draw, n in (a, b)]
    truth = mean_of(a[0]) - mean_of(b[0])
    low, high = difference_interval(*groups, seed=0)
    assert 0.93 <= covered(truth, low, high) <= 0.97
    # Taken for pairs, of which there are only as many as the smaller group has, the same examples give wider intervals.
    n = min(a[1], b[1])
    paired = mean_interval(groups[0][:, :n] - groups[1][:, :n], seed=0)
    assert (paired[1] - paired[0]).mean() > 1.05 * (high - low).mean()


def test_a_rate_is_covered_at_least_95_times_in_100_whatever_it_is() -> None:
    rates = np.concatenate([[0.001, 0.01], np.arange(0.05, 1, 0.05), [0.99, 0.999]])
    for n in (5, 30, 100, 520):
        low, high = rate_interval(np.arange(n + 1), n)
        chance = np.array([np.exp(_log_binomial(n, rate)) for rate in rates])
        holds = (low <= rates[:, None]) & (rates[:, None] <= high)
        assert (chance * holds).sum(1).min() >= 0.95, n  # exact: no simulation, every k weighed by its probability
        half = (high - low) / 4
        narrow = ((low + half) <= rates[:, None]) & (rates[:, None] <= (high - half))
        assert (chance * narrow).sum(1).min() < 0.9, n


def _log_binomial(n: int, rate: float) -> np.ndarray:
    return binom.logpmf(np.arange(n + 1), n, rate)


def symmetric(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Log-probability differences of two models of which neither is better."""
    shared = 1.5 * rng.normal(size=shape)
    return log_expit(1.5 + shared + rng.normal(size=shape)) - log_expit(1.5 + shared + rng.normal(size=shape))


def equal_accuracies(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return _right(rng, shape, (0.7, 0.7))


def uneven(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Mean 0, but not symmetric about it: many small losses and few large gains."""
    return rng.exponential(1.0, shape) - 1


@pytest.mark.parametrize("draw", [symmetric, equal_accuracies, uneven], ids=lambda d: d.__name__)
def test_a_sign_flip_test_cries_wolf_at_most_5_times_in_100(draw: Draw) -> None:
    trials, rng = 4000, np.random.default_rng(1)
    # Where differences are not symmetric about their mean of 0 the level holds for many examples only.
    for n in (200, 600) if draw is uneven else (12, 50, 200):
        wolf = float((sign_flip_p(draw(rng, (trials, n)), seed=0) <= 0.05).mean())
        assert wolf <= 0.05 + noise(0.05, trials), n
    assert (sign_flip_p(draw(rng, (500, 200)) + 0.5, seed=0) <= 0.05).mean() > 0.9  # and it does see wolves


def test_a_test_that_ignores_the_pairing_has_another_level() -> None:
    trials, n, rng = 2000, 100, np.random.default_rng(2)
    shared = rng.normal(size=(trials, n))
    for sign, wrong in ((1, lambda wolf: wolf < 0.01), (-1, lambda wolf: wolf > 0.1)):
        a, b = shared + 0.5 * rng.normal(size=(trials, n)), sign * shared + 0.5 * rng.normal(size=(trials, n))
        paired, unpaired = (float((p <= 0.05).mean()) for p in (sign_flip_p(a - b, seed=0), difference_p(a, b, seed=0)))
        assert abs(paired - 0.05) <= 1.5 * noise(0.05, trials) and wrong(unpaired)


@pytest.mark.parametrize(("n", "spread"), [((100, 100), 1.0), ((50, 400), 3.0), ((400, 50), 3.0)])
def test_a_test_between_domains_cries_wolf_at_most_5_times_in_100(n: tuple[int, int], spread: float) -> None:
    trials, rng = 2500, np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, (trials, n[0])), rng.normal(0.3, spread, (trials, n[1]))
    assert (difference_p(a, b, seed=0) <= 0.05).mean() <= 0.05 + noise(0.05, trials)
    assert (difference_p(a[:200] + spread, b[:200], seed=0) <= 0.05).mean() > 0.9
    if n == (400, 50):  # the difference itself, permuted without its spread, does not keep the level
        both = np.concatenate([a, b], axis=1) - 0.3
        order = rng.permuted(np.tile(np.arange(450) < 400, (2000, 1)), axis=1).astype(float)
        apart = both @ (order / 400 - (1 - order) / 50).T
        plain = (np.abs(apart) >= np.abs(a.mean(1) - b.mean(1))[:, None]).mean(1)
        assert (plain <= 0.05).mean() > 0.2


def families(rng: np.random.Generator, real: int) -> np.ndarray:
    """A thousand families of 12 cells over 40 examples, of which `real` cells are not null; cells share their examples."""
    shared = rng.normal(size=(1000, 1, 40))
    values = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=(1000, 12, 40))
    values *= rng.choice([-1.0, 1.0], (1000, 1, 40))
    values[:, :real] += 0.7
    return sign_flip_p(values, seed=0)


@pytest.mark.parametrize("real", [0, 4])
def test_adjusted_p_keep_the_false_discoveries_below_5_in_100(real: int) -> None:
    p = families(np.random.default_rng(4), real)
    adjusted = np.stack([adjust(family) for family in p])
    share, found = _false_share(adjusted, real)
    assert share <= 0.05 + noise(0.05, 1000)
    assert _false_share(p, real)[0] > 0.06  # without adjustment
    assert found > 0.9 or real == 0


def _false_share(p: np.ndarray, real: int) -> tuple[float, float]:
    """Mean share of false ones among what is called significant, and the share of the real ones that is."""
    called = p <= 0.05
    false = called[:, real:].sum(1) / np.maximum(called.sum(1), 1)
    return float(false.mean()), float(called[:, :real].mean()) if real else 0.0


PAIRS, SUITES, ROWS = 8, 50, 40
METRICS = ("accuracy", "choice_accuracy", "logit_diff")
RECIPES = (
    *(Recipe("base", (Graft(component, "tuned"),)) for component in ("attn", "mlp", "norms")),
    *(Recipe("base", (Graft(component, "tuned", (layer,)),)) for component in ("attn", "mlp") for layer in (0, 2)),
    Recipe("tuned"),
)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Random prompts, each with two random words of which `tossed` says which is right."""
    rng, rows = np.random.default_rng(0), []
    for i in range(SUITES * ROWS):
        prompt, *words = (" ".join(f"w{w}" for w in rng.integers(0, 60, 4)), *(f" w{w}" for w in rng.choice(60, 2, replace=False)))
        rows.append({"id": str(i), "prompt": prompt, "choices": words, "label": 0, "contrast": words[1], "domain": "id"})
    (batch,) = make_batches(make_suite("coins", rows), tokenizer, len(rows))
    return batch


def tossed(prompts: Batch, seed: int) -> Batch:
    """A fair coin says which of a prompt's two words is right: no update can help or harm, whatever it changes.

    Had the coin fallen on its other side, what an update does to the row would have the other sign: the null, by construction.
    """
    coin = torch.rand(len(prompts.rows), generator=torch.Generator().manual_seed(seed)) < 0.5
    first, second = prompts.choices.T
    return replace(prompts, answer=torch.where(coin, first, second), contrast=torch.where(coin, second, first))


def changes(pair: Pair, batch: Batch, metrics: tuple[str, ...], recipes: tuple[Recipe, ...]) -> np.ndarray:
    """recipe - base by (metric, recipe, suite, row), through the engine."""
    base, tuned = (run_plain(pair.side(side), batch).logits for side in ("base", "tuned"))
    context = Context(batch, base, tuned)
    found = evaluate(pair, recipes, batch, partial(measure, metrics, context))
    before = measure(metrics, context, base)
    out = np.stack([(found[name] - before[name]).double().numpy() for name in metrics])
    return out.reshape(len(metrics), len(recipes), SUITES, ROWS)


def test_on_null_pairs_at_most_5_in_100_findings_are_false(prompts: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    p, holds = [], []
    for seed in range(PAIRS):
        pair = load_pair(base, tuned_from(base, 10 + seed, "layers|norm"), tokenizer=tokenizer)
        found = changes(pair, tossed(prompts, seed), METRICS, RECIPES)
        assert (found != 0).mean((1, 2, 3)).min() > 0.01  # the update does change what the model says
        p.append(sign_flip_p(found, seed=0))
        low, high = mean_interval(found[2], seed=0)
        holds.append((low <= 0) & (high >= 0))
    each = np.stack(p)  # pair, metric, recipe, suite
    # Recipes share their examples, so the noise of a rate is that of about one trial for each suite of each pair.
    for metric in range(len(METRICS)):
        assert (each[:, metric] <= 0.05).mean() <= 0.05 + noise(0.05, PAIRS * SUITES), METRICS[metric]
    assert np.mean(holds) >= 0.93 - noise(0.07, PAIRS * SUITES)
    grids = np.moveaxis(each, -1, 1).reshape(PAIRS * SUITES, -1)
    assert np.mean([(adjust(grid) <= 0.05).any() for grid in grids]) <= 0.05 + noise(0.05, PAIRS * SUITES)
    assert np.mean((grids <= 0.05).any(axis=1)) > 0.3  # what adjusting is for: many a table holds something by chance


def test_on_a_null_pair_of_swapped_words_log_probabilities_are_null_as_well(prompts: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tuned says of each word what base says of its partner; over random answers neither can be better."""
    base, tuned = make("llama", 1), make("llama", 1)
    words = torch.arange(4, 64)
    tuned.lm_head.weight.data[words] = base.lm_head.weight.data[words ^ 1]
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    found = changes(pair, tossed(prompts, 0), ("logprob", "prob"), (Recipe("base", (Graft("unembed", "tuned"),)),))
    assert np.abs(found).mean() > 0.1
    assert (sign_flip_p(found, seed=0) <= 0.05).mean() <= 0.05 + noise(0.05, SUITES)


def test_an_update_that_touches_no_word_of_the_suite_is_exactly_nothing(prompts: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
    base, tuned = make("llama", 1), make("llama", 1)
    tuned.model.embed_tokens.weight.data[2:4] += 1  # the end of text and the unknown word, which no prompt has
    pair = load_pair(base, tuned, tokenizer=tokenizer)
    found = changes(pair, tossed(prompts, 0), ("logprob", "accuracy"), (Recipe("tuned"),))
    assert (sign_flip_p(found, seed=0) == 1).all() and (np.stack(mean_interval(found, seed=0)) == 0).all()


def test_an_update_that_does_something_is_no_null_pair(prompts: Batch, tokenizer: PreTrainedTokenizerBase) -> None:
    base = make("llama", 0)
    pair = load_pair(base, tuned_from(base, 10, "layers|norm"), tokenizer=tokenizer)
    gain = run_plain(pair.tuned, prompts).logits - run_plain(pair.base, prompts).logits
    helped = (gain.gather(1, prompts.choices)).sort(1, descending=True).indices
    loaded = replace(prompts, answer=prompts.choices.gather(1, helped)[:, 0], contrast=prompts.choices.gather(1, helped)[:, 1])
    p = sign_flip_p(changes(pair, loaded, ("logit_diff",), (Recipe("tuned"),)), seed=0)
    assert (p <= 0.05).mean() > 0.9
