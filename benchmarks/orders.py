"""In which orders Shapley's players should enter: error beside work, where the exact values are known.

Run: python benchmarks/orders.py.

The game is a small residual network of random weights, base and tuned: whose attention- and FFN-like parts are tuned's is a mask, all
masks are evaluated, and so the Shapley values are exact. Each way of drawing orders is given the same number of orders. Its work is what
the shared plan runs, in forwards: masks that agree up to a layer are one up to there. Its error is the mean squared one of a part, as a
share of the values' own variance. What counts is error times work: how large the error is at one cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from numpy.random import Generator

LAYERS, D_MODEL, GAMES, REPEATS = 6, 16, 6, 60
N = 2 * LAYERS
MASKS = np.arange(2**N)
Orders = Callable[[Generator, int], list[np.ndarray]]


def game(seed: int, size: float) -> np.ndarray:
    """The value of every mask: bit 2l + c says that part c of layer l is tuned's, which differs from base's by `size`."""
    rng = np.random.default_rng(seed)
    base, update = rng.normal(size=(2, N, 2, D_MODEL, D_MODEL)) / D_MODEL**0.5
    x = np.tile(rng.normal(size=D_MODEL), (len(MASKS), 1))
    for part in range(N):
        own, other = (np.tanh(x @ w[0]) @ w[1] for w in (base[part], base[part] + size * update[part]))
        x = x + 1.5 / LAYERS**0.5 * np.where(_has(part)[:, None], other, own)
    return x @ rng.normal(size=D_MODEL)


def _has(part: int) -> np.ndarray:
    return (MASKS >> part) & 1 == 1


def exact(values: np.ndarray) -> np.ndarray:
    """Each part's Shapley value, by its definition."""
    sizes = sum(_has(part).astype(int) for part in range(N))
    weight = np.array([1 / (N * comb(N - 1, s)) for s in range(N)])
    without = [MASKS[~_has(part)] for part in range(N)]
    return np.array([(weight[sizes[m]] * (values[m | 1 << part] - values[m])).sum() for part, m in enumerate(without)])


def independent(rng: Generator, n: int) -> list[np.ndarray]:
    return [rng.permutation(N) for _ in range(n)]


def pairs(rng: Generator, n: int) -> list[np.ndarray]:
    return _with_reverses(independent(rng, n // 2))


def rotated(rng: Generator, n: int) -> list[np.ndarray]:
    return _with_reverses([turned for order in independent(rng, n // 4) for turned in (order, np.roll(order, N // 2))])


def nested(rng: Generator, n: int) -> list[np.ndarray]:
    """Two orders that differ in how the upper half of the layers enters: at each step they have the same lower half."""
    found = []
    for order in independent(rng, n // 4):
        again, upper = order.copy(), np.flatnonzero(order >= N // 2)
        again[upper] = rng.permutation(order[upper])
        found += [order, again]
    return _with_reverses(found)


def _with_reverses(orders: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [way for order in orders for way in (order, order[::-1])]


WAYS: dict[str, Orders] = {
    "each by itself": independent,
    "with its reverse (taia-lens)": pairs,
    "with its reverse, and both rotated by half": rotated,
    "with its reverse, and both with the upper layers drawn again": nested,
}


def estimate(values: np.ndarray, orders: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The mean of what each part adds, and the work."""
    chains = [np.concatenate([[0], np.cumsum(1 << order)]) for order in orders]
    added = np.zeros(N)
    for order, chain in zip(orders, chains, strict=True):
        added[order] += np.diff(values[chain]) / len(orders)
    masks = np.unique(np.concatenate(chains))
    return added, sum(len(np.unique(masks & ((2 << part) - 1))) for part in range(N)) / N


def measure(way: Orders, size: float, n: int) -> tuple[float, float]:
    """Error and work, means over games and repeats."""
    found = []
    for seed in range(GAMES):
        values, rng = game(seed, size), np.random.default_rng(seed)
        truth = exact(values)
        for _ in range(REPEATS):
            estimated, work = estimate(values, way(rng, n))
            found.append((((estimated - truth) ** 2).mean() / truth.var(), work))
    error, work = np.mean(found, axis=0)
    return float(error), float(work)


def main() -> None:
    print("| update | orders | each order is asked | error | work, forwards | error x work |\n|---|---|---|---|---|---|")
    for size in (0.3, 1.0):
        for n in (8, 32):
            for name, way in WAYS.items():
                error, work = measure(way, size, n)
                print(f"| {size} | {n} | {name} | {error:.4f} | {work:.1f} | {error * work:.3f} |")


if __name__ == "__main__":
    main()
