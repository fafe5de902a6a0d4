"""What stands between two binary convolutions, in one operation: norm, gate, residual add and neuron over all T.

`reference` is the truth in plain torch, `native` the compiled passes for CPUs, `ops` the torch operators made of them,
`inductor` the reference compiled for GPUs, `block` chooses among them, `fuse` has a whole network use it. `convolution`
is the binary convolution of bits, and `events` the gradient of its weights as a sum over spikes. `replay` and `trail`
are what a step computes again in the backward pass in place of keeping it.
"""

from agmm.kernels.block import block_end, spikes
from agmm.kernels.fuse import fuse, is_fused, keep_less, unfuse

__all__ = ["block_end", "fuse", "is_fused", "keep_less", "spikes", "unfuse"]
