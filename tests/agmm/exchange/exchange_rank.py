"""One rank that exchanges gradients under DDP: `python exchange_rank.py KIND RANK WORLD RENDEZVOUS`.

Prints a JSON line of what differs from a reference that knows all ranks' gradients; see `test_exchange`.
"""

import gc
import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from agmm.binary import BinaryConv2d
from agmm.exchange.exchange import rows
from agmm.exchange.low_rank import LowRankExchange
from agmm.exchange.sign import SignExchange, latent_weights

STEPS, WHOLE = 8, (5,)


class Scaled(nn.Module):
    """A parameter without an axis."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.factor


def network():
    """Output channels that 2 and 3 ranks cannot share alike, weights that are no whole bytes, channels last."""
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(2, 6, 3), Scaled(), BinaryConv2d(6, 7, 3), nn.BatchNorm2d(7), BinaryConv2d(7, 5, 3)),
        *(nn.Flatten(), nn.Linear(5 * 4 * 4, 40), nn.Linear(40, 3)),
    )
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def own_gradients(net, images):
    """What backward gives before any exchange; `net` is not what DDP wraps, so nothing is sent."""
    return torch.autograd.grad(net(images).square().sum(), list(net.parameters()))


def said(values):
    """Signs times the mean of each row, told plainly."""
    out = torch.empty_like(values)
    for index, row in enumerate(values):
        out[index] = torch.where(row >= 0, 1.0, -1.0) * row.abs().mean()
    return out


class Reference:
    """The exchange of one latent weight's gradient, with the residuals of all ranks in one place."""

    def __init__(self, world, count, length):
        self.share = -(-count // world)
        self.own = [torch.zeros(count, length) for _ in range(world)]
        self.average = torch.zeros(count, length)

    def exchange(self, gradients, whole):
        values = [own + gradient for own, gradient in zip(self.own, gradients, strict=True)]
        if whole:
            total = self.average + sum(values) / len(values)
            self.__init__(len(values), *total.shape)
            return total
        heard = [said(value) for value in values]
        self.own = [value - each for value, each in zip(values, heard, strict=True)]
        total = self.average + sum(heard) / len(heard)
        answer = said(total)
        self.average = total - answer
        return answer


def main(kind, rank, world, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    print(json.dumps(compare(kind, rank, world)), flush=True)
    gc.collect()  # DDP and its hook hold the group: its threads would be left to the end of the process
    dist.barrier()
    dist.destroy_process_group()


def compare(kind, rank, world):
    net, alone = network(), network()
    model = DistributedDataParallel(net, bucket_cap_mb=0.01, find_unused_parameters=kind == "sign")
    latent = latent_weights(net)
    group = dist.group.WORLD
    exchange = SignExchange(latent, group) if kind == "sign" else LowRankExchange(2, group, rebuilds=True)
    exchange.register(model)
    references = {id(w): Reference(world, *rows(w).shape) for w in latent}
    found = {"signs": 0.0, "others": 0.0, "kept": 0.0, "mean": []}
    generator = torch.Generator().manual_seed(rank)
    total = {"sent": 0.0, "true": 0.0}
    for step in range(STEPS):
        images = torch.randn(3, 2, 10, 10, generator=generator)
        everyone = [None] * world
        dist.all_gather_object(everyone, own_gradients(alone, images))
        exchange.begin(step, whole=step in WHOLE)
        model.zero_grad(set_to_none=True)
        model(images).square().sum().backward()
        for parameter, *its in zip(net.parameters(), *everyone, strict=True):
            mean = sum(its) / world
            if kind == "sign" and id(parameter) in references:
                expected = references[id(parameter)].exchange([rows(each) for each in its], exchange.settled)
                found["signs"] = max(found["signs"], _off(rows(parameter.grad), expected, exchange.settled))
                if not exchange.settled:
                    left = references[id(parameter)].own[rank] - exchange.residual(parameter)
                    found["kept"] = max(found["kept"], left.abs().max().item())
            elif kind == "sign":
                found["others"] = max(found["others"], _off(parameter.grad, mean, True))
        true = torch.cat([(sum(its) / world).flatten() for its in zip(*everyone, strict=True)])
        sent = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        total = {"sent": total["sent"] + sent, "true": total["true"] + true}
        found["mean"].append(((total["sent"] - total["true"]).norm() / total["true"].norm()).item())
    digest = torch.cat([p.grad.flatten() for p in net.parameters()]).double().sum().item()
    return found | {"digest": digest}


def _off(found, expected, rounded):
    """The largest difference by the largest value; what bfloat16 rounds is forgiven, some bits more for its sum."""
    off = ((found - expected).abs().max() / expected.abs().max()).item()
    return max(0.0, off - 2**-6) if rounded else off


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
