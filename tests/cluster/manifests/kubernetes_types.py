"""What of Kubernetes' and KubeRay's types the manifests use, strictly: a field of another name or kind is refused.

Written after the API references of Kubernetes 1.28 and KubeRay 1.5 to 1.7.
"""

# ruff: noqa: N815, the names are Kubernetes' own

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(m|Mi|Gi)?$")]
Label = Annotated[str, Field(max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=0)]


class Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SecretKey(Kind):
    name: str
    key: str


class Source(Kind):
    secretKeyRef: SecretKey


class Variable(Kind):
    name: str
    value: str | None = None
    valueFrom: Source | None = None


class ContainerPort(Kind):
    name: Annotated[str, Field(max_length=15)]
    containerPort: Port


class Resources(Kind):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Capabilities(Kind):
    drop: list[str]


class ContainerSecurity(Kind):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Mount(Kind):
    name: str
    mountPath: str


class Container(Kind):
    name: Label
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"]
    ports: list[ContainerPort] = []
    env: list[Variable] = []
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[Mount] = []


class Seccomp(Kind):
    type: Literal["RuntimeDefault"]


class PodSecurity(Kind):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(ge=1)]
    runAsGroup: Annotated[int, Field(ge=1)]
    fsGroup: Annotated[int, Field(ge=1)]
    fsGroupChangePolicy: Literal["OnRootMismatch"]
    seccompProfile: Seccomp


class Toleration(Kind):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: str


class Pod(Kind):
    automountServiceAccountToken: bool
    securityContext: PodSecurity
    terminationGracePeriodSeconds: Seconds = 30
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[dict[str, Any]] = []
    restartPolicy: Literal["Never"] | None = None
    priorityClassName: str | None = None
    imagePullSecrets: list[dict[str, str]] = []
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []


class PodMetadata(Kind):
    labels: dict[str, Label]
    annotations: dict[str, str] = {}


class PodTemplate(Kind):
    metadata: PodMetadata
    spec: Pod


class Auth(Kind):
    mode: Literal["token"]


class Autoscaler(Kind):
    idleTimeoutSeconds: Seconds
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    securityContext: ContainerSecurity


class HeadGroup(Kind):
    serviceType: Literal["ClusterIP"]
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Kind):
    groupName: Label
    replicas: Seconds
    minReplicas: Seconds
    maxReplicas: Seconds
    rayStartParams: dict[str, str]
    template: PodTemplate


class ClusterSpec(Kind):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Kind):
    entrypoint: str
    metadata: dict[str, str]
    submissionMode: Literal["K8sJobMode"]
    backoffLimit: Seconds
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Seconds
    submitterPodTemplate: PodTemplate
    rayClusterSpec: ClusterSpec


class Metadata(Kind):
    name: Annotated[str, Field(max_length=47, pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")]
    namespace: Label
    labels: dict[str, Label]


class RayCluster(Kind):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Kind):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec
