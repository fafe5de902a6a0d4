"""Measurements of runs with several workers, and what follows from them for many."""

from __future__ import annotations

import click

from pipelines.cli.benchmarks import print_rows
from pipelines.cli.output import JSON, say


@click.command("ray")
@click.option("--rounds", type=click.IntRange(2, 1000), default=5, show_default=True, help="Launches of each.")
@click.option("--steps", type=click.IntRange(40), default=160, show_default=True, help="Of a launch.")
@click.option("--workers", type=click.IntRange(2, 64), default=2, show_default=True, help="Processes, a core each.")
@JSON
def bench_ray(rounds: int, steps: int, workers: int, as_json: bool) -> None:
    """A run's loop under Ray Train against the same loop under torchrun, launched in turns; the peer is torchrun."""
    from pipelines.benchmarks.ray_train import Size
    from pipelines.benchmarks.ray_train import bench as measure

    result = measure(rounds, say, Size(steps=steps, workers=workers))
    print_rows(result, as_json, ("processor", "workers", "rounds", "steps", "python", "torch"))
