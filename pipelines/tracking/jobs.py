"""From a Ray job to the run that it worked on: by the job's id in the run's tags, or by its log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints.committed import committed
from pipelines.errors import ServiceError, UserError
from pipelines.progress import Say
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RUN_LINE = re.compile(r"^(?:started|resuming) run ([0-9a-f]{32}): ", re.MULTILINE)  # as `tracked` says it
_PARENT = "mlflow.parentRunId"


def run_of_job(job: str, log: str, say: Say) -> dict[str, Any]:
    """The id, state, cause and newest checkpoint of the run that a job worked on; empty where there is none.

    What cannot be reached from here is said, and left out.
    """
    named = _RUN_LINE.findall(log)
    found = {"run_id": named[-1]} if named else {}
    uri = tracking.tracking_uri(None)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return found  # no run was ever logged from here
    try:
        client = tracking.connect(uri)
        with tracking.explained(uri):
            run = _tagged(client, job) or (client.get_run(named[-1]) if named else None)
        return found if run is None else _told(run, say)
    except ServiceError as error:
        say(f"what became of the run is not known here: {error}")
        return found


def _tagged(client: MlflowClient, job: str) -> Run | None:
    """The newest run of a job that is no trial's."""
    if re.search(r"[^\w.-]", job):
        return None  # no id of ours
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    some = f"tags.`{tracking.JOBS_TAG}` LIKE '%{job}%'"
    runs = client.search_runs(experiments, some, order_by=["attributes.start_time DESC"])
    mine = [run for run in runs if job in run.data.tags[tracking.JOBS_TAG].split() and _PARENT not in run.data.tags]
    return mine[0] if mine else None


def _told(run: Run, say: Say) -> dict[str, Any]:
    told = {
        "run_id": run.info.run_id,
        "run_status": run.info.status,
        "run_cause": run.data.tags.get(tracking.CAUSE_TAG, ""),
    }
    base = run.data.params.get("checkpoint.uri")
    return told | ({"checkpoint": _newest(f"{base}/{run.info.run_id}", say)} if base else {})


def _newest(address: str, say: Say) -> str:
    """The newest committed checkpoint at a run's address; the address alone where there is none yet."""
    try:
        names = committed(open_store(address))
    except (ServiceError, UserError) as error:
        say(f"its checkpoints cannot be listed from here: {error}")
        return address
    return f"{address}/{names[-1]}" if names else ""
