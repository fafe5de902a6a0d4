"""How long a step takes among many workers: simulated, by a model fitted on few ranks over shaped links.

The model's costs are fitted on exchanges of gradients, and held against exchanges and whole steps over links, and of a
number of ranks, that it was not fitted on. What follows for more workers is an extrapolation, and marked as simulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipelines.benchmarks import circumstances, links, row
from pipelines.benchmarks.comm import Size
from pipelines.benchmarks.links import Links, Shaped
from pipelines.benchmarks.race import machine
from pipelines.benchmarks.scale_exchange import (
    ALGORITHMS,
    KINDS,
    Bucket,
    Cluster,
    Costs,
    Profile,
    exchange_seconds,
    features,
    mean_step,
    step_seconds,
)
from pipelines.benchmarks.scale_model import Spread, fitted
from pipelines.progress import Say
from pipelines.report.scaling import scaling

WORKERS = (8, 64, 256, 1024)
_TITLES = {
    "ring": "ring; signs to their owners and back",
    "tree": "tree, not measured; signs as left",
    "hierarchical": "in nodes, then among them, not measured",
}
_DRAWN = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class Inputs:
    """What is supposed: links in Mbit/s and seconds of latency beside this machine's own, `each` workers to a node.

    step_seconds: of a step on another device, whose casts and signs are as much faster; spread: its lognormal sigma.
    """

    rate_mbit: float = 10_000.0
    latency: float = 25e-6
    each: int = 8
    inner_rate_mbit: float = 100_000.0
    inner_latency: float = 5e-6
    step_seconds: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Model:
    """What was fitted or measured: costs, a step on one worker, and how steps and exchanges spread."""

    costs: Costs
    profile: Profile
    steps: Spread
    jitter: Spread
    measured_ranks: int  # of which an exchange has the slowest already

    def step(self, kind: str, algorithm: str, workers: int, inputs: Inputs) -> float:
        """Seconds of a step, the mean over whole ones and others, each at the pace of the slowest worker and link."""
        outer = self.costs.link(inputs.rate_mbit, inputs.latency)
        inner = self.costs.link(inputs.inner_rate_mbit, inputs.inner_latency)
        cluster = Cluster(workers, inputs.each, outer, inner)
        late = max(1.0, self.jitter.slowest(workers) / self.jitter.slowest(self.measured_ranks))

        def exchange(bucket: Bucket, kind: str) -> float:
            return late * exchange_seconds(bucket, kind, algorithm, cluster, self.costs)

        return mean_step(self.profile.times(self.steps.slowest(workers)), kind, exchange)


def bench(known: Links | None, rounds: int, size: Size, inputs: Inputs, out: Path, say: Say) -> dict[str, Any]:
    """Measure links, unless they are `known`, and a step; fit, check, extrapolate; `out` gets links and picture.

    Raises UserError where links cannot be made here; ServiceError where a rank fails.
    """
    where = machine()
    measured = known or links.measure(rounds, where["processor"], say)
    if known is None:
        links.save(measured, out / "links.json")
    model = model_of(measured, links.profile_of(size, 30, say), inputs)
    held = list(checked(measured, fit(measured)))
    rows = [*held, *_projected(model, inputs, size.batch_size)]
    about = _about(model, inputs, measured, size, held)
    picture = out / "scale.png"
    _drawn(model, inputs, picture, about)
    return {"rows": rows, "simulated": True, "picture": str(picture), **about, **where, **circumstances()}


def model_of(measured: Links, one: links.Steps, inputs: Inputs) -> Model:
    """The model of what was measured, on the device that the inputs suppose."""
    costs, profile = one.costs(fit(measured)), one.profile()
    steps = one.spread() if inputs.spread is None else Spread(inputs.spread)
    if inputs.step_seconds is not None:
        factor = inputs.step_seconds / profile.compute
        costs = replace(costs, cast=costs.cast * factor, code=costs.code * factor)
        profile = profile.times(factor)
    return Model(costs, profile, steps, measured.jitter(), max(its.ranks for its in measured.shaped))


def fit(measured: Links) -> Costs:
    """The costs by which exchanges alone would have taken as long as they did, over the links to be fitted on."""
    rows, seconds = [], []
    for its in (its for its in measured.shaped if its.fitted):
        samples = [(its.rounds()[0].buckets, kind, its.kinds[kind].exchange) for kind in KINDS]
        samples.append(((Bucket(links.SMALL),), "fp32", its.message))
        for buckets, kind, taken in samples:
            rows.append(features(buckets, kind, its.ranks, its.rate_mbit, its.crowd))
            seconds.append(median(taken))
    return Costs(*fitted(np.array(rows), np.array(seconds)).tolist())


def checked(measured: Links, costs: Costs) -> Iterable[dict[str, Any]]:
    """What the model says of the links that it was not fitted on; the peer is what was measured there.

    Ratios are medians of the rounds' own.
    """
    for its in measured.shaped:
        for kind in KINDS if not its.fitted else ():
            name, found = f"held out: {kind}, {its.ranks} ranks, {its.rate}", its.kinds[kind]
            exchange, steps = predicted(its, kind, costs)
            yield _compared(f"{name}: the exchange", [exchange] * len(found.exchange), found.exchange)
            yield _compared(f"{name}: a step", steps, found.step)


def predicted(its: Shaped, kind: str, costs: Costs) -> tuple[float, list[float]]:
    """Seconds of an exchange alone, and of a step between whole ones in each round.

    Of the round's step without exchanges it is known how long it took.
    """
    costs = costs.crowded(its.crowd)
    link = costs.link(its.rate_mbit)
    exchange = partial(exchange_seconds, algorithm="ring", cluster=Cluster(its.ranks, 1, link, link), costs=costs)
    rounds = its.rounds()
    alone = sum(exchange(bucket, kind) for bucket in rounds[0].buckets)
    return alone, [step_seconds(profile, kind, exchange) for profile in rounds]


def _compared(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
    ratio = median(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    return _simulated(name, median(ours), median(peer)) | {"ratio": ratio}


def _projected(model: Model, inputs: Inputs, images: int) -> list[dict[str, Any]]:
    rows = []
    for workers in WORKERS:
        peer = model.step("fp32", "ring", workers, inputs)
        for algorithm in ALGORITHMS:
            for kind in KINDS:
                step = model.step(kind, algorithm, workers, inputs)
                found = _simulated(f"{workers} workers, {kind}, {algorithm}: a step", step, peer)
                rate = {"images_per_second": images * workers / step}
                rows.append(found | {"efficiency": model.profile.compute / step} | rate)
    return rows


def _simulated(name: str, ours: float, peer: float) -> dict[str, Any]:
    more = {"efficiency": None, "images_per_second": None, "simulated": True}
    return row(name, 1000 * ours, "ms", 1000 * peer) | more


def _about(model: Model, inputs: Inputs, measured: Links, size: Size, held: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the figures rest on."""

    def shapes(*, learnt: bool) -> list[str]:
        return [f"{its.ranks} ranks, {its.rate}" for its in measured.shaped if its.fitted is learnt]

    return {
        "held_out_error": {what: _errors(held, what) for what in ("a step", "the exchange")},
        "fitted_on": shapes(learnt=True),
        "held_out": shapes(learnt=False),
        "costs": asdict(model.costs),
        "step_seconds_of_one": model.profile.compute,
        "sigma_of_steps": model.steps.sigma,
        "sigma_of_exchanges": model.jitter.sigma,
        "supposed": asdict(inputs),
        "measured_on": measured.processor,
        "trained": asdict(size),
    }


