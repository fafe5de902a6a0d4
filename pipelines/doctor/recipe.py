"""Does the recipe describe something that can be trained with the code and the data that are here?"""

from __future__ import annotations

import warnings
from pathlib import Path

from agmm.kernels import check as kernel_gate
from agmm.kernels import convolution, native
from agmm.metrics.cost import count_parameters
from pipelines.config import RunConfig
from pipelines.data.cache import size
from pipelines.data.loaders import INSTALL_FFCV, why_absent
from pipelines.data.manifest import is_stamped
from pipelines.data.origin import open_origin
from pipelines.data.staging import is_staged
from pipelines.doctor.check import Outcome
from pipelines.driver import check_network, find_data
from pipelines.progress import Say


def data(config: RunConfig, say: Say, *, stage: bool) -> Outcome:
    """The data set is there, whole, and fits; one in a store is copied here only if `stage`, else its manifest is read.

    Files that were hashed once and not touched since are not hashed again.
    """
    uri = str(config.data.uri)
    if "://" in uri and not stage:
        origin = open_origin(uri)
        if not is_staged(origin.key):
            return "pass", f"{uri}: {size(origin.bytes)}, to be staged on every node", ""
    folder, manifest = find_data(config, say)
    counts = ", ".join(f"{info.count} {split}" for split, info in sorted(manifest.splits.items()))
    how = "hashed" if is_stamped(folder, manifest) else "hashed; the folder is read-only, so each run hashes it again"
    return "pass", f"{folder}: {counts}, {how}", ""


def bytes_to_stage(config: RunConfig) -> int:
    """Of the data set, on a node that has none of it yet; 0 for a folder that all see."""
    uri = str(config.data.uri)
    return open_origin(uri).bytes if "://" in uri else 0


def network(config: RunConfig) -> Outcome:
    """Network, optimiser and loss can be built."""
    found = count_parameters(check_network(config))
    return (
        "pass",
        f"{config.model.arch}: {found.total:,} parameters, {found.megabytes:.2f} MB at 1 bit a binary weight",
        "",
    )


def kernels(config: RunConfig) -> Outcome:
    """The compiled passes are there and agree with plain torch on this machine."""
    if config.run.kernels == "reference":
        return "pass", "run.kernels=reference: plain torch", ""
    if reason := native.why_not():
        advice = "Install a C++ compiler, then agmm again (pip install .); or train on, slower, through plain torch."
        return "warn", f"no compiled kernels ({reason}).", advice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it is told here
        agree = kernel_gate.agrees() and convolution.agrees()
    if not agree:
        advice = "Install agmm again on this machine (pip install --force-reinstall .), or set run.kernels=reference."
        return "fail", f"the compiled kernels ({native.path()}) differ from plain torch here.", advice
    return "pass", f"compiled for {native.path()}, and agree with plain torch", ""


def loader(config: RunConfig) -> Outcome:
    """FFCV can be imported where the recipe may use it."""
    if config.data.loader == "torch" or config.model.in_chans == 2:
        return "pass", "not used: data.loader=torch, or event frames", ""
    reason = why_absent()
    if reason is None:
        return "pass", "FFCV imports", ""
    asked = config.data.loader == "ffcv"
    return (
        "fail" if asked else "warn",
        f"FFCV does not import ({reason}).",
        f"{INSTALL_FFCV}; or set data.loader=torch.",
    )


def folder_of(config: RunConfig, say: Say) -> tuple[Path, int, int]:
    """The data's folder here, and how many images it has to train on and to validate on."""
    folder, manifest = find_data(config, say)
    return folder, manifest.splits["train"].count, manifest.splits["val"].count
