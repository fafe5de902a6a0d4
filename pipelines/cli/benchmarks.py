"""Measurements against peers, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.cli.output import JSON, SET, say, show, table


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
    print_rows(measure(uri, rounds, say), as_json)


@bench.command("recovery")
@click.option("--kills", type=click.IntRange(1, 20), default=3, show_default=True, help="Workers to kill.")
@JSON
def bench_recovery(kills: int, as_json: bool) -> None:
    """From kill -9 of one of two workers to the next optimiser step, part by part, in a run of its own."""
    from pipelines.benchmarks.recovery import bench as measure

    print_rows(measure(kills, say), as_json)


@bench.command("tune")
@click.option("--repeats", type=click.IntRange(2, 100), default=5, show_default=True, help="Seeds to compare over.")
@click.option(
    "--configurations", type=click.IntRange(3), default=20, show_default=True, help="Drawn, and trained in full."
)
@click.option("--budget", type=click.IntRange(1), help="Epochs of a search; default three full trainings a worker.")
@click.option("--epochs", type=click.IntRange(2), help="Of a full training; default 9.")
@click.option(
    "--processes", type=click.IntRange(1, 256), default=2, show_default=True, help="To train in, a core each."
)
@click.option("--data", metavar="URI", help="Built Fashion-MNIST; default the home's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of curves and picture; default .agmm/bench-tune.")
@SET
@JSON
def bench_tune(
    repeats: int,
    configurations: int,
    budget: int | None,
    epochs: int | None,
    processes: int,
    data: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """ASHA against random search at equal budget in epochs, over the same configurations; the peer is random search.

    Trainings are real, and each is done once; the searches are replayed over their curves. The same command again
    trains only what --out lacks.
    """
    from pipelines.benchmarks.tune import Sizes, bench_config
    from pipelines.benchmarks.tune import bench as measure
    from pipelines.home import home

    config = bench_config(overrides, data, epochs)
    sizes = Sizes(repeats, configurations, budget)
    print_rows(measure(config, sizes, out or home() / "bench-tune", processes, say), as_json)


@bench.command("inference")
@click.option("--rounds", type=click.IntRange(4, 1000), default=15, show_default=True, help="Timings of each.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Cores, one thread each.")
@click.option("--layers/--no-layers", default=True, help="The convolutions of a ResNet-18 alone.")
@click.option("--networks/--no-networks", default=True, help="Whole networks at batch 1.")
@JSON
def bench_inference(rounds: int, threads: int, layers: bool, networks: bool, as_json: bool) -> None:
    """Packed networks, and their convolutions alone, against torch in float32, bfloat16 and int8, and onnxruntime."""
    from pipelines.benchmarks.inference import NETWORKS
    from pipelines.benchmarks.inference import bench as measure

    result = measure(rounds, threads, layers=layers, networks=NETWORKS if networks else ())
    print_rows(
        result, as_json, ("processor", "kernels", "threads", "rounds", "python", "torch", "numpy", "onnxruntime")
    )


@bench.command("comm")
@click.option("--rounds", type=click.IntRange(2, 1000), default=9, show_default=True, help="Timings of each.")
@click.option("--workers", type=click.IntRange(2, 64), default=2, show_default=True, help="Processes, a core each.")
@click.option("--arch", default="agmm_resnet18", show_default=True, help="The network.")
@click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Its channels at the start.")
@click.option("--resolution", type=click.IntRange(8), default=64, show_default=True, help="Of its input, in pixels.")
@click.option("--seeds", type=click.IntRange(1, 100), help="Measure accuracy instead, over so many seeds.")
@SET
@JSON
def bench_comm(
    rounds: int,
    workers: int,
    arch: str,
    width: int,
    resolution: int,
    seeds: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Bytes and seconds of each run.gradients.kind, among workers over gloo on this machine; the peer is fp32.

    With --seeds the recipe fashion_mnist_resnet18 is trained with each kind instead, changed by --set. `ratio` is then
    the difference to fp32 in points, and `spread` the standard deviation over seeds.
    """
    from pipelines.benchmarks import comm, comm_seeds

    if seeds:
        result = comm_seeds.bench(seeds, workers, overrides, say)
    elif overrides:
        raise click.UsageError("--set changes the recipe that --seeds trains.")
    else:
        result = comm.bench(rounds, workers, say, comm.Size(arch=arch, width=width, resolution=resolution))
    print_rows(result, as_json, ("processor", "workers", "rounds", "python", "torch"))


