"""Signs of gradients with error feedback: one bit per latent weight and a scale per output channel, both ways.

1-bit SGD, Seide et al. 2014 (Interspeech), whose residual is carried to the next step; mean|v| as the scale, for which
Karimireddy et al. 2019 (arXiv 1901.09847, EF-signSGD) show convergence. Averages are compressed again on their way
back, with a residual of their own, as in Tang et al. 2019 (arXiv 1905.05957, DoubleSqueeze).

Axes: N ranks, O output channels, R = ceil(O / N) of them for which one rank averages, L weights of an output channel.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agmm.binary import BinaryConv2d
from agmm.exchange.bits import pack, packed_size, unpack_signs
from agmm.exchange.exchange import Averaged, Bucket, Exchange, completed, rows

_SCALE_BYTES = 4


def encode(values: Tensor) -> Tensor:
    """Float32 `[..., R, L]` as uint8 `[..., ceil(R * L / 8) + 4 * R]`: all signs, then mean|v| of each row.

    Zero has the sign +1. A row with a NaN or an infinite value has such a scale, so that whoever decodes it sees that.
    """
    scales = torch.linalg.vector_norm(values, 1, dim=-1) / values.shape[-1]
    return torch.cat([pack((values >= 0).flatten(-2)), scales.view(torch.uint8)], -1)


def decode(message: Tensor, count: int, length: int) -> Tensor:
    """`scale * sign` of `encode`, float32 `[..., count, length]`."""
    bits, scales = message.split([packed_size(count * length), _SCALE_BYTES * count], -1)
    signs = unpack_signs(bits, count * length).unflatten(-1, (count, length))
    scales = scales.clone(memory_format=torch.contiguous_format)  # else of one message the stride stays, an odd one
    return signs.mul_(scales.view(torch.float32)[..., None])


def message_bytes(count: int, length: int) -> int:
    """Bytes of one `encode`."""
    return packed_size(count * length) + _SCALE_BYTES * count


def latent_weights(network: nn.Module) -> list[Tensor]:
    """The weights of which only the sign acts. Raises ValueError where a network has none."""
    found = [layer.weight for layer in network.modules() if isinstance(layer, BinaryConv2d)]
    if not found:
        raise ValueError("there are no binary weights, whose gradients could be sent as signs")
    return found


class SignExchange(Exchange):
    """Gradients of latent weights as signs, all others as bfloat16.

    Each rank sends every other the rows that this one averages, and is sent its averages back. Of weights O by L it
    sends 2 * (N - 1) * (ceil(R * L / 8) + 4 * R) bytes, where a ring of float32 takes 2 * (N - 1) / N * 4 * O * L: 32
    times as many at any N, but for scales and rounding. Gathering all ranks' signs would take N - 1 times O * L / 8.

    Args:
        latent: the weights whose gradients go as signs.
        group: the ranks.

    """

    def __init__(self, latent: Iterable[Tensor], group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._latent = {id(weight) for weight in latent}
        self._ranks, self._rank = group.size(), group.rank()
        self._own: dict[int, Tensor] = {}  # of gradients, [N, R, L], zero beyond the last output channel
        self._averages: dict[int, Tensor] = {}  # of the averages that are this rank's, [R, L]

    def residual(self, weight: Tensor) -> Tensor:
        """What this rank has not sent of its gradients of a latent weight, `[O, L]` in the order of memory."""
        return self._own[id(weight)].flatten(0, 1)[: weight.shape[0]]

    def _compressed(self, bucket: Bucket) -> Averaged:
        latent, others = self._split(bucket)
        if latent:
            self._average_signs(latent)
        if others:
            self._average_rounded(others)
        return completed(bucket.buffer())

    def _split(self, bucket: Bucket) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Gradients `[O, L]` of latent weights by id, and all others as rows too."""
        found = {id(p): rows(g) for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True)}
        latent = {key: gradient for key, gradient in found.items() if key in self._latent}
        return latent, [gradient for key, gradient in found.items() if key not in latent]

    def _average_rounded(self, gradients: list[Tensor]) -> None:
        flat = torch.cat([gradient.flatten() for gradient in gradients]).to(torch.bfloat16).div_(self._ranks)
        dist.all_reduce(flat, group=self.group)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _average_signs(self, gradients: dict[int, Tensor]) -> None:
        """Replace each gradient `[O, L]` by the average over ranks, as it can be sent."""
        own = [self._corrected(key, gradient) for key, gradient in gradients.items()]
        sizes = [message_bytes(*values.shape[1:]) for values in own]
        message_NB = _sent(own)
        received_NB = torch.empty_like(message_NB)
        dist.all_to_all_single(received_NB, message_NB, group=self.group)
        averages = []
        for key, values, part in zip(gradients, own, received_NB.split(sizes, -1), strict=True):
            averages.append(self._averages.setdefault(key, torch.zeros_like(values[0])))
            averages[-1].add_(decode(part, *values.shape[1:]).mean(0))
        answer_B = _sent(averages)
        answers_NB = answer_B.new_empty(self._ranks, len(answer_B))
        dist.all_gather_single(answers_NB.view(-1), answer_B, group=self.group)
        for gradient, values, part in zip(gradients.values(), own, answers_NB.split(sizes, -1), strict=True):
            gradient.copy_(decode(part, *values.shape[1:]).flatten(0, 1)[: len(gradient)])

    def _corrected(self, key: int, gradient: Tensor) -> Tensor:
        """Gradient and residual together, in the residual's memory."""
        count, length = gradient.shape
        if key not in self._own:
            self._own[key] = gradient.new_zeros(self._ranks, -(-count // self._ranks), length)
        values = self._own[key]
        values.flatten(0, 1)[:count].add_(gradient)
        return values

    def _add_residuals(self, bucket: Bucket) -> None:
        for key, gradient in self._split(bucket)[0].items():
            if key in self._own:
                gradient.add_(self._own.pop(key).flatten(0, 1)[: len(gradient)])
                average = self._averages.pop(key)
                mine = gradient[self._rank * len(average) :][: len(average)]
                mine.add_(average[: len(mine)], alpha=self._ranks)  # which the mean over ranks divides by


def _sent(values: list[Tensor]) -> Tensor:
    """The message of all the values, `[..., bytes]`; what it does not tell stays in their memory."""
    parts = [encode(each) for each in values]
    for each, part in zip(values, parts, strict=True):
        each.sub_(decode(part, *each.shape[-2:]))
    return torch.cat(parts, -1)
