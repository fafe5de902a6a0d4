"""Why workers fail, in words; Ray's own errors as it words them."""

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError

from agmm.loop import NotFinite
from pipelines.errors import ServiceError, UserError
from pipelines.on_ray.causes import cause, foreseen, in_words


def _cpu_allocator():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error", [_cpu_allocator(), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")]
)
def test_memory_that_is_not_there_is_not_there_after_a_restart(error):
    said = foreseen(error)
    assert said.startswith("out of memory: ")
    assert "data.batch_size" in said
    assert "run.workers" in said
    assert "run.precision" in said


@pytest.mark.parametrize("error", [NotFinite("nan"), UserError("no"), ServiceError("down")])
def test_what_was_foreseen_is_said_as_it_is(error):
    assert foreseen(error) == f"{type(error).__name__}: {error}"


def test_a_bug_is_not_foreseen():
    assert foreseen(RuntimeError("shapes do not fit")) is None


class _Failed(Exception):
    def __init__(self, failures):
        self.worker_failures = failures


class _HealthCheck(Exception):
    def __init__(self, failure):
        self.health_check_failure = failure


def _died(message):
    return ActorDiedError(
        ActorDiedErrorContext(error_message=message, actor_id=b"\0" * 16, class_name="RayTrainWorker")
    )


_EXIT = "The actor is dead because its worker process has died. Worker exit type: {} Worker exit detail: {}"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            _died(
                _EXIT.format("SYSTEM_ERROR", "Worker exits with code 2. End of file. Some common causes include: (1)")
            ),
            "rank 3: its process was lost: Worker exits with code 2. End of file. A kernel",
        ),
        (_died(_EXIT.format("NODE_OUT_OF_MEMORY", "Memory on the node is low.")), "its node ran out of memory. Lower"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "its node ran out of memory."),
        (
            _died("The actor died because its node has died. Node Id: 12\n\tthe node was terminated."),
            "its node was lost",
        ),
        (KeyError("bug"), "rank 3: KeyError: 'bug'"),
    ],
)
def test_lost_workers_are_told_in_words(failure, words):
    said = cause(_Failed({3: _HealthCheck(failure)}))
    assert words in said
    assert "actor_id" not in said
    assert "common causes" not in said
    assert ("dmesg" in said) == ("its process was lost" in said)


def test_a_rank_is_told_with_its_place_where_that_is_known():
    error = _Failed({0: KeyError("a"), 1: KeyError("b")})
    assert cause(error, {1: "two (10.0.0.2)"}) == "rank 0: KeyError: 'a'\nrank 1 on two (10.0.0.2): KeyError: 'b'"


def test_ranks_that_met_the_same_are_told_once():
    assert cause(_Failed({0: UserError("no"), 1: UserError("no")})) == "UserError: no"


def test_a_failure_of_the_controller_has_its_first_line():
    assert cause(RuntimeError("no storage\nTraceback")) == "no storage"


_TRACE = "ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1)\n  File x, line 1, in train\n    raise ValueError\n"


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (None, "no reason is known"),
        (" \n", "no reason is known"),
        (_TRACE + "ValueError: shapes do not fit\n\n", "ValueError: shapes do not fit"),
        (_TRACE + "x" * 400, "x" * 300),
    ],
)
def test_the_error_of_a_trial_in_words(trace, words):
    assert in_words(trace) == words


def test_the_lost_process_of_a_trial_in_words():
    exit_ = _EXIT.format("SYSTEM_ERROR", "Worker unexpectedly exits with a connection error code 2. EOF.")
    said = in_words(f"Failure # 2\n{_died(exit_)}\n")
    assert said.startswith("its process was lost: Worker unexpectedly exits with a connection error code 2. EOF. ")
    assert "dmesg" in said
    memory = in_words(str(_died(_EXIT.format("NODE_OUT_OF_MEMORY", "Task was killed due to the node running low"))))
    assert memory.startswith("Ray ended it because its node ran out of memory. ")
    assert "data.batch_size" in memory