def _errors(held: list[dict[str, Any]], what: str) -> dict[str, float] | None:
    """Of the held-out rows of a kind; nothing where none was held out."""
    found = [abs(its["ratio"] - 1) for its in held if its["name"].endswith(what)]
    return {"median": median(found), "largest": max(found)} if found else None


def _drawn(model: Model, inputs: Inputs, path: Path, about: dict[str, Any]) -> None:
    """Draw a step of every kind and algorithm against workers."""
    seconds = {
        _TITLES[algorithm]: {
            kind: [model.step(kind, algorithm, workers, inputs) for workers in _DRAWN] for kind in KINDS
        }
        for algorithm in ALGORITHMS
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scaling(_DRAWN, seconds, model.profile.compute, _words(inputs, about)).savefig(path, dpi=130)


def _words(inputs: Inputs, about: dict[str, Any]) -> list[str]:
    """The inputs in lines, for under the picture."""
    trained, costs, wrong = about["trained"], about["costs"], about["held_out_error"]["a step"]
    device = "supposed" if inputs.step_seconds is not None else about["measured_on"]
    error = f"{wrong['median']:.1%} in the median, {wrong['largest']:.1%} at the most" if wrong else "not known"
    return [
        f"{trained['arch']}, width {trained['width']}, {trained['resolution']} px, batch {trained['batch_size']}: "
        f"{about['step_seconds_of_one']:.3g} s a step without exchanges ({device}), lognormal, sigma "
        f"{about['sigma_of_steps']:.3g}; of exchanges {about['sigma_of_exchanges']:.3g}",
        f"{inputs.each} workers a node; between nodes {inputs.rate_mbit / 1000:g} Gbit/s, {1e6 * inputs.latency:g} us; "
        f"inside {inputs.inner_rate_mbit / 1000:g} Gbit/s, {1e6 * inputs.inner_latency:g} us; of its own a message "
        f"{1e6 * costs['message']:.0f} us, a byte sent {1e9 * costs['byte']:.2g} ns",
        f"fitted on {'; '.join(about['fitted_on'])}",
        f"held out {'; '.join(about['held_out']) or 'nothing'}: error of steps {error}",
    ]
