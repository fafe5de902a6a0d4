"""What only one kind of cluster has: KubeRay, `ray up` and Slurm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cluster.manifests.fields import Count, Folder, Label, Line, Section, Word

_Key = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Value = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]


class Toleration(Section):
    """A taint of nodes that workers accept."""

    key: _Key
    operator: Literal["Exists", "Equal"] = "Exists"
    value: _Value | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"

    @model_validator(mode="after")
    def _has_a_value_to_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("operator=Equal needs a value, and Exists takes none")
        return self


class CacheVolume(Section):
    """Where data sets are cached: on the node, where the next pod finds them, or on a volume as old as the pod."""

    kind: Literal["host", "ephemeral"] = Field("ephemeral", description="host: a folder of the node; ephemeral: a PVC")
    storage_class: Label | None = Field(None, description="of the PVC, best one of local disks; none: the default")
    size: Count = Field(200, description="GiB, of the PVC")


class KubeRay(Section):
    """Kubernetes with the KubeRay operator, 1.5.1 or newer."""

    kind: Literal["job", "cluster"] = Field("job", description="job: a RayJob that ends; cluster: a RayCluster")
    namespace: Label = "default"
    operators: tuple[Label, ...] = Field(("kuberay-system",), description="namespaces of the operator")
    clients: tuple[Label, ...] = Field((), description="namespaces that may reach the dashboard and submit jobs")
    monitors: tuple[Label, ...] = Field(("monitoring",), description="namespaces that may read metrics")
    cache: CacheVolume = CacheVolume()
    node_selector: dict[_Key, _Value] = Field({}, description="of workers")
    tolerations: tuple[Toleration, ...] = Field((), description="of workers")
    priority_class: Label | None = None
    pull_secret: Label | None = None
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    user: int = Field(1000, ge=1, description="uid and gid in the image; never root")
    idle: Count = Field(60, description="seconds, after which a worker without work may go")


def _group_id(address: str) -> str:
    if address.startswith("sg-") and address[3:].isalnum():
        return address
    raise ValueError(f"{address!r} is not a security group's id, sg-...")


class RayUp(Section):
    """Ray's cluster launcher. On AWS it makes the machines; `local` takes those that are there, over SSH."""

    provider: Literal["aws", "local"] = "aws"
    region: Word = "us-east-1"
    zones: Word | None = Field(None, description="with commas between; none: any of the region")
    security_groups: tuple[Annotated[str, AfterValidator(_group_id)], ...] = Field(
        (), description="at least one for AWS: Ray's own opens SSH to the world"
    )
    head_type: Word = "m5.large"
    worker_type: Word = "m5.xlarge"
    disk: Count = Field(250, description="GiB")
    hosts: tuple[Word, ...] = Field((), description="local: addresses, the head's first")
    ssh_user: Word = "ubuntu"
    ssh_key: Line | None = Field(None, description="path of the private key; none: Ray makes one (AWS)")
    token: Line = Field("~/.ray/auth_token", description="file of the token here, mode 0600: ray get-auth-token")
    idle: Count = Field(10, description="minutes, after which a worker without work goes")

    @model_validator(mode="after")
    def _local_machines_are_named(self) -> RayUp:
        if self.provider == "local" and len(self.hosts) < 2:
            raise ValueError("provider=local needs hosts: the head's address and those of workers")
        return self


class Slurm(Section):
    """A batch job: Ray lives as long as it does. All nodes share the folder, and have agmm installed."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gpu_type: Word | None = Field(None, description="as in --gres=gpu:TYPE:N; none: any")
    interface: Word | None = Field(None, description="network that nodes talk over, as ib0; none: the first address")
    folder: Folder | None = Field(None, description="shared by the nodes, for the job's token; none: where submitted")
    environment: Folder | None = Field(None, description="virtual environment whose bin/activate is read")
    modules: tuple[Word, ...] = Field((), description="for `module load`")
    signal: Count = Field(120, description="seconds before its end that Slurm tells the job")
