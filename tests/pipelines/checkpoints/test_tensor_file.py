import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file

from pipelines.checkpoints.tensor_file import _BLOCK, _NAMES, write_tensors


def _tensor(dtype):
    values = torch.arange(-5, 7).reshape(3, 4)
    return values.abs().to(dtype) if dtype is torch.uint8 else values.to(dtype)


def test_the_library_reads_back_every_kind(tmp_path):
    tensors = {str(dtype): _tensor(dtype) for dtype in _NAMES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "none": torch.empty(0, dtype=torch.bool)}
    tensors |= {"odd": torch.tensor([True, False, True]), "nan": torch.tensor([float("nan"), -0.0, float("inf")])}
    write_tensors(tensors, tmp_path / "file")
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("size", [0, 1, _BLOCK - 1, _BLOCK, _BLOCK + 1])
def test_the_hash_is_the_files_own(tmp_path, size):
    tensors = {"long": torch.randint(0, 255, (size,), dtype=torch.uint8), "other": torch.randn(7)}
    digest = write_tensors(tensors, tmp_path / "file")
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert torch.equal(load_file(tmp_path / "file")["long"], tensors["long"])


def test_no_tensors_are_a_file_too(tmp_path):
    write_tensors({}, tmp_path / "file")
    assert load_file(tmp_path / "file") == {}


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(3), "c": torch.ones(1, dtype=torch.float64)}
    one = write_tensors(tensors, tmp_path / "one")
    assert one == write_tensors(dict(reversed(tensors.items())), tmp_path / "other")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which is Linux's")  # noqa: PTH110
def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_tensors({"weight": torch.zeros(_BLOCK)}, tmp_path / "file")
