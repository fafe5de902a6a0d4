"""A RayJob or RayCluster (ray.io/v1) for the KubeRay operator, and the network policy that closes it off.

Fields as KubeRay 1.5.1 and later have them: `authOptions` came with that version, and asks for Ray 2.52 or later.
"""

from __future__ import annotations

from typing import Any

from cluster.manifests.pods import (
    DASHBOARD_PORT,
    METRICS_PORT,
    container_security,
    head_pod,
    labels,
    submitter_pod,
    worker_pod,
)
from cluster.manifests.settings import ClusterSettings
from cluster.manifests.training import documents, header, train_command

RAY_VERSION = "2.60.0"  # the image's, as in constraints.txt: tests hold the two together


def render(settings: ClusterSettings) -> str:
    """YAML for `kubectl apply -f`: network policy first, so that no pod is open for a moment."""
    last = _job(settings) if settings.kuberay.kind == "job" else _cluster(settings)
    return header(settings, _notes(settings)) + documents(_policy(settings), last)


def _notes(settings: ClusterSettings) -> list[str]:
    secrets = settings.secrets
    wanted = {secrets.s3: "access_key, secret_key", secrets.mlflow: "username, password"}
    named = [f"Secret {name}: {keys}" for name, keys in wanted.items() if name]
    return ["Needs the KubeRay operator 1.5.1 or newer, which makes the token that Ray asks for.", *named]


def _metadata(settings: ClusterSettings) -> dict[str, Any]:
    return {"name": settings.name, "namespace": settings.kuberay.namespace, "labels": labels(settings)}


def _cluster(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(settings),
        "spec": _cluster_spec(settings),
    }


def _job(settings: ClusterSettings) -> dict[str, Any]:
    """A cluster that lives for one training. A try more has a new cluster, and goes on with the same run."""
    job = settings.job
    spec: dict[str, Any] = {
        "entrypoint": train_command(settings),
        "metadata": {"agmm-name": settings.name, "agmm-recipe": job.recipe},
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        **({"activeDeadlineSeconds": int(job.hours * 3600)} if job.hours else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.keep,
        "submitterPodTemplate": submitter_pod(settings),
        "rayClusterSpec": _cluster_spec(settings),
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(settings), "spec": spec}


def _cluster_spec(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": settings.elastic,
        **({"autoscalerOptions": _autoscaler(settings)} if settings.elastic else {}),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # no training on the head: its loss is the run's
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": head_pod(settings),
        },
        "workerGroupSpecs": [_workers(settings)],
    }


def _autoscaler(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "idleTimeoutSeconds": settings.kuberay.idle,
        "upscalingMode": "Default",
        "securityContext": container_security(),
    }


def _workers(settings: ClusterSettings) -> dict[str, Any]:
    least, most = settings.workers
    return {
        "groupName": "workers",
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": worker_pod(settings),
    }


def _policy(settings: ClusterSettings) -> dict[str, Any]:
    """Who may open a connection to the pods: they themselves, operator and clients to the dashboard, monitors."""
    kuberay = settings.kuberay
    rules: list[dict[str, Any]] = [{"from": [{"podSelector": {"matchLabels": labels(settings)}}]}]
    rules += _rule([*kuberay.operators, *kuberay.clients], DASHBOARD_PORT)
    rules += _rule(kuberay.monitors, METRICS_PORT)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(settings),
        "spec": {
            "podSelector": {"matchLabels": labels(settings)},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }


def _rule(namespaces: Any, port: int) -> list[dict[str, Any]]:
    """Entry to one port, from the namespaces of these names. None without names: an empty list would be everybody."""
    names = list(dict.fromkeys(namespaces))
    chosen = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in names]
    return [{"from": chosen, "ports": [{"protocol": "TCP", "port": port}]}] if chosen else []
