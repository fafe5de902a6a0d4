"""A model as an artifact or as C, written once that has answered as the model does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.packed import Runtime, artifact
from agmm.packed.artifact import Artifact
from agmm.packed.c import Compiled, find_compiler, write_c
from agmm.packed.files import whole
from agmm.packed.runtime import normalised
from agmm.packed.verify import Differs, verify
from pipelines.errors import UserError
from pipelines.export.about import packed as pack_model
from pipelines.export.inputs import Inputs
from pipelines.progress import Say
from pipelines.registry import Model

# Share of inputs that float32 may give another class than float64 does; see `agmm.packed.frozen`.
_MOST_OTHER_CLASSES = 0.01


def write_packed(model: Model, out: Path, seen: Inputs, _: Say) -> dict[str, Any]:
    """The model as an artifact. Raises NotPackable, `Differs`, UserError and OSError."""
    packed = pack_model(model)
    compared, _in_c = _compare(model, packed, seen.batches)
    artifact.write(packed, out)
    return {"size_bytes": packed.size, "digest": packed.digest} | compared


def write_source(model: Model, out: Path, seen: Inputs, say: Say) -> dict[str, Any]:
    """The model as C; where there is a compiler, it is compiled and asked before. Raises as `write_packed`."""
    packed, compiler = pack_model(model), find_compiler()
    with tempfile.TemporaryDirectory(prefix="agmm-c-") as folder:
        try:
            source = write_c(packed, Path(folder) / "network.c")
            program = Compiled(source, compiler) if compiler else None
        except ValueError as error:
            raise UserError(f"Cannot export {model.uri}: {error}") from error
        if program is None:
            say("there is no C compiler here: what is compared is the artifact that the C is made from, not the C")
        compared, others = _compare(model, packed, seen.batches, program)
        with whole(out) as partial:
            shutil.copyfile(source.path, partial)
    written = {"flash_bytes": source.flash_bytes, "ram_bytes": source.ram_bytes}
    return written | {"compiled_by": program.compiler if program else "", "other_classes_c": others} | compared


@dataclass(frozen=True)
class _Said:
    """Answers to one batch after another."""

    logits: list[NDArray[np.float32]] = field(default_factory=list)
    classes: list[NDArray[np.int64]] = field(default_factory=list)


def _compare(
    model: Model, packed: Artifact, batches: Iterator[NDArray[np.uint8]], program: Compiled | None = None
) -> tuple[dict[str, Any], int | None]:
    """The artifact against the network in float64, where both must be the same; then what runs fast against that.

    Returns what was found, and how many inputs the C program gives another class than the model, where there is one.
    """
    runtime, said = _runtime(packed), _Said()
    agreement = verify(model.network, packed, _answered(runtime, program, batches, said))
    logits_BK, classes_B = np.concatenate(said.logits), agreement.logits.argmax(1)
    others = _others(f"The {runtime.kernels} kernels", logits_BK.argmax(1), classes_B)
    in_c = _others("The compiled C", np.concatenate(said.classes), classes_B) if program else None
    return {
        "compared": agreement.inputs,
        "equal_integers": agreement.integers,
        "largest_difference": agreement.largest,
        "kernels": runtime.kernels,
        "other_classes_float32": others,
        "median_difference_float32": float(np.median(np.abs(logits_BK - agreement.logits).max(1))),
    }, in_c


def _others(whose: str, classes_B: NDArray[np.int64], wanted_B: NDArray[np.int64]) -> int:
    others = int((classes_B != wanted_B).sum())
    if others > _MOST_OTHER_CLASSES * len(wanted_B):
        raise Differs(
            f"{whose} give{'s' if whose.endswith('C') else ''} {others} of {len(wanted_B)} inputs another class than "
            "the model. AGMM_KERNELS=portable chooses other kernels; please report this."
        )
    return others


def _runtime(packed: Artifact) -> Runtime:
    try:
        return Runtime(packed)
    except ValueError as error:
        raise UserError(str(error)) from error


def _answered(
    runtime: Runtime, program: Compiled | None, batches: Iterator[NDArray[np.uint8]], said: _Said
) -> Iterator[NDArray[np.float32]]:
    """The batches as the network takes them; `said` gets what runtime and program answer to each."""
    taken = runtime.description.input
    for batch in batches:
        inputs = np.moveaxis(batch, -1, -3) if taken.frames else batch
        said.logits.append(runtime(inputs))
        if program:
            said.classes.append(program(inputs))
        yield normalised(batch, taken)
