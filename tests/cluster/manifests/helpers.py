"""Settings as a test wants them, and manifests as they are read."""

import yaml

from cluster.manifests import renderers
from cluster.manifests.settings import ClusterSettings

# What a site would say: every part of a manifest is in one that is rendered from this.
FULL = {
    "name": "night-run",
    "image": "registry.example/agmm:cuda",
    "workers": [2, 6],
    "processes": 4,
    "head": {"cpus": 4, "memory": 16, "shm": 4},
    "worker": {"cpus": 32, "memory": 240, "gpus": 4, "shm": 32},
    "grace": 45,
    "preemptible": True,
    "job": {
        "recipe": "imagenet_resnet18",
        "overrides": ["optim.lr=0.05", "tune.space.leak={uniform: [0, 1]}"],
        "data": "s3://agmm/data/imagenet",
        "retries": 5,
        "hours": 36.5,
        "keep": 3600,
    },
    "services": {"store": "s3://agmm", "s3_endpoint": "https://s3.example", "mlflow": "https://mlflow.example"},
    "secrets": {"s3": "site-s3", "mlflow": "site-mlflow", "file": "/home/me/agmm.env"},
    "cache": {"path": "/scratch/agmm", "limit": "2TB"},
    "kuberay": {
        "namespace": "research",
        "clients": ["desks"],
        "cache": {"kind": "host"},
        "node_selector": {"cloud.google.com/gke-spot": "true"},
        "tolerations": [{"key": "nvidia.com/gpu"}, {"key": "spot", "operator": "Equal", "value": "true"}],
        "priority_class": "low",
        "pull_secret": "registry",
    },
    "rayup": {
        "zones": "us-east-1a,us-east-1b",
        "security_groups": ["sg-0123456789abcdef0"],
        "worker_type": "g6.12xlarge",
        "ssh_key": "~/.ssh/cluster.pem",
    },
    "slurm": {
        "partition": "gpu",
        "account": "bsnn",
        "qos": "preemptible",
        "gpu_type": "l4",
        "interface": "ib0",
        "folder": "/shared/me",
        "environment": "/shared/me/venv",
        "modules": ["cuda/13.0"],
    },
}
PLAIN = {"rayup": {"security_groups": ["sg-0123456789abcdef0"]}}


def settings(**changes):
    """The defaults, with what Ray's launcher cannot do without, and these changes."""
    return ClusterSettings.model_validate(PLAIN | changes)


def rendered(target, chosen):
    """The documents of a manifest."""
    return list(yaml.safe_load_all(renderers.render(target, chosen)))
