"""The fused operation: where it runs, what it does to the norm, and that torch passes through it."""

import copy
import multiprocessing
import threading

import pytest
import torch
from torch import nn

from agmm.kernels import block_end, check, compiled, native, ops, reference, spikes
from agmm.kernels.counted import Counted, edge
from agmm.library import VARIABLE
from agmm.models.blocks import BatchNorm2d, TemporalBatchNorm2d
from agmm.modulation import AGMM, Halve
from agmm.neuron import IF, LIF, PLIF
from tests.agmm.kernels.cases import draw_case

needs_passes = pytest.mark.skipif(not native.available(), reason=f"no compiled passes: {native.why_not()}")
SHAPE = (4, 3, 5, 6, 7)
NEURON = (0.5, 1.0, 1.0, False, True)  # as the operators take it


@pytest.fixture
def calls(monkeypatch):
    """Names of the implementations that ran."""
    check.agrees()  # compares them once, and that is not what is counted
    seen = []

    def watch(module, name):
        function = module.block_end
        monkeypatch.setattr(module, "block_end", lambda *arguments: (seen.append(name), function(*arguments))[1])

    watch(compiled, "compiled")
    watch(reference, "reference")
    return seen


def currents(*shape, seed=0):
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)) * 0.13


def modules():
    return BatchNorm2d(SHAPE[2]), AGMM(SHAPE[0]), LIF()


@needs_passes
def test_it_runs_for_the_networks_of_the_method(calls):
    for neuron in (LIF(), LIF(reset="soft"), IF()):
        for gate in (AGMM(4), AGMM(4, scope="channel"), Halve(), nn.Identity()):
            block_end(currents(*SHAPE), currents(*SHAPE, seed=1), BatchNorm2d(5), gate, neuron)
    assert calls == ["compiled"] * 12


@pytest.mark.parametrize(
    ("norm", "gate", "neuron"),
    [
        (TemporalBatchNorm2d(5, 4), AGMM(4), LIF()),
        (BatchNorm2d(5), AGMM(4, "forward_only"), LIF()),
        (BatchNorm2d(5), AGMM(4, "backward_only"), LIF()),
        (BatchNorm2d(5), AGMM(4), PLIF()),
        (BatchNorm2d(5).double(), Halve(), LIF()),
    ],
)
def test_the_reference_runs_for_anything_else(norm, gate, neuron, calls):
    dtype = next(norm.parameters()).dtype
    x, fired = block_end(currents(*SHAPE).to(dtype), None, norm, gate, neuron)
    assert x.dtype == fired.dtype == dtype
    assert calls == ["reference"]


@needs_passes
def test_a_hook_on_the_neuron_sees_current_and_spikes_and_may_replace_them(calls):
    seen, parts = [], modules()
    plain = block_end(currents(*SHAPE), None, *parts)
    parts[2].register_forward_hook(lambda neuron, given, fired: seen.append((neuron, *given, fired)))
    x, fired = block_end(currents(*SHAPE), None, *parts)
    assert seen[0][0] is parts[2]
    assert all(torch.equal(a, b) for a, b in zip((x, fired, x, fired), (*seen[0][1:], *plain), strict=True))
    parts[2].register_forward_hook(lambda *_: torch.zeros(()))
    assert block_end(currents(*SHAPE), None, *parts)[1].shape == ()
    assert calls == ["compiled"] * 3


@pytest.mark.parametrize("watched", [0, 1])
def test_the_reference_runs_where_a_hook_watches(watched, calls):
    seen = []
    parts = modules()
    handle = parts[watched].register_forward_hook(lambda *_: seen.append(1))
    block_end(currents(*SHAPE), None, *parts)
    assert (seen, calls) == ([1], ["reference"])
    handle.remove()
    block_end(currents(*SHAPE), None, *parts)
    assert seen == [1]


def test_another_number_of_steps_is_refused_as_the_gate_does():
    with pytest.raises(ValueError, match="built for 4 time steps and got 2"):
        block_end(currents(2, *SHAPE[1:]), None, *modules())