@bench.command("neuron")
@click.option("--rounds", type=click.IntRange(4, 1000), default=15, show_default=True, help="Timings of each.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Cores, one thread each.")
@click.option("--compiled/--no-compiled", default=True, help="torch.compile of the plain modules, a minute to compile.")
@JSON
def bench_neuron(rounds: int, threads: int, compiled: bool, as_json: bool) -> None:
    """Norm, gate, residual add and neuron as one operation, forward and backward, and the neuron alone.

    Against plain torch, torch.compile, and SpikingJelly and snnTorch where these are installed.
    """
    from pipelines.benchmarks.neuron import bench as measure

    result = measure(rounds, threads, compiled=compiled)
    print_rows(result, as_json, ("processor", "kernels", "threads", "rounds", "python", "torch", "peers"))


@bench.command("step")
@click.option("--rounds", type=click.IntRange(4, 1000), default=9, show_default=True, help="Timings of each.")
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True, help="Cores, one thread each.")
@click.option("--compiled/--no-compiled", default=True, help="torch.compile of SpikingJelly's network, some minutes.")
@JSON
def bench_step(rounds: int, threads: int, compiled: bool, as_json: bool) -> None:
    """A whole training step of ResNet-18, T = 4, 64 px, batch 16, against plain torch and SpikingJelly's neurons."""
    from pipelines.benchmarks.step import bench as measure

    result = measure(rounds, threads, compiled=compiled)
    print_rows(result, as_json, ("processor", "kernels", "threads", "rounds", "python", "torch", "peers"))


@bench.command("memory")
@click.option("--rounds", type=click.IntRange(4, 1000), default=5, show_default=True, help="Timings of each.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Cores, one thread each.")
@JSON
def bench_memory(rounds: int, threads: int, as_json: bool) -> None:
    """What a step of ResNet-18 keeps per neuron and time step by each run.memory, and what that costs in time.

    Against plain torch, and SpikingJelly's neurons where these are installed.
    """
    from pipelines.benchmarks.saved import bench as measure

    result = measure(rounds, threads)
    print_rows(result, as_json, ("processor", "kernels", "threads", "rounds", "python", "torch", "peers"))


@bench.command("loader")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of JPEG files; default synthetic ones of 500 x 375 pixels.",
)
@click.option("--rounds", type=click.IntRange(4, 1000), default=9, show_default=True, help="Epochs of each.")
@click.option("--count", type=click.IntRange(1), default=256, show_default=True, help="Images in an epoch.")
@JSON
def bench_loader(images: Path | None, rounds: int, count: int, as_json: bool) -> None:
    """Random resized crops of 160 and 224 pixels on one core: this loader, stock FFCV, and torchvision's."""
    from pipelines.benchmarks.loader import bench as measure

    result = measure(images, rounds, count)
    print_rows(
        result,
        as_json,
        ("images", "full size", "short side 256", "processor", "rounds", "python", "torch", "ffcv", "torchvision"),
    )


def print_rows(result: dict[str, Any], as_json: bool, words: Sequence[str] = ()) -> None:
    """The rows, and of the circumstances beside the load those that `words` name and the result has."""
    if as_json:
        show(result, as_json)
        return
    table([{key: _cell(value) for key, value in row.items()} for row in result["rows"]], "nothing was measured")
    say(f"{result['cores']} cores, load {result['load']:.1f}: other work on the machine is in these figures")
    if told := ", ".join(f"{word} {result[word]}" for word in words if result.get(word)):
        say(told)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
