import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.checkpoints.saver import Saver
from pipelines.storage import open_store

SHAPE = (64, 16, 8, 8)  # more elements than are copied at once by torch


def _awkward():
    """Tensors that lie in memory in every way that a network's may."""
    whole = torch.randn(SHAPE)
    return {
        "contiguous": whole,
        "channels_last": torch.randn(SHAPE).to(memory_format=torch.channels_last),
        "one by one": torch.randn(65536, 1, 1, 1).to(memory_format=torch.channels_last),
        "with an offset": torch.randn(SHAPE)[3:],
        "with gaps": torch.randn(SHAPE)[:, ::2],
        "transposed": torch.randn(300, 200).T,
        "expanded": torch.randn(300, 1).expand(300, 200),
        "half": torch.randn(SHAPE).to(torch.bfloat16, memory_format=torch.channels_last),
        "bytes": torch.randint(0, 255, (70000,), dtype=torch.uint8),
        "number": torch.tensor(7),
        "none": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(SHAPE)),
    }


def test_what_is_stored_is_what_was_there_in_any_memory_layout(tmp_path):
    store, failures = open_store(str(tmp_path)), []
    saver = Saver(claim(store, "x"), keep=5, max_age_s=60, on_saved=lambda _: None, on_failure=failures.append)
    expected = {}
    for step in (1, 2):  # the second in the memory of the first
        tensors = _awkward()
        expected[step] = {name: value.detach().clone() for name, value in tensors.items()}
        saver.save(Checkpoint(Position(step=step), tensors, {}, {}, config={}))
        for name, value in tensors.items():
            if name != "expanded":
                value.detach().zero_()  # the copy is the saver's own
        while not saver.ready():
            pass
    saver.close()
    assert failures == []
    for step, name in enumerate(checkpoints.committed(store), start=1):
        found = checkpoints.load(store, name).model
        assert found.keys() == expected[step].keys()
        assert all(torch.equal(found[key], value) for key, value in expected[step].items())
        assert all(found[key].dtype == value.dtype for key, value in expected[step].items())