@needs_passes
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_torchs(momentum):
    norm, gate, neuron = modules()
    norm.momentum = momentum
    twin = copy.deepcopy(norm)
    for step in range(3):
        n = currents(*SHAPE, seed=step) + step
        compiled.block_end(n, None, norm, gate, neuron)
        reference.block_end(n, None, twin, gate, neuron)
    assert norm.num_batches_tracked == twin.num_batches_tracked == 3
    torch.testing.assert_close(norm.running_mean, twin.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(norm.running_var, twin.running_var, rtol=1e-6, atol=1e-7)


@needs_passes
def test_evaluation_changes_no_statistics_and_is_exact():
    norm, _, neuron = modules()
    norm.running_mean.fill_(0.25)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    n, r = currents(*SHAPE), currents(*SHAPE, seed=1)
    for gate in (Halve(), nn.Identity()):
        ours, truth = (f(n, r, norm, gate, neuron) for f in (compiled.block_end, reference.block_end))
        assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


@needs_passes
@pytest.mark.parametrize("gate", [Halve(), nn.Identity()])
def test_integers_behind_a_norm_give_the_same_bits_as_torch(gate):
    """Contiguous, where torch sums in float64 too: not even a rounding differs."""
    norm, neuron = BatchNorm2d(64), LIF()
    n, r = torch.round(currents(4, 2, 64, 14, 14) * 100), currents(4, 2, 64, 14, 14, seed=1)
    ours, truth = (f(n, r, norm, gate, neuron) for f in (compiled.block_end, reference.block_end))
    assert torch.equal(ours[1], truth[1])
    assert (ours[0] != truth[0]).float().mean() < 0.1  # channels whose deviation torch rounds the other way
    torch.testing.assert_close(ours[0], truth[0], rtol=1e-6, atol=1e-6)


@needs_passes
def test_a_large_mean_costs_no_accuracy():
    """Of values around 1000 with a deviation of 1, the variance is a small difference of large sums."""
    norm = BatchNorm2d(SHAPE[2])
    n = torch.round(currents(*SHAPE) * 8) / 8 + 1000
    _, _, mean, var, *_ = ops.block_end(
        n, None, None, False, None, norm.weight, norm.bias, None, None, None, 1e-5, "none", *NEURON, True, ""
    )
    torch.testing.assert_close(mean, n.double().mean(dim=(0, 1, 3, 4)), rtol=1e-12, atol=0)
    torch.testing.assert_close(var, n.double().var(dim=(0, 1, 3, 4), correction=0), rtol=1e-9, atol=0)


@needs_passes
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 5), (3, 2, 5, 6, 7), (32, 2, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "repeated", "strided"])
def test_a_neuron_alone(shape, layout):
    x = currents(*shape)
    if layout == "repeated":
        x = x[:1].expand(shape)
    if layout == "strided":
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    ours, twin = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.clone().requires_grad_()
    neuron = LIF(0.5, 0.7)
    fired, expected = spikes(ours, neuron), neuron(twin)
    assert torch.equal(fired, expected)
    upstream = currents(*shape, seed=1)
    fired.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, twin.grad, rtol=1e-5, atol=1e-6)


@needs_passes
def test_a_static_image_is_not_copied_for_every_step():
    image = currents(1, *SHAPE[1:]).requires_grad_()
    fired = spikes(image.expand(SHAPE), LIF())
    assert torch.equal(fired, LIF()(image.expand(SHAPE)))
    fired.sum().backward()
    assert image.grad.shape == image.shape


@needs_passes
@pytest.mark.parametrize("last", [False, True])
def test_the_layout_of_the_convolution_is_kept(last):
    n = currents(*SHAPE)
    if last:
        n = n.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, SHAPE[:2])
    n.requires_grad_()
    x, fired = block_end(n, None, *modules())
    (x.sum() + fired.sum()).backward()
    assert x.stride() == fired.stride() == n.grad.stride() == n.stride()


@needs_passes
def test_operators_are_registered_as_torch_asks():
    """Schema, fake tensors, autograd and its tracing."""
    n, r = (currents(*SHAPE, seed=seed).requires_grad_() for seed in (0, 1))
    weight, bias, alpha = (nn.Parameter(torch.ones(size)) for size in (5, 5, 4))
    operator = torch.ops.agmm.block_end.default
    unit, rest = weight.detach(), (1e-5, "sample", *NEURON, True, "")
    torch.library.opcheck(operator, (n, None, unit, False, r, weight, bias, None, None, alpha, *rest))
    sums = torch.ones(SHAPE, dtype=torch.int16)
    torch.library.opcheck(operator, (n, sums, unit, True, r, weight, bias, None, None, alpha, *rest))
    remembered = torch.zeros(5), torch.ones(5)
    torch.library.opcheck(
        operator, (n, None, None, False, None, weight, bias, *remembered, None, 1e-5, "none", *NEURON, False, "")
    )
    torch.library.opcheck(torch.ops.agmm.spikes.default, (n, *NEURON))


