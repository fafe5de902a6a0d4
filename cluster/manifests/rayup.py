"""A file for `ray up`: a cluster on AWS, or on machines that are there, with SSH the only way in from outside."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.errors import UserError
from cluster.manifests.settings import ClusterSettings
from cluster.manifests.training import cache_path, documents, environment, header, train_command

_TOKEN = "~/.ray/auth_token"  # noqa: S105, where Ray looks by itself
_PORT = 6379
_HEAD, _WORKER = "head", "worker"
# no port of Ray's but those within the security group: the dashboard is reached with `ray dashboard`, through SSH
_START = "ulimit -n 65536; ray start --node-ip-address={address} --disable-usage-stats"


def render(settings: ClusterSettings) -> str:
    """YAML for `ray up`. Raises UserError for AWS without a security group."""
    rayup = settings.rayup
    if rayup.provider == "aws" and not rayup.security_groups:
        raise UserError(
            "rayup.security_groups is empty, and the group that Ray makes by itself opens SSH to the world. Name one "
            "that lets in its own members, and SSH from you: --set rayup.security_groups=[sg-...]."
        )
    tree = {
        "cluster_name": settings.name,
        "max_workers": settings.workers[1],
        **_nodes(settings),
        "idle_timeout_minutes": rayup.idle,
        "provider": _provider(settings),
        "auth": {"ssh_user": rayup.ssh_user, **({"ssh_private_key": rayup.ssh_key} if rayup.ssh_key else {})},
        "docker": _docker(settings),
        "file_mounts": {_TOKEN: rayup.token},
        **_commands(settings),
    }
    return header(settings, _notes(settings)) + documents(tree)


def _notes(settings: ClusterSettings) -> list[str]:
    train = f"RAY_ADDRESS=auto {train_command(settings)}"  # the cluster's Ray, not one of its own
    text = [
        f"The token first, once: ray get-auth-token --generate; chmod 600 {settings.rayup.token}",
        "RAY_AUTH_MODE=token ray up -y FILE; then the training, and ray down -y FILE when it is over:",
        f"RAY_AUTH_MODE=token ray exec FILE {shlex.quote(train)}",
    ]
    if settings.secrets.file:
        text.append(
            f"Credentials: the file {settings.secrets.file} of each machine, mode 0600, as docker's --env-file."
        )
    return text


def _provider(settings: ClusterSettings) -> dict[str, Any]:
    rayup = settings.rayup
    if rayup.provider == "local":
        return {"type": "local", "head_ip": rayup.hosts[0], "worker_ips": list(rayup.hosts[1:])}
    zones = {"availability_zone": rayup.zones} if rayup.zones else {}
    return {"type": "aws", "region": rayup.region, **zones, "cache_stopped_nodes": False}


def _nodes(settings: ClusterSettings) -> dict[str, Any]:
    """The kinds of machines, where the provider makes them."""
    least, most = settings.workers
    if settings.rayup.provider == "local":
        return {"min_workers": least}
    head = {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0}  # no training on the head
    worker = {"resources": _resources(settings), "min_workers": least, "max_workers": most}
    return {
        "head_node_type": _HEAD,
        "available_node_types": {
            _HEAD: {**head, "node_config": _machine(settings, settings.rayup.head_type, spot=False)},
            _WORKER: {
                **worker,
                "node_config": _machine(settings, settings.rayup.worker_type, spot=settings.preemptible),
            },
        },
    }


def _resources(settings: ClusterSettings) -> dict[str, int]:
    shape = settings.worker
    return {"CPU": shape.cpus, **({"GPU": shape.gpus} if shape.gpus else {})}


def _machine(settings: ClusterSettings, kind: str, *, spot: bool) -> dict[str, Any]:
    """What EC2 is asked for. Version 2 of its metadata service only: no request of a page's reaches credentials."""
    disk = {"VolumeSize": settings.rayup.disk, "VolumeType": "gp3", "Encrypted": True}
    return {
        "InstanceType": kind,
        "SecurityGroupIds": list(settings.rayup.security_groups),
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        **({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}),
    }


def _docker(settings: ClusterSettings) -> dict[str, Any]:
    """The container on each machine. Its environment says nothing that is secret; a file on the machine may."""
    cache = cache_path(settings)
    named = {**environment(settings, cache=cache), "RAY_AUTH_MODE": "token"}
    options = [f"--env {shlex.quote(f'{name}={value}')}" for name, value in named.items()]
    options += [f"--volume {cache}:{cache}", "--ulimit nofile=65536:65536", "--security-opt no-new-privileges"]
    options += [f"--env-file {settings.secrets.file}"] if settings.secrets.file else []
    return {
        "image": settings.image,
        "container_name": settings.name,
        "pull_before_run": True,
        "run_options": options,
        "head_run_options": [f"--shm-size={settings.head.shm}g"],
        "worker_run_options": [f"--shm-size={settings.worker.shm}g"],
        "disable_shm_size_detection": True,
    }


def _commands(settings: ClusterSettings) -> dict[str, Any]:
    cache, dashboard = cache_path(settings), "--dashboard-host=127.0.0.1 --include-dashboard=true"
    address = "$(hostname -I | cut -d' ' -f1)"
    start = _START.format(address=address)
    autoscaling = "--autoscaling-config=~/ray_bootstrap_config.yaml"
    cpus = "--num-cpus=0 --num-gpus=0"
    return {
        # outside of the container: the folder that the image's user, 1000, may write to
        "initialization_commands": [f"sudo install -d -m 0700 -o 1000 -g 1000 {cache}"],
        # Ray copies the file with the rights of here, and an error is better than a token that others read
        "setup_commands": [f"chmod 600 {_TOKEN} && test -O {_TOKEN}"],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "cluster_synced_files": [],
        "head_start_ray_commands": ["ray stop", f"{start} --head --port={_PORT} {cpus} {dashboard} {autoscaling}"],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:{_PORT}"],
    }
