"""A batch script for Slurm: Ray on the job's nodes, the training, and an end that leaves nothing behind."""

from __future__ import annotations

import shlex
from importlib import resources

from cluster.manifests.settings import ClusterSettings
from cluster.manifests.training import environment, stop_seconds, train_command

_TEMPLATE = "job.sh.in"


def render(settings: ClusterSettings) -> str:
    """The script for `sbatch`. What comes from settings stands at its head, quoted; the rest is the same for all."""
    template = (resources.files("cluster.manifests") / _TEMPLATE).read_text(encoding="utf-8")
    parts = {"directives": _directives(settings), "settings": _assignments(settings), "train": _train(settings)}
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


def _directives(settings: ClusterSettings) -> str:
    slurm, shape, job = settings.slurm, settings.worker, settings.job
    least, most = settings.workers
    options = {
        "job-name": settings.name,
        "nodes": str(least) if least == most else f"{least}-{most}",
        "ntasks-per-node": "1",
        "cpus-per-task": str(shape.cpus),
        "mem": f"{shape.memory}G",
        "gres": _gpus(settings),
        "time": _time(job.hours),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "output": "%x-%j.log",
        "open-mode": "append",
        # to the script alone: it lets the training save, and asks for another turn
        "signal": f"B:TERM@{max(slurm.signal, 2 * stop_seconds(settings))}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    return "\n".join([*lines, "#SBATCH --requeue" if job.retries else "#SBATCH --no-requeue"])


def _gpus(settings: ClusterSettings) -> str | None:
    kind = f":{settings.slurm.gpu_type}" if settings.slurm.gpu_type else ""
    return f"gpu{kind}:{settings.worker.gpus}" if settings.worker.gpus else None


def _time(hours: float | None) -> str | None:
    """Hours as Slurm's H:MM:SS."""
    if hours is None:
        return None
    seconds = round(hours * 3600)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _assignments(settings: ClusterSettings) -> str:
    slurm, shape = settings.slurm, settings.worker
    own = {
        "name": settings.name,
        "cpus": str(shape.cpus),
        "gpus": str(shape.gpus),
        "retries": str(settings.job.retries),
        "stop_seconds": str(stop_seconds(settings)),
        "folder": slurm.folder or "",
        "secrets": settings.secrets.file or "",
    }
    environ = environment(settings, cache=settings.cache.path) | {"interface": slurm.interface or ""}
    environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # its nodes go together, when the training has ended
    environ |= {f"{library}_SOCKET_IFNAME": slurm.interface for library in ("GLOO", "NCCL") if slurm.interface}
    lines = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environ.items()]
    lines += [f"module load {shlex.quote(module)}" for module in slurm.modules]
    activate = f"# shellcheck source=/dev/null\n. {shlex.quote(f'{slurm.environment}/bin/activate')}"
    lines += [activate] if slurm.environment else []
    return "\n".join(lines)


def _train(settings: ClusterSettings) -> str:
    """The training of a first turn, which starts a run, and of a later one, which goes on with it."""
    first, later = train_command(settings, resume=False), train_command(settings)
    return f'if [ "$turn" -eq 0 ]; then\n  set -- {first}\nelse\n  set -- {later}\nfi'
