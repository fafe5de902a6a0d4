"""How the ranks of a run come to one gradient: DDP, with the exchange that `run.gradients` names."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from agmm.exchange.exchange import Exchange
from agmm.exchange.low_rank import LowRankExchange, check_rank
from agmm.exchange.sign import SignExchange, latent_weights
from pipelines.config import GradientsConfig, RunConfig
from pipelines.errors import UserError
from pipelines.loop.world import World


def check_gradients(config: GradientsConfig, network: nn.Module) -> None:
    """Raise UserError where the exchange would find nothing in the network to send with fewer bytes."""
    try:
        if config.kind == "sign":
            latent_weights(network)
        if config.kind == "powersgd":
            check_rank(network, config.rank)
    except ValueError as error:
        raise UserError(
            f"run.gradients.kind={config.kind} does not fit the network: {error}. Set it to fp32 or bf16."
        ) from error


def distribute(
    network: nn.Module, world: World, config: RunConfig, on_phase: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, Exchange | None]:
    """The network as DDP wraps it, and the exchange where it has residuals; the network itself for one rank.

    on_phase: told when the exchange holds up the backward pass, and when that goes on, as in `train_step`.
    """
    if world.size == 1:
        return network, None
    model = DistributedDataParallel(
        network,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        forward_sync_buffers=False,  # of running statistics only rank 0's count, and a forward pass waits for no rank
        # Without this DDP sums in another order after its first step, and a resumed run would differ in the last bit.
        find_unused_parameters=config.run.deterministic,
    )
    exchange = make_exchange(config.run.gradients, network, rebuilds=not config.run.deterministic)
    if exchange is not None:
        exchange.register(model, on_phase)
    elif config.run.gradients.kind == "bf16":
        # DDP refuses the hook by its name where there is no NCCL; gloo adds bfloat16 up as well
        model.register_comm_hook(None, lambda _, bucket: bf16_compress_hook(_all(), bucket))
    return model, exchange


def make_exchange(config: GradientsConfig, network: nn.Module, *, rebuilds: bool) -> Exchange | None:
    """The exchange of a kind that has residuals, among all ranks; nothing for the others.

    rebuilds: whether DDP changes its buckets after the first step.
    """
    if config.kind == "sign":
        return SignExchange(latent_weights(network), _all())
    if config.kind == "powersgd":
        return LowRankExchange(config.rank, _all(), rebuilds=rebuilds)
    return None


def _all() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None, "several ranks, and no process group"
    return group


def is_whole(config: GradientsConfig, step: int, total: int, *, ends_epoch: bool) -> bool:
    """Whether optimiser step `step` (from 0) of `total` sends all that there is: a function of the step alone."""
    first = config.kind == "powersgd" and step < config.start * total
    return first or ends_epoch or (step + 1) % config.whole_every == 0
