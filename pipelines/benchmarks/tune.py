"""ASHA against random search at equal budget in epochs, with the same configurations drawn, over repeats.

Every configuration of a repeat is trained once, for real and in full, and its curve is recorded. Both searches are then
replayed over the curves (see `replay`): trainings are deterministic and their schedule is tied to their full length, so
a trial that a search ends early has the beginning of the same curve. What the replay hides, the start of a trial, is
measured apart. A repeat is a seed: of the draws, of the weights and of the share of the images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmarks import circumstances
from pipelines.benchmarks.anytime import (
    SEARCHES,
    Repeat,
    found_by,
    rows_of_costs,
    rows_of_ranks,
    rows_of_searches,
)
from pipelines.benchmarks.curves import Curve, Key, read_curves, start_up, train_curves
from pipelines.benchmarks.replay import replay
from pipelines.config import RunConfig
from pipelines.driver import Prepared, prepare
from pipelines.errors import UserError
from pipelines.progress import Say
from pipelines.recipe import load_recipe
from pipelines.report.comparison import anytime_comparison
from pipelines.search.searchers import random_draw
from pipelines.search.space import applied, check_space

_RECIPE = "fashion_mnist_resnet18"
# A training of some twenty seconds of one core, whose learning rate decides as much as the neuron.
_OVERRIDES = (
    *("model.width=4", "data.resolution=16", "data.share=0.1", "optim.epochs=9"),
    *("run.workers=1", "run.measure=none", "run.operations=none"),
    *("tune.space.lr={loguniform: [0.01, 1]}", "tune.concurrent=2"),
)
_STARTS = 3  # that are measured


@dataclass(frozen=True)
class Sizes:
    """What is compared: in each repeat, searches with a `budget` of epochs over the same configurations.

    The default budget is three full trainings of each worker that a search is replayed with.
    """

    repeats: int = 5
    configurations: int = 20
    budget: int | None = None


def bench_config(overrides: tuple[str, ...], data: str | None, epochs: int | None) -> RunConfig:
    """The recipe that is searched over. `data`: address of the built data set; `epochs` of a full training."""
    given = [f"data.uri={data}"] if data else []
    given += [f"optim.epochs={epochs}"] if epochs else []
    return load_recipe(_RECIPE, [*_OVERRIDES, *overrides, *given])


def bench(config: RunConfig, sizes: Sizes, out: Path, processes: int, say: Say) -> dict[str, Any]:
    """Train what `out` lacks, replay both searches, and write curves, result and picture into `out`.

    Raises:
        UserError: for sizes with nothing to compare, or an `out` with curves of another recipe.
        ServiceError: where a process is lost.

    """
    check_space(config)
    budget = sizes.budget or 3 * _workers(config) * config.optim.epochs
    _check(config, sizes, budget, say)
    data = prepare(config, say)
    out.mkdir(parents=True, exist_ok=True)
    curves = _curves(data, sizes, out, processes, say)
    say("measuring what a trial's start costs")
    starts = [start_up(config.model_copy(update={"tune": None}), data.folder) for _ in range(_STARTS)]
    say("replaying the searches over the curves: the scheduler is Ray's, the trainings are over")
    repeats = [_repeat(config, seed, sizes, budget, each) for seed, each in curves.items()]
    rows = rows_of_searches(repeats) + rows_of_ranks(config, curves) + rows_of_costs(repeats, starts)
    result = {"rows": rows, "repeats": [asdict(each) for each in repeats], "budget": budget} | circumstances()
    _write(result, repeats, out)
    say(f"curves, result and picture: {out}")
    return result | {"out": str(out)}


def _workers(config: RunConfig) -> int:
    assert config.tune is not None
    return config.tune.concurrent or 1


def _check(config: RunConfig, sizes: Sizes, budget: int, say: Say) -> None:
    whole = _workers(config) * config.optim.epochs
    if budget < whole:
        raise UserError(
            f"--budget {budget} ends before a trial of {config.optim.epochs} epochs does, with {_workers(config)} at a "
            f"time. Give {whole} or a multiple of it."
        )
    if budget // config.optim.epochs > sizes.configurations:
        raise UserError(
            f"--budget {budget} trains more configurations in full than there are: {sizes.configurations}. Give more "
            "--configurations, or a lower --budget."
        )
    if budget % whole:
        say(f"--budget {budget} is no multiple of {whole}: random search ends with trials that it has not finished")


def _curves(data: Prepared, sizes: Sizes, out: Path, processes: int, say: Say) -> dict[int, dict[int, Curve]]:
    """The curves of all configurations by number, by seed."""
    seeds, numbers = range(1, sizes.repeats + 1), range(1, sizes.configurations + 1)
    path = out / "curves.json"
    known = read_curves(path, data.config, data.manifest.digest)
    jobs = {Key(seed, number): _trial(data.config, seed, number) for number in numbers for seed in seeds}
    say(f"{len(jobs)} trainings of {data.config.optim.epochs} epochs, of which {path} has {len(known.curves)}")
    train_curves(jobs, data.folder, known, path, processes)
    return {seed: {number: known.curves[str(Key(seed, number))] for number in numbers} for seed in seeds}


def _trial(config: RunConfig, seed: int, number: int) -> RunConfig:
    """What `agmm tune` of the recipe with this seed trains as the trial of this number."""
    assert config.tune is not None
    return applied(config.model_copy(update={"seed": seed}), random_draw(config.tune.space, seed)(number))


def _repeat(config: RunConfig, seed: int, sizes: Sizes, budget: int, curves: Mapping[int, Curve]) -> Repeat:
    assert config.tune is not None
    epochs, found = config.optim.epochs, {}
    for name, scheduler in SEARCHES.items():
        changes = {"trials": sizes.configurations, "epochs": budget, "hours": None, "objectives": ("top1",)}
        tune = config.tune.model_copy(update=changes | {"searcher": "random", "scheduler": scheduler})
        found[name] = found_by(
            replay(config.model_copy(update={"seed": seed, "tune": tune}), curves), epochs=epochs, budget=budget
        )
        if math.isnan(found[name].final[-1]):
            raise UserError(f"{name} finished no trial in repeat {seed}. Give more than --budget {budget}.")
    ends = [curve.top1[-1] for curve in curves.values() if len(curve.top1) == epochs]
    return Repeat(seed, max(ends), found)


def _write(result: dict[str, Any], repeats: list[Repeat], out: Path) -> None:
    def curves(what: str) -> dict[str, Any]:
        return {name: np.array([getattr(each.searches[name], what) for each in repeats]) for name in SEARCHES}

    panels = {"top-1, best of those trained in full": curves("final"), "top-1, best of any epoch": curves("seen")}
    anytime_comparison(panels, np.array([each.best for each in repeats])).savefig(out / "anytime.png", dpi=150)
    (out / "result.json").write_text(json.dumps(result, indent=1))
