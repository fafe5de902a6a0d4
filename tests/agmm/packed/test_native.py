"""Single convolutions in every path of the compiled kernels, and what they refuse."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agmm.library import VARIABLE
from agmm.packed import native, reference

PATHS = native.available()
pytestmark = pytest.mark.skipif(not PATHS, reason=f"no native kernels: {native.why_not()}")
paths = pytest.mark.parametrize("path", PATHS)


def make_signs(generator, outs, ins):
    return reference.pack_signs(generator.choice([-1, 1], (outs, 3, 3, ins)))


def expected(x, signs, stride):
    return reference.binary_convolution(x, reference.unpack_signs(signs, x.shape[-1]), stride)


@paths
@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 7, 63, 64, 65, 129]),
    outs=st.sampled_from([1, 15, 16, 17, 33, 64, 65]),
    size=st.tuples(*[st.integers(1, 9)] * 2),
    stride=st.sampled_from([1, 2]),
    threads=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    most=st.sampled_from([1, 4]),
    seed=st.integers(0, 1 << 20),
)
def test_a_convolution_is_exact(path, channels, outs, size, stride, threads, rate, most, seed):
    generator = np.random.default_rng(seed)
    fired = generator.random((2, *size, channels)) < rate
    x = (fired * generator.integers(1, most + 1, fired.shape)).astype(np.uint8)
    signs = make_signs(generator, outs, channels)
    found = native.binary_convolution(x, signs, stride, path=path, threads=threads)
    np.testing.assert_array_equal(found, expected(x, signs, stride))


@paths
@pytest.mark.parametrize(("channels", "most"), [(3640, 1), (910, 4)])
def test_the_largest_sums_fit_16_bits(path, channels, most):
    x = np.full((1, 3, 3, channels), most, np.uint8)
    signs = np.stack([reference.pack_signs(np.full((3, 3, channels), sign)) for sign in (1, -1)])
    found = native.binary_convolution(x, signs, path=path)
    assert found[0, 1, 1].tolist() == [9 * most * channels, -9 * most * channels]


@paths
def test_one_layer_takes_images_of_any_size_in_turn(path):
    generator = np.random.default_rng(0)
    signs = make_signs(generator, 20, 70)
    layer = native.BinaryConvolution(signs, 70, 2, threads=2, path=path)
    for shape in [(1, 5, 4), (3, 17, 300), (2, 1, 1), (1, 5, 4)]:
        x = generator.integers(0, 2, (*shape, 70)).astype(np.uint8)
        np.testing.assert_array_equal(layer(x), expected(x, signs, 2))


@paths
@pytest.mark.parametrize(("pooled", "value"), [(False, 2), (False, 128), (True, 5), (True, 7), (True, 8), (True, 255)])
def test_values_that_do_not_fit_are_refused(path, pooled, value):
    x = np.zeros((1, 2, 2, 65), np.uint8)
    layer = native.BinaryConvolution(make_signs(np.random.default_rng(0), 3, 65), 65, pooled=pooled, path=path)
    x[0, 1, 1, 64] = value
    with pytest.raises(ValueError, match=f"Values are 0 to {4 if pooled else 1}, got {value}"):
        layer(x)


def test_one_layer_serves_two_python_threads():
    generator = np.random.default_rng(0)
    signs, inputs = make_signs(generator, 16, 64), [generator.integers(0, 2, (2, 9, 9, 64), np.uint8) for _ in range(4)]
    layer, wrong = native.BinaryConvolution(signs, 64, threads=2), []

    def work(x):
        wanted = expected(x, signs, 1)
        wrong.extend(0 for _ in range(50) if not (layer(x) == wanted).all())

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_child_process_computes_without_the_threads_of_its_parent():
    generator = np.random.default_rng(0)
    signs, x = make_signs(generator, 16, 64), generator.integers(0, 2, (2, 9, 9, 64), np.uint8)
    layer, wanted = native.BinaryConvolution(signs, 64, threads=2), expected(x, signs, 1)
    layer(x)
    time.sleep(0.2)  # the threads are asleep by now, and a child that waits for them waits for ever
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        right = (layer(x) == wanted).all()
        del layer
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(layer(x), wanted)


SIGNS = np.zeros((4, 3, 3, 1), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "sse9"}, "Unknown kernels 'sse9'. This machine has: .*portable"),
        ({"threads": 0}, "threads must be 1 to 256, got 0"),
        ({"stride": 3}, "A stride is 1 or 2, got 3"),
        ({"in_channels": 9}, r"9 channels need uint8 signs \[O, 3, 3, 2\], got \[4, 3, 3, 1\]"),
        ({"signs_O33B": SIGNS.astype(np.int8)}, "need uint8 signs"),
        ({"signs_O33B": np.zeros((1, 3, 3, 456), np.uint8), "in_channels": 3641}, "more than 16 bits hold"),
        ({"signs_O33B": np.zeros((1, 3, 3, 114), np.uint8), "in_channels": 911, "pooled": True}, "more than 16 bits"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        native.BinaryConvolution(**{"signs_O33B": SIGNS, "in_channels": 8} | arguments)


@pytest.mark.parametrize("x", [np.zeros((1, 2, 2, 8)), np.zeros((2, 2, 8), np.uint8), np.zeros((0, 2, 2, 8), np.uint8)])
def test_other_inputs_are_refused(x):
    with pytest.raises(ValueError, match=r"Need uint8 \[N, H, W, 8\], 1 to 16384 of each; got"):
        native.BinaryConvolution(SIGNS, 8)(x)


def test_the_environment_chooses_the_path(monkeypatch):
    monkeypatch.setenv(VARIABLE, "portable")
    assert native.BinaryConvolution(SIGNS, 8).path == "portable"
    assert native.BinaryConvolution(SIGNS, 8, path=PATHS[0]).path == PATHS[0]
    monkeypatch.setenv(VARIABLE, "avx1024")
    with pytest.raises(ValueError, match=r"Unknown kernels 'avx1024'\. This machine has: .*portable"):
        native.BinaryConvolution(SIGNS, 8)


def test_what_is_no_library_is_said(tmp_path):
    (tmp_path / "_kernels.so").write_bytes(b"no library")
    script = "from agmm.packed import native; print(native.available(), native.why_not())"
    environment = os.environ | {native.LIBRARY_VARIABLE: str(tmp_path / "_kernels.so")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("() ")
    assert "cannot be loaded" in done.stdout


@paths
def test_multiply_adds_are_counted_by_the_round(path):
    once = native.multiply_adds(1, path=path)
    assert once > 0
    assert native.multiply_adds(1000, path=path) == 1000 * once
