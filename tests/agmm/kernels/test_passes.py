"""The compiled passes are the plain ones to the last bit, on every path of this machine."""

import pytest
import torch

from agmm.kernels import check, compiled, native
from agmm.library import VARIABLE
from tests.agmm.kernels import plain_passes
from tests.agmm.kernels.cases import draw_case


def channels_last(x):
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("path", native.available())
def test_results_and_gradients_are_equal(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    cases = []
    for seed in range(300):
        (*inputs, unit), modules = draw_case(seed)
        inputs = [each if each is None or each.stride(0) == 0 else channels_last(each) for each in inputs]
        if compiled.knows(*modules, len(inputs[0])) and native.Layout.of(inputs[0]).channels_last:
            cases.append(([*inputs, unit], modules))
    assert len(cases) > 100
    ours = [check.run(compiled.block_end, *case, torch.float32) for case in cases]
    plain_passes.install(monkeypatch)
    for case, found in zip(cases, ours, strict=True):
        plain = check.run(compiled.block_end, *case, torch.float32)
        assert [name for name in plain if not torch.equal(found[name], plain[name])] == []
