"""Train, convert, evaluate, and the recipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.doctor import EFFICIENCY, PRICE, Asked, check_up
from pipelines.cli.output import JSON, SET, say, show, table
from pipelines.cli.services import use_services

if TYPE_CHECKING:
    from pipelines.config import RunConfig


@click.command()
@click.argument("recipe")
@SET
@click.option("--resume", is_flag=True, help="Go on with the newest unfinished run of this recipe.")
@click.option("--or-start", is_flag=True, help="With --resume: start a run where there is none, for restarted jobs.")
@click.option("--dry-run", is_flag=True, help="Make all checks of `agmm doctor`, time 30 steps, and open no run.")
@PRICE
@EFFICIENCY
@JSON
def train(
    recipe: str,
    overrides: tuple[str, ...],
    resume: bool,
    or_start: bool,
    dry_run: bool,
    as_json: bool,
    **estimate: Any,
) -> int | None:
    """Train RECIPE, a name or the path of a YAML file: Ray Train, FFCV, MLflow, checkpoints."""
    if dry_run:
        if resume:
            raise click.UsageError("--dry-run opens no run, so that there is none to --resume. Leave one out.")
        return check_up(Asked(recipe, overrides, calibrate=True, **estimate), as_json)
    from pipelines.recipe import load_recipe

    if or_start and not resume:
        raise click.UsageError("--or-start says what --resume does where there is no run. Give both, or neither.")
    config = load_recipe(recipe, overrides)
    use_services()
    show(_train(config, resume, or_start), as_json)
    return None


def _train(config: RunConfig, resume: bool, or_start: bool) -> dict[str, Any]:
    from pipelines.driver import train as train_run
    from pipelines.errors import NothingToResume

    try:
        return train_run(config, resume=resume, say=say)
    except NothingToResume:
        if not or_start:
            raise
    say(f"no run of {config.name!r} to go on with: starting one")
    return train_run(config, resume=False, say=say)


_MOST_STEPS = 1024
_BY_T = ("top1", "loss", "firing", "sops", "macs")
_DATA = click.option("--data", "data_uri", metavar="URI", help="Built data set; default the model's own.")


def _time_steps(_: click.Context, __: click.Parameter, text: str | None) -> list[int]:
    """`4,8,16` as numbers, each once, ascending."""
    words = text.split(",") if text else []
    if not all(word.strip().isdecimal() and 1 <= int(word) <= _MOST_STEPS for word in words):
        raise click.BadParameter(f"{text!r} is not numbers from 1 to {_MOST_STEPS} with commas between, as in 4,8,16.")
    return sorted({int(word) for word in words})


@click.command()
@click.argument("model")
@_DATA
@click.option("--time-steps", metavar="T[,T...]", callback=_time_steps, help="Other T than the model's own.")
@JSON
def evaluate(model: str, data_uri: str | None, time_steps: list[int], as_json: bool) -> None:
    """Exact validation of MODEL: models:/name@alias, runs:/id/model, a checkpoint's address or a model's folder."""
    use_services()
    from pipelines.evaluate import evaluate_model
    from pipelines.home import default_tracking_uri

    result = evaluate_model(model, data_uri, default_tracking_uri(), say, time_steps)
    rows = [] if as_json else result.pop("rows", [])
    show(result if as_json else _summary(result), as_json)
    if rows:
        table([{"T": row["time_steps"]} | {key: f"{row[key]:.4g}" for key in _BY_T} for row in rows], "none")


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """What a person reads of an evaluation: all but the rows by layer, which `--json` has."""
    from pipelines.config import flatten

    return flatten({key: value for key, value in result.items() if key not in ("layers", "firing_by_step")})


@click.command()
@click.argument("model")
@_DATA
@click.option("--out", required=True, metavar="FOLDER", help="Where the spiking model goes; must not be there.")
@click.option("--time-steps", type=click.IntRange(1, _MOST_STEPS), default=32, show_default=True, help="Its T.")
@click.option("--images", type=click.IntRange(1), default=1024, show_default=True, help="To calibrate with.")
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100, min_open=True),
    default=99.9,
    show_default=True,
    help="Of a layer's activations; what is above it is cut.",
)
@JSON
def convert(model: str, out: str, data_uri: str | None, as_json: bool, **settings: Any) -> None:
    """Turn MODEL, trained with relu in its neurons' place, into a rate-coded spiking one with the same weights."""
    use_services()
    from pipelines.convert import convert_model
    from pipelines.home import default_tracking_uri

    show(convert_model(model, out, data_uri, default_tracking_uri(), say, **settings), as_json)


@click.command()
@click.argument("model")
@_DATA
@click.option("--points", type=int, default=21, show_default=True, help="Points along each axis; odd.")
@click.option("--span", type=float, default=1.0, show_default=True, help="Length of the axes to either side.")
@click.option("--images", type=int, default=1000, show_default=True, help="Validation images, spread over the split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the two directions.")
@click.option("--out", required=True, metavar="FOLDER", help="Where to; what is there already is gone on with.")
@JSON
def landscape(model: str, data_uri: str | None, out: str, as_json: bool, **grid: Any) -> None:
    """Loss of MODEL around its weights, along two filter-normalised random directions."""
    use_services()
    from pathlib import Path

    from pipelines.home import default_tracking_uri
    from pipelines.landscape import Grid
    from pipelines.landscape import landscape as compute

    show(compute(model, data_uri, Grid(**grid), Path(out), default_tracking_uri(), say), as_json)


@click.group()
def runs() -> None:
    """The runs in MLflow."""


@runs.command("reap")
@click.option(
    "--stale",
    metavar="MINUTES",
    type=click.FloatRange(1),
    default=5.0,
    show_default=True,
    help="Without a heartbeat, before a run of another machine counts as gone.",
)
@JSON
def runs_reap(stale: float, as_json: bool) -> None:
    """Close RUNNING runs whose process is gone, with what they left unsent; a run that lives is not touched."""
    use_services()
    from datetime import timedelta

    from pipelines.tracking import runs as tracking
    from pipelines.tracking.reap import reap

    uri = tracking.tracking_uri(None)
    rows = [row._asdict() for row in reap(tracking.connect(uri), uri, timedelta(minutes=stale), say)]
    if as_json:
        click.echo(json.dumps({"runs": rows}))
    else:
        table(rows, "no run is RUNNING, and nothing waits to be sent")


@click.group()
def recipes() -> None:
    """The recipes that come with the package."""


@recipes.command("list")
def recipes_list() -> None:
    """Names and first lines."""
    from pipelines.recipe import recipe_names, recipe_text

    table([{"name": name, "what": recipe_text(name).splitlines()[0].lstrip("# ")} for name in recipe_names()], "none")


@recipes.command("show")
@click.argument("recipe")
@SET
def recipes_show(recipe: str, overrides: tuple[str, ...]) -> None:
    """RECIPE as a run would use it, every default filled in."""
    import yaml

    from pipelines.recipe import load_recipe

    click.echo(yaml.safe_dump(load_recipe(recipe, overrides).model_dump(mode="json"), sort_keys=False), nl=False)


@recipes.command("schema")
def recipes_schema() -> None:
    """The JSON schema of a recipe, for editors."""
    from pipelines.recipe import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
