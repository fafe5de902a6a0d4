"""Measurements of runs with several workers, and what follows from them for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.cli.benchmarks import print_rows
from pipelines.cli.output import JSON, say

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ABOVE_ZERO = click.FloatRange(0, min_open=True)
NOT_BELOW_ZERO = click.FloatRange(0)


@click.command("ray")
@click.option("--rounds", type=click.IntRange(2, 1000), default=5, show_default=True, help="Launches of each.")
@click.option("--steps", type=click.IntRange(40), default=160, show_default=True, help="Of a launch.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes, a core each.")
@JSON
def bench_ray(rounds: int, steps: int, workers: int, as_json: bool) -> None:
    """A run's loop under Ray Train against the same loop under torchrun, launched in turns; the peer is torchrun."""
    from pipelines.benchmarks.launching import Size
    from pipelines.benchmarks.ray_train import bench as measure

    result = measure(rounds, say, Size(steps=steps, workers=workers))
    print_rows(result, as_json, ("processor", "workers", "rounds", "steps", "python", "torch"))


@click.command("scale")
@click.option("--rounds", type=click.IntRange(2, 1000), default=15, show_default=True, help="Timings over each link.")
@click.option("--links", "known", type=FILE, help="Measurements of another run, its links.json, in place of new ones.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of links.json and picture; default .agmm/bench-scale."
)
@click.option("--arch", default="agmm_resnet18", show_default=True, help="The network whose step is extrapolated.")
@click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Its channels at the start.")
@click.option("--resolution", type=click.IntRange(8), default=64, show_default=True, help="Of its input, in pixels.")
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="Of a worker in a step.")
@click.option("--step-seconds", type=ABOVE_ZERO, help="Of one worker's step on another device; default as measured.")
@click.option("--sigma", type=click.FloatRange(0, 2), help="Of step times, lognormal; default as measured.")
@click.option("--rate", type=ABOVE_ZERO, default=10.0, show_default=True, help="Gbit/s between nodes.")
@click.option("--latency", type=NOT_BELOW_ZERO, default=25.0, show_default=True, help="Microseconds between nodes.")
@click.option("--per-node", type=click.IntRange(1, 1024), default=8, show_default=True, help="Workers of a node.")
@click.option("--inner-rate", type=ABOVE_ZERO, default=100.0, show_default=True, help="Gbit/s inside a node.")
@click.option(
    "--inner-latency", type=NOT_BELOW_ZERO, default=5.0, show_default=True, help="Microseconds inside a node."
)
@JSON
def bench_scale(known: Path | None, out: Path | None, as_json: bool, rounds: int, **supposed: Any) -> None:
    """A step among up to 1,024 workers, simulated: the peer is fp32 in a ring, and of rows held out what was measured.

    The model is fitted on 2 and 4 ranks in network namespaces with links of 40 Mbit/s and more (root, Linux), and held
    against 2, 3 and 4 ranks at 100 Mbit/s. Latencies come on top of what a message takes here.
    """
    from pipelines.benchmarks import links
    from pipelines.benchmarks.comm import Size
    from pipelines.benchmarks.scale import Inputs, bench
    from pipelines.home import home

    size = Size(supposed["arch"], supposed["width"], resolution=supposed["resolution"], batch_size=supposed["images"])
    inputs = Inputs(
        rate_mbit=1000 * supposed["rate"],
        latency=supposed["latency"] / 1e6,
        each=supposed["per_node"],
        inner_rate_mbit=1000 * supposed["inner_rate"],
        inner_latency=supposed["inner_latency"] / 1e6,
        step_seconds=supposed["step_seconds"],
        spread=supposed["sigma"],
    )
    saved = links.load(known) if known else None
    result = bench(saved, rounds, size, inputs, out or home() / "bench-scale", say)
    print_rows(result, as_json, ("processor", "held_out_error", "supposed", "costs", "picture"))