@needs_passes
def test_compiled_code_passes_through():
    norm, gate, neuron = modules()
    twin = copy.deepcopy(norm)

    def joint(n, norm):
        x, fired = block_end(n * 2, n, norm, gate, neuron)
        return (x * fired).sum()

    results = []
    for function, its in ((torch.compile(joint, fullgraph=True, backend="aot_eager"), norm), (joint, twin)):
        n = currents(*SHAPE).requires_grad_()
        loss = function(n, its)
        loss.backward()
        results.append((loss.detach(), n.grad, its.running_mean, its.running_var))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@needs_passes
@pytest.mark.parametrize("last", [False, True])
def test_a_unit_is_a_product(last):
    """Not a bit differs from multiplying before; but for the gradient, whose factors are multiplied in its place."""
    unit, r, upstream = torch.rand(5) + 0.1, currents(*SHAPE, seed=1), currents(*SHAPE, seed=2)
    counts = torch.round(currents(*SHAPE) * 8)
    if last:
        counts = counts.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, SHAPE[:2])
    results = []
    for inside in (True, False):
        norm, gate, neuron = modules()
        leaf = counts.detach().requires_grad_()
        n = leaf if inside else leaf * unit.view(-1, 1, 1)
        x, fired = block_end(n, r, norm, gate, neuron, unit if inside else None)
        torch.autograd.backward([x, fired], [upstream, upstream])
        results.append((x, fired, norm.weight.grad, gate.alpha.grad, norm.running_var, leaf.grad))
    *exact, gradient = zip(*results, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in exact)
    torch.testing.assert_close(*gradient, rtol=1e-5, atol=1e-6)


@needs_passes
@pytest.mark.parametrize("path", native.available())
@pytest.mark.parametrize("channels", [5, 32])
def test_integers_are_what_floats_are_and_their_gradient_may_be_bfloat16(path, channels, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    shape, unit = (4, 3, channels, 6, 7), torch.rand(channels) + 0.1
    sums = torch.randint(-99, 99, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    results = []
    for kind, whole in ((torch.float32, None), (torch.float32, sums), (torch.bfloat16, sums)):
        leaf = (sums.float() if whole is None else edge(sums, kind).clone()).requires_grad_()
        x, fired = block_end(Counted(leaf, whole, unit), None, BatchNorm2d(channels), AGMM(4), LIF())
        torch.autograd.backward([x, fired], [torch.ones(shape), torch.ones(shape)])
        results.append((x, fired, leaf.grad))
    floats, integers, halves = results
    assert all(torch.equal(a, b) for a, b in zip(floats, integers, strict=True))
    assert torch.equal(halves[2], floats[2].bfloat16())


@needs_passes
def test_autocast_leaves_it_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        x, fired = block_end(currents(*SHAPE).bfloat16(), currents(*SHAPE), *modules())
    assert x.dtype == fired.dtype == torch.float32


@needs_passes
def test_results_do_not_depend_on_the_number_of_threads():
    inputs, parts = (
        [*(currents(4, 8, 64, 15, 15, seed=seed) for seed in range(4)), None],
        (BatchNorm2d(64), AGMM(4), LIF()),
    )
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(check.run(compiled.block_end, inputs, parts, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def _digest(_=None):
    inputs, parts = draw_case(7)
    return float(check.run(compiled.block_end, inputs, parts, torch.float32)["x"].sum())


@needs_passes
def test_a_forked_child_and_other_threads_compute_the_same():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected, found = _digest(), []
        workers = [threading.Thread(target=lambda: found.append(_digest())) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert found == [expected] * 4
        torch.set_num_threads(1)  # what torch itself does with threads in a forked child is not the subject
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map(_digest, [None]) == [expected]
    finally:
        torch.set_num_threads(before)


@needs_passes
@pytest.mark.parametrize("path", native.available())
def test_a_gradient_that_is_not_a_number_stays_one_in_bfloat16(path, monkeypatch):
    monkeypatch.setenv(VARIABLE, path)
    sums = torch.ones(SHAPE, dtype=torch.int16)
    leaf = edge(sums, torch.bfloat16).clone().requires_grad_()
    x, _ = block_end(Counted(leaf, sums), None, BatchNorm2d(SHAPE[2]).eval(), nn.Identity(), LIF())
    upstream = torch.ones(SHAPE)
    upstream[1, 0, 0, 0, 0], upstream[1, 0, 0, 0, 1] = torch.nan, torch.inf
    x.backward(upstream)
    assert leaf.grad.isnan().sum() == 1
    assert leaf.grad.isinf().sum() == 1
