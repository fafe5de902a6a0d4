"""What comes out of a search: its winner as a recipe and as a registered model, figures, and who ranked how."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import registry
from pipelines.config import RunConfig, TuneConfig
from pipelines.driver import Prepared
from pipelines.errors import ServiceError
from pipelines.progress import Say
from pipelines.report.search import search_figures
from pipelines.report.trials import TrialRow
from pipelines.search.ledger import Ledger
from pipelines.search.lineage import in_words, lineage
from pipelines.search.live import describe
from pipelines.search.objectives import (
    MEASURES,
    RungCorrelation,
    best,
    pareto_front,
    rank_correlation,
    rung_correlations,
    value_of,
)
from pipelines.search.records import Stage, TrialRecord
from pipelines.search.schedulers import rungs
from pipelines.search.space import applied
from pipelines.search.trial import address_of
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking
from pipelines.tracking.lifecycle import Opened
from pipelines.version import code_version
from pipelines.winner import write_recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient


_STAGES = {"search": "", "proxy": " on the proxy", "full": " in full"}


@dataclass(frozen=True)
class Outcome:
    """A search whose trials have ended."""

    config: RunConfig  # the recipe as the user gave it, with its `tune`; its addresses are not this machine's
    data: Prepared
    ledger: Ledger
    stage: Stage  # whose trials count
    run: Opened

    @property
    def tune(self) -> TuneConfig:
        """How it searched."""
        return self.config.tune or TuneConfig()

    @property
    def records(self) -> list[TrialRecord]:
        """The trials that count, by number."""
        return self.ledger.of(self.stage)

    @property
    def rungs(self) -> list[int]:
        """The epochs after which trials were compared, and the last one."""
        return rungs(self.tune, self.config.total_epochs(self.data.manifest.splits["train"].count))

    def address(self, record: TrialRecord) -> str:
        """Where a trial's checkpoints are."""
        return f"{self.data.config.checkpoint.uri}/{address_of(self.run.id, record.number)}"


def conclude(client: MlflowClient, outcome: Outcome, out: Path, say: Say) -> dict[str, Any]:
    """Write down, draw and register what a search has found; returns the summary that `--json` prints.

    Raises ServiceError where no trial has finished, or MLflow fails.
    """
    winner = _winner(outcome)
    found = applied(outcome.config, winner.values).model_copy(update={"name": f"{outcome.config.name}_tuned"})
    write_recipe(out, found, _head(outcome, winner, out), overwrite=True)
    say(f"the winner's recipe: {out}")
    summary = _summary(outcome, winner)
    with tracking.explained(str(outcome.data.config.tracking.uri)):
        _log(client, outcome, summary, out, say)
        model = _register(client, outcome, winner, say)
    about = {"model": model, "recipe": str(out), "run_id": winner.run_id, "checkpoint": outcome.address(winner)}
    return summary | {"best": summary["best"] | about, "run_id": outcome.run.id}


def _winner(outcome: Outcome) -> TrialRecord:
    found = best(outcome.records, outcome.tune.objectives[0])
    if found is None or found.state != "finished":
        causes = "\n".join(map(_end_of, outcome.ledger.trials.values())) or "  no trial was drawn"
        raise ServiceError(
            f"No trial has finished{_STAGES[outcome.stage]}, so nothing was found.\n{causes}\n"
            "Where a budget was used up or trials failed by chance: raise tune.trials, tune.epochs or tune.hours and "
            "go on with --resume. Else change the recipe or its tune.space, and start a new search."
        )
    return found


def _end_of(record: TrialRecord) -> str:
    return f"  trial {record.number}{_STAGES[record.stage]} {record.outcome}" + (
        f": {record.cause}" if record.cause else ""
    )


def _row(record: TrialRecord, tune: TuneConfig) -> dict[str, Any]:
    measured = {each: value_of(record, each) for each in tune.objectives}
    about = {"number": record.number, "stage": record.stage, "state": record.outcome, "epochs": record.last_epoch}
    return (
        about
        | measured
        | {"values": record.values, "cause": record.cause, "run_id": record.run_id}
        | ({"mutations": [each.model_dump() for each in record.mutations]} if record.mutations else {})
    )


def _summary(outcome: Outcome, winner: TrialRecord) -> dict[str, Any]:
    tune, ledger = outcome.tune, outcome.ledger
    summary: dict[str, Any] = {
        "best": _row(winner, tune),
        "trials": [_row(record, tune) for record in ledger.trials.values()],
        "rungs": [row._asdict() for row in _rung_correlations(outcome)],
        "seconds": ledger.seconds,
    }
    if len(tune.objectives) > 1:
        summary["front"] = [record.number for record in pareto_front(outcome.records, tune.objectives)]
    if outcome.stage == "full":
        summary["proxy"] = _proxy_correlation(ledger, tune)
    return summary


