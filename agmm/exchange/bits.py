"""Eight flags to a byte, on any device, and back as signs."""

import torch
from torch import Tensor
from torch.nn import functional as F

_GATHER = 0x8040201008040201 - (1 << 64)  # moves bit 8 * i of a word to bit 63 - i; an int64 by its two's complement


def packed_size(count: int) -> int:
    """Bytes of so many flags."""
    return -(-count // 8)


def pack(flags: Tensor) -> Tensor:
    """Booleans `[..., n]` as uint8 `[..., ceil(n / 8)]`, the first flag in the highest bit, zeros behind the last."""
    padded = F.pad(flags, (0, -flags.shape[-1] % 8)).contiguous()
    words = padded.view(torch.uint8).view(torch.int64)
    # the shift repeats the highest bit, and a byte keeps the lowest eight
    return ((words * _GATHER) >> 56).to(torch.uint8)


def unpack_signs(packed: Tensor, count: int) -> Tensor:
    """The first `count` flags of `pack` as float32 `[..., count]`: +1 where one was set, else -1."""
    signs = F.embedding(packed.int(), _table(packed.device)).flatten(-2)
    return signs[..., :count]


def _table(device: torch.device) -> Tensor:
    """The eight signs of each byte, `[256, 8]`."""
    bytes_256 = torch.arange(256, device=device)
    flags_256x8 = (bytes_256[:, None] >> torch.arange(7, -1, -1, device=device)) & 1
    return flags_256x8 * 2.0 - 1.0
