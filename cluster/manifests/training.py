"""What every manifest says of the training, from the same settings: its command and its environment."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from cluster.manifests.settings import ClusterSettings

STOP_MARGIN = 40  # seconds beside the grace, for a process to come to its checkpoint and to end after it


def train_command(settings: ClusterSettings, *, resume: bool = True) -> str:
    """The training as one shell command, every word quoted where it has to be.

    With `resume` it goes on with the unfinished run of the manifest's name, and starts one where there is none, so
    that whoever restarts a job says the same again.
    """
    job = settings.job
    words = ["agmm", "train", job.recipe, *(["--resume", "--or-start"] if resume else [])]
    for override in overrides(settings):
        words += ["--set", override]
    return shlex.join(words)


def overrides(settings: ClusterSettings) -> list[str]:
    """What the manifest changes of the recipe, as a.b=c: what follows from the cluster, see RESERVED, and the job's."""
    least, most = (nodes * settings.processes for nodes in settings.workers)
    return [
        f"name={settings.name}",
        f"run.workers={json.dumps([least, most]) if least < most else least}",
        f"run.cpus_per_worker={settings.worker.cpus // settings.processes}",
        f"checkpoint.grace={settings.grace}",
        *([f"data.uri={settings.job.data}"] if settings.job.data else []),
        *settings.job.overrides,
    ]


def cache_path(settings: ClusterSettings) -> str:
    """The folder in a container that a node's volume for data sets comes to."""
    return settings.cache.path or "/var/cache/agmm"


def environment(settings: ClusterSettings, *, cache: str | None) -> dict[str, str]:
    """Variables of every node that are no secret; `cache` is the folder for data sets, None for the user's own."""
    services = settings.services
    return {
        "AGMM_STORE": services.store,
        **({"AGMM_CACHE": cache} if cache else {}),
        "AGMM_CACHE_LIMIT": settings.cache.limit,
        "AWS_DEFAULT_REGION": services.s3_region,
        **({"AWS_ENDPOINT_URL_S3": services.s3_endpoint} if services.s3_endpoint else {}),
        "MLFLOW_TRACKING_URI": services.mlflow,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds(settings)),
        # a node that is told to end tells Ray, and stays so long for the run to save and to go on without it
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(settings.grace),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def stop_seconds(settings: ClusterSettings) -> int:
    """Seconds from the request to stop to the kill: the checkpoint's grace, and what comes before and after it."""
    return settings.grace + STOP_MARGIN


def header(settings: ClusterSettings, lines: list[str]) -> str:
    """Comment lines at a manifest's head. The settings in them are checked to be of one line."""
    made = f"{settings.name}: made by `agmm cluster render`, not to be edited."
    return "".join(f"# {line}\n" for line in [made, *lines])


def documents(*trees: dict[str, Any]) -> str:
    """YAML of one or several documents, in the order that they were written in, nothing by reference."""
    return yaml.dump_all(trees, Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, _: object) -> bool:
        return True
