"""What one message of signs says; `test_exchange` has several ranks."""

import math

import pytest
import torch
from torch import nn

from agmm.binary import BinaryConv2d, RealConv2d
from agmm.exchange.exchange import rows
from agmm.exchange.sign import decode, encode, latent_weights, message_bytes


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 7), (3, 9), (5, 13), (4, 64), (2, 65)])
def test_a_message_is_signs_times_the_mean_of_each_row(count, length):
    values = torch.randn(2, count, length)
    message = encode(values)
    assert (message.shape, message.dtype) == ((2, message_bytes(count, length)), torch.uint8)
    expected = values.sign() * values.abs().mean(-1, keepdim=True)
    torch.testing.assert_close(decode(message, count, length), expected)


def test_a_message_alone_is_read_out_of_a_longer_one():
    """Of a length that is no number of float32's bytes, as a single rank has it."""
    message = encode(torch.randn(1, 2, 9))
    longer = torch.cat([message, torch.zeros(1, 4, dtype=torch.uint8)], -1)
    assert longer.shape == (1, 15)
    assert torch.equal(decode(longer[:, :11], 2, 9), decode(message[0], 2, 9)[None])


def test_zero_is_positive_and_a_row_of_zeros_says_nothing():
    values = torch.tensor([[0.0, -0.0, -2.0], [0.0, 0.0, 0.0]])
    assert decode(encode(values), 2, 3).tolist() == [[pytest.approx(2 / 3)] * 2 + [pytest.approx(-2 / 3)], [0.0] * 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_so_in_its_whole_row_and_nowhere_else(bad):
    values = torch.ones(3, 10)
    values[1, 4] = bad
    finite = decode(encode(values), 3, 10).isfinite()
    assert finite.tolist() == [[True] * 10, [False] * 10, [True] * 10]


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 1, 3, 3), (1, 4, 3, 3), (6, 4, 1, 1), (6, 4), (6,), ()])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_are_output_channels_in_the_memory_of_the_gradient(shape, layout):
    gradient = torch.randn(shape)
    if len(shape) == 4:
        gradient = gradient.contiguous(memory_format=layout)
    found = rows(gradient)
    assert found.data_ptr() == gradient.data_ptr()
    channels = gradient.view(1) if not shape else gradient
    assert [set(row.tolist()) for row in found] == [set(channel.flatten().tolist()) for channel in channels]


def test_latent_weights_are_those_of_binary_convolutions():
    binary = BinaryConv2d(2, 3, 3)
    assert latent_weights(nn.Sequential(RealConv2d(1, 2, 3), binary, nn.Flatten(), nn.Linear(3, 2))) == [binary.weight]
    with pytest.raises(ValueError, match="no binary weights"):
        latent_weights(RealConv2d(1, 2, 3))
