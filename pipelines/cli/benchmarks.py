"""Measurements against peers, side by side."""

from __future__ import annotations

from typing import Any

import click

from pipelines.cli.output import JSON, say, show, table


@click.group()
def bench() -> None:
    """Measure on this machine, against peers where there are any. `ratio` is ours by the peer's."""


@bench.command("checkpoint")
@click.option("--rounds", type=click.IntRange(2, 1000), default=30, show_default=True, help="Checkpoints to take.")
@click.option(
    "--uri", metavar="URI", help="Where they go, a folder or s3://bucket/prefix; default a folder in the home."
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of torch, as a worker has.")
@JSON
def bench_checkpoint(rounds: int, uri: str | None, threads: int, as_json: bool) -> None:
    """What a checkpoint of a ResNet-18 with momentum costs training; the peer is torch.save and fsync between steps."""
    from pipelines.cli.services import use_services

    use_services()
    import torch

    from pipelines.benchmarks.checkpoint import bench as measure

    torch.set_num_threads(threads)
    _print(measure(uri, rounds, say), as_json)


@bench.command("recovery")
@click.option("--kills", type=click.IntRange(1, 20), default=3, show_default=True, help="Workers to kill.")
@JSON
def bench_recovery(kills: int, as_json: bool) -> None:
    """From kill -9 of one of two workers to the next optimiser step, part by part, in a run of its own."""
    from pipelines.benchmarks.recovery import bench as measure

    _print(measure(kills, say), as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(result, as_json)
        return
    table([{key: _cell(value) for key, value in row.items()} for row in result["rows"]], "nothing was measured")
    say(f"{result['cores']} cores, load {result['load']:.1f}: other work on the machine is in these figures")


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
