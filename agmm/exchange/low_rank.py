"""PowerSGD (Vogels et al. 2019, arXiv 1905.13727): gradients as products of narrow matrices, by torch's own hook."""

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from agmm.exchange.exchange import Averaged, Bucket, Exchange, rows

_WORTH = 2  # times fewer numbers, or a matrix is sent as it is; torch's own default
_TINY = 1e-8  # a layer without a gradient would be normalised to NaN


def check_rank(network: nn.Module, rank: int) -> None:
    """Raise ValueError where no weight of the network is sent with fewer bytes at that rank."""
    shapes = [(p.shape[0], p.numel() // p.shape[0]) for p in network.parameters() if p.ndim > 1 and p.requires_grad]
    if not any((n + m) * min(n, m, rank) * _WORTH < n * m for n, m in shapes):
        raise ValueError(
            f"at rank {rank} PowerSGD would send every weight as it is: the largest is {max(shapes, default=(0, 0))}"
        )


class LowRankExchange(Exchange):
    """Matrices M of n x m as P Q^T of `rank` columns, so (n + m) * rank numbers; all else, vectors too, as float32.

    A convolution's matrix has one row per output channel. What is not sent is added to the next gradient, and Q goes on
    from the last step's. After a whole step both begin anew, Q from numbers drawn for the step.

    Args:
        rank: columns of P and Q.
        group: the ranks.
        rebuilds: whether DDP gives its buckets another layout after its first step, as it does where it does not look
            for unused parameters: that step is whole then, since residuals have the layout of a bucket.

    """

    def __init__(self, rank: int, group: dist.ProcessGroup, *, rebuilds: bool) -> None:
        super().__init__(group)
        self._state = PowerSGDState(
            group,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=2,
            min_compression_rate=_WORTH,
            use_error_feedback=True,
            warm_start=True,
            orthogonalization_epsilon=_TINY,
        )
        self._state.iter = self._state.start_powerSGD_iter  # when to begin is the caller's to say
        self._rebuilds = rebuilds

    def begin(self, step: int, *, whole: bool) -> None:
        whole, self._rebuilds = whole or self._rebuilds, False
        super().begin(step, whole=whole)
        if whole:
            self._state.rng = np.random.RandomState(step)
            self._state.p_memory_dict.clear()
            self._state.q_memory_dict.clear()

    def _compressed(self, bucket: Bucket) -> Averaged:
        future: Averaged = powerSGD_hook(self._state, _Matrices(bucket))
        future.wait()  # it begins collectives in callbacks, whose order over several buckets is nobody's
        return future

    def _add_residuals(self, bucket: Bucket) -> None:
        residual = self._state.error_dict.pop(bucket.index(), None)
        if residual is not None:
            bucket.buffer().add_(residual)


class _Matrices:
    """A bucket as torch's hook can take it, which flattens gradients by `view`: channels-last ones cannot be."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def gradients(self) -> list[Tensor]:
        """Matrices `[O, L]` and vectors."""
        return [rows(g) if g.ndim > 1 else g.view(-1) for g in self._bucket.gradients()]

    def buffer(self) -> Tensor:
        return self._bucket.buffer()

    def index(self) -> int:
        return self._bucket.index()

    def is_last(self) -> bool:
        return self._bucket.is_last()
