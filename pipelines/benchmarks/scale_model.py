"""What an exchange among many workers costs, by the alpha-beta model: sums that can be done on paper.

A message of B bytes takes alpha + B * beta seconds (Hockney 1994). Sizes are bytes, times seconds, of one exchange.
Symbols: N workers, alpha a message, beta a byte. Rings: Thakur, Rabenseifner, Gropp 2005; the pipelined double tree:
Sanders, Speck, Traeff 2009, as in NCCL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.stats import norm

_LARGE = 0.02  # relative error beyond which it is one
_DRAWS = 2000  # quantiles over which an expectation is taken


@dataclass(frozen=True)
class Link:
    """Seconds a message (`alpha`), and a byte (`beta`)."""

    alpha: float
    beta: float


def ring(size: float, workers: int, link: Link) -> float:
    """2 (N - 1) (alpha + size / N * beta): a reduce-scatter, then a gathering, each of N - 1 messages to the next."""
    return 2 * (workers - 1) * (link.alpha + size / workers * link.beta)


def tree(size: float, workers: int, link: Link) -> float:
    """Up and down two binary trees in k pieces, (2 d + k - 1) (alpha + 2 size / k * beta), for the best k.

    d = ceil(log2 N). Each worker sends 2 * size, as much as in a ring of many.
    """
    if workers == 1:
        return 0.0
    stages = 2 * math.ceil(math.log2(workers)) - 1
    pieces = max(1.0, math.sqrt(stages * 2 * size * link.beta / link.alpha)) if link.alpha else math.inf
    if math.isinf(pieces):
        return 2 * size * link.beta
    return (stages + pieces) * (link.alpha + 2 * size / pieces * link.beta)


def hierarchical(size: float, nodes: int, each: int, outer: Link, inner: Link) -> float:
    """A reduce-scatter inside every node, a ring among nodes for each worker's part, a gathering inside.

    A node's workers share its link to others, over which together they send a ring's bytes of the whole.
    """
    return ring(size, each, inner) + ring(size, nodes, outer)


def spread_out(part: float, workers: int, each: int, outer: Link, inner: Link) -> float:
    """Every worker sends every other `part` bytes of its own, all at once, `each` workers to a node.

    Nobody waits for one message before the next, so that they take the time of one beside that of their bytes. Those
    for other nodes leave over the node's one link.
    """
    if workers == 1:
        return 0.0
    away = workers - each
    first = outer.alpha if away else inner.alpha
    return first + (each - 1) * part * inner.beta + away * each * part * outer.beta


def gathered(part: float, workers: int, link: Link) -> float:
    """Everyone's `part` bytes to all, around a ring: (N - 1) (alpha + part * beta)."""
    return (workers - 1) * (link.alpha + part * link.beta)


def overlapped(compute: float, ready: Sequence[float], exchanges: Sequence[float]) -> float:
    """A step whose exchanges run behind the backward pass, in turn, each from when its bucket is `ready`.

    What comes after the last bucket, such as the optimiser, waits for all exchanges. `compute` if they are free.
    """
    free = 0.0
    for since, takes in zip(ready, exchanges, strict=True):
        free = max(free, since) + takes
    return free + compute - ready[-1]


@dataclass(frozen=True)
class Spread:
    """A lognormal distribution about a median of 1; `sigma` is the standard deviation of the logarithm."""

    sigma: float

    def slowest(self, workers: int) -> float:
        """The expectation of the largest of so many draws, by the median of one."""
        if self.sigma == 0:
            return 1.0
        middle = (np.arange(_DRAWS) + 0.5) / _DRAWS
        largest = norm.ppf(middle ** (1 / workers))  # the distribution of the largest of N is F^N
        return float(np.exp(self.sigma * largest).mean())


def spread_of(values: Sequence[float]) -> Spread:
    """By the quartiles of the logarithm, which a few strays do not move."""
    low, high = np.quantile(np.log(values), (0.25, 0.75))
    return Spread(float((high - low) / (norm.ppf(0.75) - norm.ppf(0.25))))


def fitted(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Costs of one of each feature, none negative, with the least relative errors.

    Large errors count by their size, not its square: a sample that something else on the machine has disturbed is not
    to bend all others. features: `[samples, costs]`, how much of each a sample has.

    Raises ValueError for fewer samples than costs.
    """
    if len(features) < features.shape[1]:
        raise ValueError(f"{len(features)} samples cannot tell {features.shape[1]} costs")
    scale = np.maximum(np.abs(features / seconds[:, None]).max(axis=0), np.finfo(float).tiny)  # of very unlike sizes
    shares, wanted = features / seconds[:, None] / scale, np.ones(len(seconds))
    begin, _ = nnls(shares, wanted)
    bent = least_squares(
        lambda costs: shares @ costs - wanted, begin, bounds=(0, np.inf), loss="soft_l1", f_scale=_LARGE, xtol=1e-12
    )
    return bent.x / scale
