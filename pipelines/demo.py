"""`make demo`: the whole road on real images with the program's own commands, in its own home, leaving nothing running.

Services up, Fashion-MNIST fetched and built, a binary spiking ResNet trained by two Ray workers through FFCV, tracked
in MLflow, checkpoints in S3, the model promoted, loaded back by its alias, evaluated on every test image, and exported
to a file of 1-bit weights that answers as it does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.progress import clock

RECIPE, DATASET = "fashion_mnist_resnet18", "fashion-mnist"
HOME = Path(".agmm/demo").absolute()
PACKED = HOME / "fashion_mnist_resnet18.safetensors"
ANY_PORT = [word for service in ("s3", "mlflow", "dashboard", "ray") for word in (f"--{service}-port", "0")]


class CommandFailed(RuntimeError):
    """A command of the demo ended with another code than 0."""


def main(arguments: Sequence[str]) -> int:
    """Run the demo; arguments are added to `agmm train` (for example `--set optim.epochs=1`). Returns an exit code."""
    started = time.monotonic()
    try:
        _agmm("up", *ANY_PORT, show=False)
        _agmm("data", "fetch", DATASET, show=False)
        if not (HOME / "data" / DATASET / "manifest.json").exists():
            _agmm("data", "build", DATASET)
        trained = json.loads(_agmm("train", RECIPE, *arguments, "--json", show=False))
        _agmm("models", "promote", RECIPE, "--to", "champion")
        served = json.loads(_agmm("evaluate", f"models:/{RECIPE}@champion", "--json", show=False))
        PACKED.unlink(missing_ok=True)
        exported = json.loads(
            _agmm("export", f"models:/{RECIPE}@champion", "--to", "packed", "--out", str(PACKED), "--json", show=False)
        )
        _agmm("submit", "--", "agmm", "models", "list")
        _agmm("status")
    except CommandFailed as error:
        print(f"\nThe demo stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _agmm("down", check=False)
    print(_summary(trained, served, exported, time.monotonic() - started))
    return 0


def _agmm(*words: str, show: bool = True, check: bool = True) -> str:
    """Run one command as a user would, its progress on the terminal; returns, and by default shows, its result."""
    print(f"\n$ agmm {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "pipelines.cli", *words]
    environment = {**_without_services(), "AGMM_HOME": str(HOME)}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if show:
        print(result.stdout, end="", flush=True)
    if check and result.returncode:
        raise CommandFailed(f"agmm {' '.join(words)} ended with exit code {result.returncode}")
    return result.stdout


def _without_services() -> dict[str, str]:
    """The environment without addresses of other services: the demo brings its own."""
    foreign = ("AGMM_", "AWS_", "MLFLOW_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


def _summary(trained: dict[str, Any], served: dict[str, Any], exported: dict[str, Any], seconds: float) -> str:
    return f"""
A binary spiking ResNet-18 (1-bit weights, 0/1 spikes, T = 2) on Fashion-MNIST
  accuracy     {served["top1"]:.2%} top-1 on all {served["count"]:.0f} test images, loaded back as {served["model"]}
  training     {trained["images_per_second"]:.0f} images/s; {trained["flips"]:.2%} of signs flipped in the last epoch
  model        {served["size_mb"]:.3f} MB at one bit a binary weight, registered as {trained["model"]}
  1-bit file   {exported["file"]}: {exported["size_bytes"] / 1e6:.3f} MB,
               all {exported["equal_integers"]:,} integers of {exported["compared"]} images as in training
  checkpoint   {trained["checkpoint"]}
  run          {trained["run_id"]} in MLflow
  took         {clock(seconds)}
Look at it:    AGMM_HOME={HOME} agmm up    and open the MLflow address that it prints
Train longer:  AGMM_HOME={HOME} agmm train {RECIPE} --set optim.epochs=20"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
