"""The pods of a Ray cluster on Kubernetes: container, volumes, and what they may not do."""

from __future__ import annotations

from typing import Any

from cluster.manifests.settings import ClusterSettings, Shape
from cluster.manifests.training import cache_path, environment, stop_seconds

GCS_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8080
_HOME = "/var/lib/agmm"  # as in the image


def labels(settings: ClusterSettings) -> dict[str, str]:
    """Labels of every pod: those that the network policy knows them by."""
    return {"app.kubernetes.io/name": "agmm", "app.kubernetes.io/instance": settings.name}


def head_pod(settings: ClusterSettings) -> dict[str, Any]:
    """The head's pod template. Its token of the API server is for the autoscaler, where there is one."""
    ports = {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
    spec = _pod(settings, _container(settings, "ray-head", settings.head, ports), settings.head)
    spec["automountServiceAccountToken"] = settings.elastic
    return {"metadata": _metadata(settings), "spec": spec}


def worker_pod(settings: ClusterSettings) -> dict[str, Any]:
    """A worker's pod template, on the nodes that the settings name."""
    container = _container(settings, "ray-worker", settings.worker, {"metrics": METRICS_PORT})
    return {"metadata": _metadata(settings), "spec": _pod(settings, container, settings.worker) | _placement(settings)}


def submitter_pod(settings: ClusterSettings) -> dict[str, Any]:
    """The pod that gives the job to the head and follows its log."""
    resources = {"cpu": "500m", "memory": "512Mi"}
    container = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "imagePullPolicy": settings.kuberay.pull_policy,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": container_security(),
    }
    return {
        "metadata": {"labels": labels(settings)},
        "spec": _base(settings) | {"restartPolicy": "Never", "containers": [container]},
    }


def container_security() -> dict[str, Any]:
    """What Kubernetes' restricted standard asks of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _metadata(settings: ClusterSettings) -> dict[str, Any]:
    scrape = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT), "prometheus.io/path": "/metrics"}
    return {"labels": labels(settings), "annotations": scrape}


def _base(settings: ClusterSettings) -> dict[str, Any]:
    """What all pods have: no root, no right at the API server, priority and the key to the image's registry."""
    kuberay = settings.kuberay
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kuberay.user,
            "runAsGroup": kuberay.user,
            "fsGroup": kuberay.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"priorityClassName": kuberay.priority_class} if kuberay.priority_class else {}),
        **({"imagePullSecrets": [{"name": kuberay.pull_secret}]} if kuberay.pull_secret else {}),
    }


def _pod(settings: ClusterSettings, container: dict[str, Any], shape: Shape) -> dict[str, Any]:
    volumes: dict[str, dict[str, Any]] = {
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": f"{shape.shm}Gi"}},
        "work": {"emptyDir": {}},
        "cache": _cache_volume(settings),
    }
    return _base(settings) | {
        "terminationGracePeriodSeconds": settings.grace + stop_seconds(settings),
        "containers": [container],
        "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
    }


def _container(settings: ClusterSettings, name: str, shape: Shape, ports: dict[str, int]) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(shape.gpus)} if shape.gpus else {}
    resources = {"cpu": str(shape.cpus), "memory": f"{shape.memory}Gi", **gpus}
    mounts = {"shm": "/dev/shm", "work": _HOME, "cache": cache_path(settings)}  # noqa: S108
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.kuberay.pull_policy,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "env": _environment(settings),
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": container_security(),
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
    }


def _environment(settings: ClusterSettings) -> list[dict[str, Any]]:
    """Plain values, and those of Secrets by name."""
    plain = environment(settings, cache=cache_path(settings)) | {"AGMM_HOME": _HOME}
    named = {"AWS_ACCESS_KEY_ID": ("s3", "access_key"), "AWS_SECRET_ACCESS_KEY": ("s3", "secret_key")}
    named |= {"MLFLOW_TRACKING_USERNAME": ("mlflow", "username"), "MLFLOW_TRACKING_PASSWORD": ("mlflow", "password")}
    found = {name: (getattr(settings.secrets, kind), key) for name, (kind, key) in named.items()}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in found.items()
        if secret
    ]


def _cache_volume(settings: ClusterSettings) -> dict[str, Any]:
    volume = settings.kuberay.cache
    if volume.kind == "host":
        return {"hostPath": {"path": cache_path(settings), "type": "Directory"}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        **({"storageClassName": volume.storage_class} if volume.storage_class else {}),
        "resources": {"requests": {"storage": f"{volume.size}Gi"}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _placement(settings: ClusterSettings) -> dict[str, Any]:
    kuberay = settings.kuberay
    tolerations = [each.model_dump(exclude_none=True) for each in kuberay.tolerations]
    return {
        **({"nodeSelector": dict(kuberay.node_selector)} if kuberay.node_selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
    }
