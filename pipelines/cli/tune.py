"""Search over trainings of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.cli.output import JSON, SET, say, show, table
from pipelines.cli.services import use_services


@click.command()
@click.argument("recipe")
@SET
@click.option("--trials", type=click.IntRange(1), help="Configurations to try; short for --set tune.trials=N.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the newest search of this recipe: one that was ended, or that gets a greater budget.",
)
@click.option("--proxy", is_flag=True, help="Train on less first (tune.proxy), and only the best of that in full.")
@click.option("--out", type=click.Path(path_type=Path), help="The winner's recipe; default below .agmm/winners.")
@JSON
def tune(
    recipe: str,
    overrides: tuple[str, ...],
    trials: int | None,
    resume: bool,
    proxy: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Search the space of RECIPE's `tune` section: Ray Tune over real trainings, each a run of its own in MLflow.

    Ends with the winner as a recipe that `agmm train` takes, and as a registered model.
    """
    from pipelines.recipe import load_recipe

    config = load_recipe(recipe, [*overrides, *([f"tune.trials={trials}"] if trials else [])])
    use_services()
    from pipelines.search.launcher import tune_recipe

    result = tune_recipe(config, resume=resume, proxy=proxy, out=out, say=say)
    if as_json:
        show(result, True)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    trials = sorted(result["trials"], key=lambda trial: trial["number"])
    table([_cells(trial) for trial in trials], "no trial was drawn")
    for trial in trials:
        if trial["state"] not in ("finished", "pruned"):
            click.echo(f"trial {trial['number']} {trial['state']}: {trial['cause']}")
    for line in _agreements(result):
        click.echo(line)
    best = result["best"]
    about = {"best": f"trial {best['number']}", **{key: best[key] for key in ("recipe", "model", "run_id")}}
    show(about | {"search": result["run_id"]}, False)


def _agreements(result: dict[str, Any]) -> list[str]:
    """How early results agree with late ones, in words."""
    pairs = [(f"epoch {row['rung']} and epoch {row['later']}", row) for row in result["rungs"]]
    if "proxy" in result:
        pairs.append(("the proxy and the full training", result["proxy"]))
    return [
        f"ranks of {what} agree: Spearman {row['spearman']:.2f}, Kendall {row['kendall']:.2f} (n = {row['n']})"
        for what, row in pairs
        if row["spearman"] is not None
    ]


def _cells(trial: dict[str, Any]) -> dict[str, str]:
    hidden = ("values", "run_id", "cause")
    row = {key: value for key, value in trial.items() if key not in hidden}
    row |= trial["values"]
    return {
        key: f"{value:.4g}" if isinstance(value, float) else str("-" if value is None else value)
        for key, value in row.items()
    }
