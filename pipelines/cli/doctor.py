"""`agmm doctor`, and the checks of `agmm train --dry-run`: joins those of `cluster` and of `pipelines`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.output import JSON, SET, say
from pipelines.cli.services import use_services

if TYPE_CHECKING:
    from cluster.doctor import Addresses
    from cluster.nodes import Nodes
    from pipelines.config import RunConfig
    from pipelines.doctor.check import Check, Outcome

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
_SERVICES = (
    "services",
    "secret files",
    "secrets shown",
    "ray token",
    "mlflow password",
    "listeners",
    "encryption",
    "model code",
    "s3 clock",
    "checkpoints",
    "mlflow",
    "ray",
    "versions",
    "clocks",
    "disk",
    "shared memory",
)
_RECIPE = ("recipe", "network", "data", "kernels", "loader", "workers", "memory", "hours")


_OF_NODES = ("ray", "versions", "clocks", "disk", "shared memory", "workers", "memory")
_IMPORTING_S = 60.0  # torch, kernels and FFCV for the first time on this machine

# name: (check, the most seconds that it may take)
Checks = dict[str, tuple[Callable[[], "Outcome"], float | None]]


@dataclass(frozen=True)
class Asked:
    """What the user wants to know. `price_per_hour`: of one worker, from, to."""

    recipe: str | None
    overrides: tuple[str, ...] = ()
    calibrate: bool = False
    price_per_hour: tuple[float, float] | None = None
    efficiency: float = 0.7
    only: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether a check is to be made. The recipe is read in any case, and told of when it is wrong."""
        return not self.only or name in self.only


