"""What each exchange of gradients does to accuracy: real trainings with every kind, over seeds, by ranks over gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.benchmarks import circumstances, row
from pipelines.benchmarks.comm import KINDS
from pipelines.benchmarks.race import machine
from pipelines.benchmarks.ranks import together
from pipelines.config import RunConfig, parse_config
from pipelines.data.staging import data_folder
from pipelines.home import data_address
from pipelines.progress import Say
from pipelines.recipe import load_recipe

RECIPE = "fashion_mnist_resnet18"
_LESS = ("run.measure=none", "run.operations=none", "run.deterministic=true")  # faster, and the same anywhere


def bench(seeds: int, workers: int, overrides: Iterable[str], say: Say) -> dict[str, Any]:
    """Train the demo's recipe with each kind and so many seeds, the recipe's and those after it.

    A row's figures are top-1 in percent. Its `ratio` is the difference to float32 in points, a mean over seeds, each
    compared with its own; its `spread` is ours' standard deviation over seeds.

    Raises UserError for data or a recipe that do not fit; ServiceError where a rank fails.
    """
    config = load_recipe(RECIPE, [*_LESS, *overrides])
    uri = data_address(config.data.uri, config.data.dataset)
    folder = data_folder(uri, config.data.dataset, say)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(config.seed, config.seed + seeds):
        job = {"folder": str(folder), "trees": [_tree(config, seed, kind) for kind in KINDS]}
        with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
            answers = together("pipelines.benchmarks.comm_seeds:train", job, workers, Path(scratch))
        for kind, top1 in zip(KINDS, answers[0], strict=True):
            found[kind].append(100 * top1)
        say(f"seed {seed}: " + ", ".join(f"{kind} {values[-1]:.2f} %" for kind, values in found.items()))
    rows = [_row(kind, found[kind], found["fp32"]) for kind in KINDS]
    about = {"workers": workers, "rounds": seeds, "config": config.model_dump(mode="json")}
    return {"rows": rows, "top1": found, **about, **machine(), **circumstances()}


def _tree(config: RunConfig, seed: int, kind: str) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    tree["seed"] = seed
    tree["run"]["gradients"]["kind"] = kind
    return tree


def _row(kind: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
    points = mean(mine - theirs for mine, theirs in zip(ours, peer, strict=True))
    found = row(f"{kind}: top-1 of {len(ours)} seeds", mean(ours), "%", mean(peer))
    return found | {"ratio": points, "spread": stdev(ours) if len(ours) > 1 else 0.0}


def train(job: dict[str, Any]) -> list[float]:
    """Be one rank of each training of a job in turn; returns their last epochs' top-1."""
    import torch
    import torch.distributed as dist

    from pipelines.loop.worker import run
    from pipelines.loop.world import Outside, World
    from pipelines.storage import open_store
    from pipelines.version import code_version

    world, answers = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu")), []
    for tree in job["trees"]:
        config = parse_config(tree, origin=RECIPE)
        with tempfile.TemporaryDirectory(prefix="agmm-bench-") as store:
            outside = Outside(open_store(store), lambda _row, _step: None, lambda _item: None, lambda _metrics: None)
            answers.append(run(config, world, outside, Path(job["folder"]), code_version())["top1"])
            dist.barrier()
    return answers
