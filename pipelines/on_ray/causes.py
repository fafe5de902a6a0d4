"""Why workers failed, in words: what a restart would meet again, and what Ray says of those that it lost."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from agmm.loop import NotFinite
from pipelines.errors import ServiceError, UserError

_ADVICE = (
    "Lower data.batch_size, raise run.workers so that each has less of it, or set run.precision=bf16 where the device "
    "computes with it"
)
_MEMORY_OF_NODE = "exit type: NODE_OUT_OF_MEMORY"  # in Ray's words
_OUT_OF_MEMORY = f"Ray ended it because its node ran out of memory. {_ADVICE}."
_HINT = ". A kernel that is short of memory ends processes so: see dmesg, and the logs of the worker's node"


def foreseen(error: BaseException) -> str | None:
    """What to say of an error that a restart would meet again; None for any other."""
    if isinstance(error, (NotFinite, UserError, ServiceError)):
        return f"{type(error).__name__}: {error}"
    if _out_of_memory(error):
        return f"out of memory: {_first_line(error)}. {_ADVICE}."
    return None


def _out_of_memory(error: BaseException) -> bool:
    # torch's allocator of the CPU has no type of its own for it
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return (text or type(error).__name__)[:300].rstrip(".")


def cause(error: Exception, places: Mapping[int, str] = MappingProxyType({})) -> str:
    """What Ray Train met: for each worker that failed on its own, what it said last or how it was lost.

    places: where ranks were, if it is known.
    """
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return _first_line(getattr(error, "controller_failure", error))
    return "\n".join(dict.fromkeys(_of_worker(rank, failures[rank], places.get(rank, "")) for rank in sorted(failures)))


def in_words(trace: str | None) -> str:
    """The text of an error that Ray Tune keeps of a trial: what was raised last, or how the process was lost."""
    lines = [line.strip() for line in (trace or "").splitlines() if line.strip()]
    if not lines:
        return "no reason is known"
    if _MEMORY_OF_NODE in str(trace):
        return _OUT_OF_MEMORY
    if "Worker exit detail: " in str(trace):
        return f"its process was lost: {_detail(str(trace))}{_HINT}"
    return lines[-1][:300]


def _of_worker(rank: int, failure: Exception, place: str) -> str:
    failure = getattr(failure, "health_check_failure", failure)  # what Ray Train met when it asked for the worker
    if text := foreseen(failure):
        return text
    return f"rank {rank}{place and f' on {place}'}: {_lost(failure) or brief(failure)}"


def brief(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {_first_line(error)}"


def _lost(failure: Exception) -> str | None:
    """How Ray lost a worker; None where it is not Ray that speaks."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    text = str(failure)
    if isinstance(failure, OutOfMemoryError) or _MEMORY_OF_NODE in text:
        return _OUT_OF_MEMORY
    if not isinstance(failure, RayActorError):
        return None
    if failure.preempted:
        return "its node was taken away (preempted)"
    if "its node has died" in text:
        return f"its node was lost: {_detail(text)}"
    return f"its process was lost: {_detail(text)}{_HINT}"


def _detail(text: str) -> str:
    """What Ray knows of a death, without its list of common causes and the actor's particulars."""
    known = text.rpartition("Worker exit detail: ")[2] if "Worker exit detail: " in text else text
    lines = [line.strip() for line in known.partition(" Some common causes")[0].splitlines() if line.strip()]
    return lines[-1][:300].rstrip(".")