def _price(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, float] | None:
    """`LOW:HIGH` as two numbers."""
    if text is None:
        return None
    try:
        low, high = (float(word) for word in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high:
        raise click.BadParameter(f"{text!r} is not LOW:HIGH with 0 <= LOW <= HIGH, as in 0.9:1.4.")
    return low, high


PRICE = click.option(
    "--price-per-hour", metavar="LOW:HIGH", callback=_price, help="Of one worker; gives what the run may cost."
)
EFFICIENCY = click.option(
    "--efficiency",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.7,
    show_default=True,
    help="Share of ideal scaling that the longest estimate assumes of several workers.",
)


@click.command()
@click.argument("recipe", required=False)
@SET
@click.option("--calibrate", is_flag=True, help="Stage the data and time 30 steps, for hours (and a price).")
@PRICE
@EFFICIENCY
@click.option("--only", multiple=True, type=click.Choice(_SERVICES + _RECIPE), help="Make this check; may be repeated.")
@JSON
def doctor(recipe: str | None, as_json: bool, **wanted: Any) -> int:
    """Look at services, secrets and nodes, and with RECIPE at all that its run needs. Exit code 1 if a check fails."""
    if recipe is None and (wanted["calibrate"] or wanted["overrides"]):
        raise click.UsageError("--calibrate and --set are about a recipe. Name one.")
    return check_up(Asked(recipe, **wanted), as_json)


def check_up(asked: Asked, as_json: bool) -> int:
    """Make the checks one by one and print each as it ends; 1 if one failed. Raises UserError for an unknown recipe."""
    use_services()
    found: list[Check] = []
    more: dict[str, Any] = {}
    for check in _checks(asked, more):
        found.append(check)
        _show(check, to_stderr=as_json)
    failed = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    if as_json:
        click.echo(json.dumps({"checks": [check._asdict() for check in found]} | more))
    say(f"{len(found)} checks: {failed} failed, {warned} to be warned of")
    return int(failed > 0)


def _show(check: Check, *, to_stderr: bool) -> None:
    """One line; in colours where a terminal reads it."""
    word = click.style(f"{check.status:<4}", fg=_COLOURS[check.status])
    click.echo(f"{word}  {check.name:<15}  {' '.join(filter(None, (check.detail, check.advice)))}", err=to_stderr)


def _checks(asked: Asked, more: dict[str, Any]) -> Iterator[Check]:
    """Recipe first, since all else asks it; then services and nodes, which cost seconds; what takes long comes last."""
    from cluster.nodes import Nodes

    config = None
    if asked.recipe is not None:
        read = _read(asked)
        config = read.config
        if asked.wants("recipe") or config is None:
            yield read.check
    nodes = Nodes(os.environ.get("RAY_ADDRESS") or None)
    yield from _made(asked, nodes, _service_checks(config, nodes))
    if config is None:
        return
    failed = []
    for check in _made(asked, nodes, _recipe_checks(asked, config, nodes)):
        failed += [check.name] if check.status == "fail" else []
        yield check
    if asked.calibrate and asked.wants("hours"):
        yield _hours(asked, config, failed, more)


@dataclass(frozen=True)
class _Read:
    check: Check
    config: RunConfig | None


def _read(asked: Asked) -> _Read:
    """The recipe with its addresses filled in, or the check that says what is wrong with it."""
    from pipelines.doctor.check import examine
    from pipelines.recipe import load_recipe, recipe_text

    assert asked.recipe is not None
    name = asked.recipe
    recipe_text(name)  # one that is not there is no finding, but a mistake in the command
    read: list[RunConfig] = []

    def look() -> Outcome:
        from pipelines.driver import resolve

        read.append(resolve(load_recipe(name, asked.overrides)))
        return "pass", f"{name} is complete, and has no unknown key", ""

    return _Read(examine("recipe", look, None), read[0] if read else None)


def _made(asked: Asked, nodes: Nodes, checks: Checks) -> Iterator[Check]:
    """The checks that are wanted, one by one. Those of nodes are not made once Ray has not let us in."""
    from pipelines.doctor.check import Check, examine

    for name, (look, limit_s) in checks.items():
        if asked.wants(name):
            if nodes.failed and name in _OF_NODES:
                yield Check(name, "warn", "not looked at: Ray does not let us in.", "Cure that first.")
            else:
                yield examine(name, look, limit_s)


def _service_checks(config: RunConfig | None, nodes: Nodes) -> Checks:
    from cluster.doctor import service_checks
    from cluster.nodes import node_checks
    from pipelines.doctor import services
    from pipelines.doctor.check import LIMIT_S
    from pipelines.home import default_store, default_tracking_uri, home

    store = str(config.checkpoint.uri) if config else f"{default_store()}/checkpoints"
    tracking = str(config.tracking.uri) if config else default_tracking_uri()
    experiment = config.tracking.experiment if config else None
    of_services = service_checks(home(), _addresses(store, tracking)) | {
        "checkpoints": lambda: services.store(store),
        "mlflow": lambda: services.mlflow(tracking, experiment),
    }
    of_nodes = node_checks(nodes, cache_needs=lambda: _to_stage(config), shm_needs=lambda: _handed_over(config))
    # a program asks the nodes, which is ended in time
    return {name: (look, LIMIT_S) for name, look in of_services.items()} | {
        name: (look, None) for name, look in of_nodes.items()
    }


def _addresses(store: str, tracking: str) -> Addresses:
    from cluster.doctor import Addresses

    s3 = os.environ.get("AWS_ENDPOINT_URL_S3", "https://s3.amazonaws.com") if store.startswith("s3://") else ""
    return Addresses(s3, tracking, os.environ.get("RAY_ADDRESS", ""), os.environ.get("RAY_API_SERVER_ADDRESS", ""))


def _to_stage(config: RunConfig | None) -> int:
    if config is None:
        return 0
    from pipelines.doctor.recipe import bytes_to_stage

    return bytes_to_stage(config)


def _handed_over(config: RunConfig | None) -> int:
    if config is None:
        return 0
    from pipelines.doctor.room import shared_memory_needs

    return shared_memory_needs(config)


def _recipe_checks(asked: Asked, config: RunConfig, nodes: Nodes) -> Checks:
    from pipelines.doctor import memory, recipe, room

    own_ray = nodes.address is None
    # without a limit: hashing shows its progress, and the program that measures memory is ended in time
    return {
        "network": (lambda: recipe.network(config), _IMPORTING_S),
        "data": (lambda: recipe.data(config, say, stage=asked.calibrate), None),
        "kernels": (lambda: recipe.kernels(config), _IMPORTING_S),
        "loader": (lambda: recipe.loader(config), _IMPORTING_S),
        "workers": (lambda: room.workers(config, nodes.rows(), own_ray=own_ray), None),
        "memory": (lambda: memory.memory(config, nodes.rows(), say), None),
    }


def _hours(asked: Asked, config: RunConfig, failed: list[str], more: dict[str, Any]) -> Check:
    from pipelines.doctor import hours
    from pipelines.doctor.check import Check, examine
    from pipelines.doctor.recipe import folder_of

    if failed:
        return Check("hours", "warn", f"not measured: {', '.join(failed)} failed.", "Cure that first.")

    def look() -> Outcome:
        folder, *images = folder_of(config, say)
        timing = hours.calibrate(config, folder, images[0])
        found = hours.cost(config, timing, *images, efficiency=asked.efficiency, price_per_hour=asked.price_per_hour)
        more.update({"hours": found.hours._asdict(), "price": found.price and found.price._asdict()})
        return hours.outcome(config, timing, found, asked.efficiency)

    return examine("hours", look, None)