def _rung_correlations(outcome: Outcome) -> list[RungCorrelation]:
    return rung_correlations(outcome.records, outcome.rungs, outcome.tune.objectives[0])


def _proxy_correlation(ledger: Ledger, tune: TuneConfig) -> dict[str, Any]:
    """How the ranks of the proxy agree with those of the full training, over the configurations that had both."""
    objective = tune.objectives[0]
    cheap = {tuple(record.values.items()): value_of(record, objective) for record in ledger.of("proxy")}
    pairs = [(cheap.get(tuple(each.values.items())), value_of(each, objective)) for each in ledger.of("full")]
    n, spearman, kendall = rank_correlation(pairs)
    return {"n": n, "spearman": spearman, "kendall": kendall}


def _head(outcome: Outcome, winner: TrialRecord, out: Path) -> list[str]:
    """The lab record of the winner's recipe."""
    tune, name, trials = outcome.tune, outcome.config.name, outcome.ledger.trials.values()
    finished = sum(record.state == "finished" for record in trials)
    last = winner.epochs[-1]
    speed = f", {last['images_per_second']:.0f} images/s" if "images_per_second" in last else ""
    today = datetime.now(UTC).date().isoformat()
    spans = lineage(outcome.ledger.trials, winner)
    changed = (
        f"Changed:  the values, while it trained: {in_words(spans)}. Trained anew with the last of them, it differs."
    )
    return [
        f"{name}, with {describe(winner.values)}: the best of a search.",
        f"Run:      agmm train {out.name}",
        f"Found:    agmm tune {name}: {tune.searcher}, {tune.scheduler}; trial {winner.number} of {len(trials)}, "
        f"{finished} of them to the end; {today}, commit {code_version()}.",
        f"Measured: {_measured(winner, tune)} after {winner.last_epoch} epochs (1 seed, as in the search){speed}.",
        *([changed] if len(spans) > 1 else []),
    ]


def _measured(winner: TrialRecord, tune: TuneConfig) -> str:
    words = []
    for each in tune.objectives:
        value, unit = value_of(winner, each), MEASURES[each].unit
        if value is not None:
            words.append(f"{value:.2%} top-1" if each == "top1" else f"{each} {value:.4g} {unit}".strip())
    return ", ".join(words)


def _log(client: MlflowClient, outcome: Outcome, summary: dict[str, Any], out: Path, say: Say) -> None:
    """The search's own run in MLflow: figures, the table of trials, the winner's recipe and values."""
    tune, run, found = outcome.tune, outcome.run, summary["best"]
    client.log_dict(run.id, summary, "search.json")
    client.log_artifact(run.id, str(out))
    measured = {f"best/{each}": found[each] for each in tune.objectives if found[each] is not None}
    run.journal.log(measured, len(outcome.ledger.trials))
    run.journal.tag("agmm.best", f"trial {found['number']}: {describe(found['values'])}")
    rows = [_drawn(record, tune) for record in outcome.records if record.has_ended]
    modes: dict[str, Literal["max", "min"]] = {each: MEASURES[each].mode for each in tune.objectives}
    figures = search_figures(rows, modes, tune.space, rungs=outcome.rungs, say=say)
    if tune.scheduler == "pbt":
        figures.pop("importances", None)  # the values of its last epochs do not explain a trial
    for name, figure in figures.items():
        tracking.log_figure(client, run.id, figure, name)


def _drawn(record: TrialRecord, tune: TuneConfig) -> TrialRow:
    """A trial as figures take it: what each epoch measured, by objective, and when, by which they are in order."""
    keys = {str(each): MEASURES[each].key for each in tune.objectives} | {"seconds": "seconds"}
    epochs = [
        {name: float(metrics[key]) for name, key in keys.items() if key in metrics}
        for metrics in sorted(record.epochs, key=lambda metrics: metrics["epoch"])
    ]
    assert record.state in ("finished", "pruned", "failed")
    return TrialRow(record.number, dict(record.values), record.state, epochs)


def _register(client: MlflowClient, outcome: Outcome, winner: TrialRecord, say: Say) -> str:
    config = applied(outcome.data.config, winner.values)
    if not winner.run_id:
        raise ServiceError(
            f"Trial {winner.number} has won, and MLflow has not taken its run: nothing can be registered. When MLflow "
            "answers again, the same command with --resume registers it."
        )
    trials, spans = len(outcome.ledger.trials), lineage(outcome.ledger.trials, winner)
    how = describe(winner.values) if len(spans) == 1 else f"the values changed while it trained, {in_words(spans)}"
    note = f"Found by a search of {trials} trials: {how}. The search is MLflow's run {outcome.run.id}."
    store = open_store(outcome.address(winner), proven=True)
    name = config.tracking.register_as
    return registry.publish(client, config, outcome.data.manifest, winner.run_id, store, name, note=note, say=say)
