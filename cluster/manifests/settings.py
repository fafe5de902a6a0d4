"""What a cluster is asked to be: one typed tree that every manifest is rendered from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster.manifests.fields import (
    Count,
    Folder,
    Http,
    Image,
    Label,
    Line,
    Name,
    Range,
    Recipe,
    Section,
    Size,
    Store,
    Word,
)
from cluster.manifests.platforms import KubeRay, RayUp, Slurm

# Fields of a recipe that a manifest sets from its own, so that nodes and run cannot disagree.
RESERVED = {
    "name": "name",
    "run.workers": "workers and processes",
    "run.cpus_per_worker": "worker.cpus and processes",
    "checkpoint.grace": "grace",
    "data.uri": "job.data",
}


class Shape(Section):
    """One node."""

    cpus: Count = 4
    memory: Count = Field(16, description="GiB")
    gpus: int = Field(0, ge=0, le=16)
    shm: Count = Field(4, description="GiB of shared memory, for Ray's objects and loaders; part of memory")

    @model_validator(mode="after")
    def _memory_holds_what_is_shared(self) -> Shape:
        if self.shm >= self.memory:
            raise ValueError(f"shm is a part of memory: {self.shm} GiB of {self.memory}. Lower it, or raise memory")
        return self


class Job(Section):
    """The training."""

    recipe: Recipe = Field("imagenet_resnet18", description="name, or path of a .yaml file on the nodes")
    overrides: tuple[Line, ...] = Field((), description="more a.b=c, as `agmm train --set` takes them")
    data: Store | None = Field(None, description="built data set; default the recipe's own address")
    retries: int = Field(3, ge=0, description="new clusters, or requeues, for a job that lost its own; it resumes")
    hours: float | None = Field(None, gt=0, le=24 * 365, description="after which it is ended; none: the site's limit")
    keep: int = Field(600, ge=0, description="seconds that a finished job's cluster stays, to read its logs")

    @field_validator("overrides")
    @classmethod
    def _are_the_runs_own(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or not key:
                raise ValueError(f"{override!r} is not of the form a.b=value")
            if key in RESERVED:
                raise ValueError(f"{key} follows from the manifest's {RESERVED[key]}: set that instead")
        return overrides


class Services(Section):
    """Where results go. Every node must reach them."""

    store: Store = Field("s3://agmm", description="checkpoints, below it")
    s3_endpoint: Http | None = Field(None, description="default AWS's own")
    s3_region: Word = "us-east-1"
    mlflow: Http = "http://mlflow:5000"


class Secrets(Section):
    """Names of what holds credentials, never their values. Kubernetes: Secrets; elsewhere a file on the nodes."""

    s3: Label | None = Field("agmm-s3", description="Secret with keys access_key and secret_key; none: the node's role")
    mlflow: Label | None = Field("agmm-mlflow", description="Secret with keys username and password")
    file: Folder | None = Field(
        None, description="ray up, Slurm: a file of mode 0600 with lines NAME=value, AWS_... and MLFLOW_TRACKING_..."
    )


class Cache(Section):
    """A node's own copy of data sets."""

    path: Folder | None = Field(None, description="none: /var/cache/agmm in containers, ~/.cache/agmm under Slurm")
    limit: Size = "200GB"


class ClusterSettings(Section):
    """A cluster, and what is trained on it.

    Nodes are as many as `workers` says, [min, max] where they may come and go, each with `processes` training
    processes; the head only conducts, but under Slurm it trains too.
    """

    name: Name = Field("agmm", description="of the cluster and of the run that its job starts or goes on with")
    image: Image = "agmm:cpu"
    workers: Range = Field((1, 2), description="worker nodes: a number, or [min, max]")
    processes: Count = Field(1, description="training processes on a worker node; with GPUs one for each")
    head: Shape = Shape(cpus=2, memory=8, shm=2)
    worker: Shape = Shape()
    grace: int = Field(20, ge=1, le=3600, description="seconds to save a checkpoint in when a node is taken away")
    preemptible: bool = Field(False, description="workers on spot or low-priority nodes, taken away at any time")
    job: Job = Job()
    services: Services = Services()
    secrets: Secrets = Secrets()
    cache: Cache = Cache()
    kuberay: KubeRay = KubeRay()
    rayup: RayUp = RayUp()
    slurm: Slurm = Slurm()

    @model_validator(mode="after")
    def _processes_fit_on_a_node(self) -> ClusterSettings:
        if self.processes > self.worker.cpus:
            raise ValueError(f"worker.cpus={self.worker.cpus} is not one for each of processes={self.processes}")
        if self.worker.gpus not in (0, self.processes):
            raise ValueError(
                f"a training process has one GPU: with worker.gpus={self.worker.gpus} set processes={self.worker.gpus}"
            )
        return self

    @property
    def elastic(self) -> bool:
        """Whether nodes may come and go."""
        return self.workers[0] < self.workers[1]


Target = Literal["kuberay", "rayup", "slurm"]
