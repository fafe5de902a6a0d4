"""Two processes with half a batch each against one with the whole: statistics and gradients over all ranks."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing, nn

from agmm.kernels import block_end, native, reference
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import AGMM
from agmm.neuron import LIF

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")
SHAPE, SHARES = (3, 6, 5, 4, 7), ((0, 2), (2, 6))  # unequal: a channel's count is that of all ranks


def whole():
    """n, r and the gradients of x and spikes, of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-9, 10, SHAPE, generator=generator) * 0.13 for _ in range(4)]


def modules():
    torch.manual_seed(0)
    norm = BatchNorm2d(SHAPE[2])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, AGMM(SHAPE[0]), LIF()


def run(function, inputs, norm, gate, neuron):
    """Results, gradients, and the running statistics."""
    n, r, grad_x, grad_spikes = inputs
    n, r = n.clone().requires_grad_(), r.clone().requires_grad_()
    x, spikes = function(n, r, norm, gate, neuron)
    torch.autograd.backward([x, spikes], [grad_x, grad_spikes])
    of_batch = [x.detach(), spikes.detach(), n.grad, r.grad]
    of_parameters = [norm.weight.grad, norm.bias.grad, gate.alpha.grad]
    return of_batch, of_parameters, [norm.running_mean, norm.running_var]


def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    norm, gate, neuron = modules()
    begin, end = SHARES[rank]
    inputs = [each[:, begin:end].contiguous() for each in whole()]
    found = run(block_end, inputs, nn.SyncBatchNorm.convert_sync_batchnorm(norm), gate, neuron)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_are_one_batch(found):
    truth = run(reference.block_end, whole(), *modules())
    for value, *parts in zip(truth[0], *(each[0] for each in found), strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=1), value, rtol=1e-5, atol=1e-5)
    for value, *parts in zip(truth[1], *(each[1] for each in found), strict=True):
        torch.testing.assert_close(sum(parts), value, rtol=1e-5, atol=1e-5)  # which DDP averages
    for value, *parts in zip(truth[2], *(each[2] for each in found), strict=True):
        for part in parts:
            torch.testing.assert_close(part, value, rtol=1e-6, atol=1e-6)


def test_without_other_ranks_it_is_a_plain_norm():
    norm, gate, neuron = modules()
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm))
    n, r, *_ = whole()
    ours, plain = block_end(n, r, sync, gate, neuron), block_end(n, r, norm, gate, neuron)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
