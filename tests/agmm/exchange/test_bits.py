"""Flags as bits, at odd sizes, against NumPy."""

import numpy as np
import pytest
import torch

from agmm.exchange.bits import pack, packed_size, unpack_signs


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 129])
def test_bits_are_numpys_and_come_back_as_signs(n):
    flags = torch.from_numpy(np.random.default_rng(n).random((3, 2, n)) > 0.5)
    packed = pack(flags)
    assert packed.shape == (3, 2, packed_size(n))
    assert np.array_equal(packed.numpy(), np.packbits(flags.numpy(), axis=-1))  # zeros behind the last flag too
    assert torch.equal(unpack_signs(packed, n), flags * 2.0 - 1)


def test_every_byte_is_packed_and_unpacked():
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    assert torch.equal(pack(unpack_signs(every, 8) > 0), every)


def test_flags_need_not_be_contiguous():
    flags = torch.rand(16, 5) > 0.5
    assert torch.equal(pack(flags.T), pack(flags.T.contiguous()))
