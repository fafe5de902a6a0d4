"""What a packed network says of files on disk, and what that took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.metrics.energy import energy_mj
from agmm.packed import Measured, Refused, Runtime, load, native
from agmm.packed.picture import fit, open_picture
from agmm.packed.runtime import REFERENCE
from pipelines.errors import ServiceError, UserError
from pipelines.progress import Say

# Those of `agmm.metrics.energy` that count operations alone: how often a runtime reads its weights is its own affair.
_CONVENTIONS = ("horowitz_45nm", "paper_table2")


def predict_files(
    artifact: Path, files: Sequence[Path], say: Say, *, top: int = 1, threads: int = 1, kernels: str | None = None
) -> list[dict[str, Any]]:
    """Of each file the classes, best first, and what an inference took.

    Returns:
        By file `file`, `classes` as a list of `name` and `probability`; `milliseconds` of the network alone;
        `spikes` over all steps and `firing`, their share of neurons; `sops`, `macs`; `energy_mj` by convention.

    Raises:
        UserError: for a file that is no artifact, or not what the artifact takes.
        ServiceError: where there is not enough memory.

    """
    runtime = _runtime(artifact, threads, kernels)
    if kernels is None and (why := native.why_not()):
        say(f"no native kernels, so the reference runs, slowly: {why}")
    inputs = [_input(path, runtime) for path in files]  # a mistake in the last is told before the first is predicted
    try:
        runtime(inputs[0][None])  # buffers are made for the first
        return [_row(path, runtime, pixels, top) for path, pixels in zip(files, inputs, strict=True)]
    except MemoryError as error:
        raise ServiceError(f"There is not enough memory to run {artifact}. Use fewer --threads.") from error


def _runtime(artifact: Path, threads: int, kernels: str | None) -> Runtime:
    try:
        return load(artifact, threads=threads, kernels=kernels or (REFERENCE if native.why_not() else None))
    except Refused as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"{artifact} cannot be read: {error.strerror}. `agmm export MODEL --to packed --out FILE` writes one."
        ) from error
    except ValueError as error:
        raise UserError(f"--kernels: {error}") from error


def _input(path: Path, runtime: Runtime) -> NDArray[np.uint8]:
    taken = runtime.description.input
    if not taken.frames and taken.channels != 3:
        raise UserError(f"The network takes images of {taken.channels} channels, and {path} is read as RGB.")
    try:
        if not taken.frames:
            return fit(open_picture(path), taken)
        frames = np.lib.format.open_memmap(path, mode="r")  # maps: a header that lies costs no memory
    except Exception as error:  # NumPy parses a header as Python, and raises whatever that stumbles on
        raise UserError(f"{path} cannot be read as an input: {type(error).__name__}: {error}") from error
    wanted = [runtime.description.time_steps, taken.channels, taken.height, taken.width]
    if frames.dtype != np.uint8 or list(frames.shape) != wanted:
        raise UserError(f"{path} must hold uint8 frames {wanted}, got {frames.dtype} {list(frames.shape)}.")
    return np.array(frames)


def _row(path: Path, runtime: Runtime, pixels: NDArray[np.uint8], top: int) -> dict[str, Any]:
    measured = runtime.measure(pixels[None])
    energy = energy_mj(measured.macs, measured.sops)
    return {
        "file": str(path),
        "classes": _classes(runtime, measured, top),
        "milliseconds": 1e3 * measured.seconds,
        "spikes": measured.spikes,
        "firing": measured.spikes / measured.neurons,
        "sops": measured.sops,
        "macs": measured.macs,
        "energy_mj": {name: energy[name] for name in _CONVENTIONS},
    }


def _classes(runtime: Runtime, measured: Measured, top: int) -> list[dict[str, Any]]:
    logits = measured.logits[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise UserError(
            f"The network's values overflow in the {runtime.kernels} kernels: there is no class to name. "
            "Look at how it was trained; --kernels reference computes in float64."
        )
    weights = np.exp(logits - logits.max())
    best = np.argsort(-logits, kind="stable")[:top]
    names = runtime.description.classes or tuple(map(str, range(len(logits))))
    return [{"name": names[index], "probability": float(weights[index] / math.fsum(weights))} for index in best]
