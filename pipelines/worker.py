"""What every worker of a run executes. The loop knows no service: storage, tracking and progress enter as arguments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agmm.loop import NotFinite, evaluate, means, train_step
from agmm.losses import Criterion
from agmm.metrics.flips import flip_ratio, pack_signs, signs, unpack_signs
from agmm.mixing import mix_images, mix_targets
from agmm.optim import learning_rate, set_learning_rate
from agmm.related import set_progress
from pipelines import checkpoint as checkpoints
from pipelines.checkpoint import Checkpoint, Position
from pipelines.config import RunConfig
from pipelines.data.loaders import BatchLoader, open_loader
from pipelines.errors import Stopped
from pipelines.faults import fault_point
from pipelines.measure import Measures
from pipelines.network import build_network, build_optimizer, normalise
from pipelines.teacher import build_criterion
from pipelines.window import Window
from pipelines.world import Outside, World

_SAY_EVERY_S = 10.0


@dataclass
class State:
    """What changes during a run."""

    network: nn.Module
    model: nn.Module  # the network as DDP wraps it
    optimizer: Optimizer
    criterion: Criterion
    measures: Measures
    signs: dict[str, Tensor]
    position: Position = Position()
    metrics: dict[str, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    windows: int = 0  # reported by this process; the first holds the compilation of the loader
    seconds: float = 0.0  # of training steps after the first window, and the images that they took
    images: float = 0.0
    val_seconds: float = 0.0  # of the last validation


@dataclass(frozen=True)
class Plan:
    """What does not: the configuration, this process, the data, and how many steps there are."""

    config: RunConfig
    world: World
    outside: Outside
    train: BatchLoader
    val: BatchLoader
    code_version: str

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.total_steps(self.train.manifest.splits["train"].count)

    @property
    def is_main(self) -> bool:
        """Whether this rank logs and writes."""
        return self.world.rank == 0


def run(config: RunConfig, world: World, outside: Outside, folder: Path, code_version: str) -> dict[str, float]:
    """Train from the newest checkpoint, or from the start, to the end; returns the last metrics.

    Every rank calls it, inside an initialised process group if there are several. Raises NotFinite before an update
    with a NaN or infinite loss, ServiceError where a checkpoint cannot be stored.
    """
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.run.deterministic)
    plan = _open_plan(config, world, outside, folder, code_version)
    try:
        state = _start(plan)
        while not _is_over(plan, state.position):
            _train_epoch(plan, state, code_version)
            _finish_epoch(plan, state)
            _commit(plan, state, code_version)
        return state.metrics
    finally:
        plan.train.close()
        plan.val.close()


def _is_over(plan: Plan, position: Position) -> bool:
    """Whether all is trained and validated: a checkpoint saved on request may lie between the two."""
    return position.step == plan.total and position.offset == 0


def _silent(_: str) -> None:
    """What the other ranks say."""


def _open_plan(config: RunConfig, world: World, outside: Outside, folder: Path, code_version: str) -> Plan:
    open_split = partial(open_loader, folder, data=config.data, seed=config.seed, rank=world.rank, world=world.size)
    train, val = open_split("train"), open_split("val")
    outside.mark("loader")
    return Plan(config, world, outside, train, val, code_version)


def _start(plan: Plan) -> State:
    config, world = plan.config, plan.world
    network = build_network(config.model).to(world.device)
    optimizer = build_optimizer(network, config.optim)
    criterion = build_criterion(config, network, world.device)
    measures = Measures(network, config, world.sum, world.size)
    state = State(network, network, optimizer, criterion, measures, signs(network))
    plan.outside.mark("network")
    found = checkpoints.load_newest(plan.outside.store, plan.outside.say if plan.is_main else _silent)
    if found is not None:
        _restore(state, found)
        if plan.is_main:
            plan.outside.say(f"resumed at step {found.position.step} of {plan.total}")
    plan.outside.mark("checkpoint")
    if config.run.compile:
        network.compile()
    plan.outside.pulse.phase("gather")
    state.model = _distribute(network, world, config.run.deterministic)
    return state


def _restore(state: State, found: Checkpoint) -> None:
    state.network.load_state_dict(found.model)
    checkpoints.restore_optimizer(state.optimizer, found.optimizer)
    state.measures.restart()
    state.signs = unpack_signs(found.signs, state.network)
    state.position, state.metrics = found.position, dict(found.metrics)


def _distribute(network: nn.Module, world: World, deterministic: bool) -> nn.Module:
    if world.size == 1:
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        network,
        device_ids=devices,
        broadcast_buffers=False,  # of running statistics only rank 0's count, and a forward pass waits for no rank
        # Without this DDP sums in another order after its first step, and a resumed run would differ in the last bit.
        find_unused_parameters=deterministic,
    )


def _train_epoch(plan: Plan, state: State, code_version: str) -> None:
    """Steps from the state's position to the end of the epoch, or of the run."""
    state.model.train()
    if state.position.step == plan.total:
        return
    state.window.restart()
    mark = plan.outside.pulse.phase
    mark("load", state.position.step + 1)
    for images, labels in plan.train.epoch(state.position.epoch, start_step=state.position.offset):
        fault_point(f"data.batch.rank{plan.world.rank}")
        plan.outside.mark("first batch")
        with state.measures.step(ends_epoch=_ends_epoch(plan, state.position)):
            result = _step(plan, state, images, labels)
        state.window.add(result, len(labels))
        state.position = _next(state.position)
        plan.outside.mark("first step")
        done = state.position.step
        if done % plan.config.run.log_every == 0 or done == plan.total:
            _report(plan, state)
        if done == plan.total:
            return
        if plan.outside.stop_requested():
            _save_and_stop(plan, state)
        every = plan.config.checkpoint.every
        if every and done % every == 0 and state.position.offset < plan.train.steps:
            state.window.pause()
            _commit(plan, state, code_version)
            state.window.restart()
        mark("load", done + 1)


def _step(plan: Plan, state: State, images: Tensor, labels: Tensor) -> dict[str, float]:
    set_progress(state.network, state.position.step / plan.total)
    set_learning_rate(state.optimizer, _rate(plan, state.position.step))
    try:
        return train_step(
            state.model,
            state.optimizer,
            *_inputs(plan, state.position, images, labels),
            precision=plan.config.run.precision,
            criterion=state.criterion,
            loss_weight=len(labels) * plan.world.size / plan.config.data.batch_size,
            on_phase=plan.outside.pulse.phase,
        )
    except NotFinite as error:
        where = f"at step {state.position.step + 1} on {_ranks_to_blame(plan.world, error)}"
        raise NotFinite(
            f"{error}, {where}; the weights were not changed. Lower optim.lr, or look at the data."
        ) from error


def _ranks_to_blame(world: World, error: NotFinite) -> str:
    ranks = [world.rank]
    if error.everywhere:  # so all ranks are here
        own = world.sum([float(error.own and rank == world.rank) for rank in range(world.size)])
        ranks = [rank for rank, its in enumerate(own) if its]
    return f"rank {', '.join(map(str, ranks))}" if ranks else "no rank alone: their sum overflows"


def _ends_epoch(plan: Plan, position: Position) -> bool:
    """Whether the step at this position is the last before a validation."""
    return position.offset + 1 == plan.train.steps or position.step + 1 == plan.total


def _inputs(plan: Plan, position: Position, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images and targets on the device; where the recipe mixes, mixed and soft."""
    device = plan.world.device
    images, labels = normalise(images, plan.config.data, device), labels.to(device)
    mix = plan.train.mixing(position.epoch, position.offset)
    if mix is None:
        return images, labels
    share, box = mix.share.to(device), mix.box.to(device)
    return mix_images(images, share, box), mix_targets(labels, share, plan.config.model.num_classes)


def _rate(plan: Plan, step: int) -> float:
    optim = plan.config.optim
    warmup = round(optim.warmup * plan.train.steps)
    return learning_rate(step, peak=optim.lr, total=plan.total, warmup=warmup, schedule=optim.schedule)


def _next(position: Position) -> Position:
    return replace(position, offset=position.offset + 1, step=position.step + 1)


def _report(plan: Plan, state: State) -> None:
    """Log and show the window, and open the next one."""
    window, state.window = state.window, Window()
    window.pause()
    plan.outside.pulse.phase("gather")
    loss, correct, images = plan.world.sum([window.loss, window.correct, window.images])
    plan.outside.pulse.phase("report")
    state.windows += 1
    if state.windows > 1 or state.position.step == plan.total:
        state.seconds, state.images = state.seconds + window.seconds, state.images + images
    if not plan.is_main:
        return
    speed, step = images / window.seconds, state.position.step
    row = {"loss": loss / images, "top1": correct / images, "images_per_second": speed}
    plan.outside.log({f"train/{key}": value for key, value in row.items()} | {"optim/lr": _rate(plan, step - 1)}, step)
    where = {"epoch": state.position.epoch + 1, "epochs": plan.config.optim.epochs, "step": step, "total": plan.total}
    plan.outside.progress(row | where | {"eta": _seconds_left(plan, state, speed)})


def _seconds_left(plan: Plan, state: State, speed: float) -> float:
    """Training at the window's speed, and the validations to come at the pace of the last."""
    steps = plan.total - state.position.step
    validations = -(-steps // plan.train.steps)
    return steps * plan.config.data.batch_size / speed + validations * state.val_seconds


def _finish_epoch(plan: Plan, state: State) -> None:
    """Validate on all images, measure flips, and step into the next epoch."""
    state.window.pause()
    started = time.perf_counter()
    result = _validate(plan, state)  # leaves the pulse in `gather`
    state.val_seconds = time.perf_counter() - started
    now = signs(state.network)
    flips, state.signs = flip_ratio(state.signs, now), now
    measured = state.measures.row(flips)  # every rank takes part
    speed = {"images_per_second": state.images / state.seconds} if state.seconds else {}
    best = max(result["top1"], state.metrics.get("best_top1", 0.0))
    state.metrics = state.metrics | result | {"best_top1": best, "flips": flips["total"]} | speed
    state.position = replace(state.position, epoch=state.position.epoch + 1, offset=0)
    if plan.is_main:
        row = {f"val/{key}": result[key] for key in ("loss", "top1", "top5")} | {"val/best_top1": best}
        plan.outside.log(row | measured, state.position.step)
        plan.outside.say(
            f"epoch {state.position.epoch}: val top1 {result['top1']:.4f}  top5 {result['top5']:.4f}  "
            f"loss {result['loss']:.4f}  flips {flips['total']:.4f}"
        )
    plan.outside.on_epoch(state.metrics)


def _validate(plan: Plan, state: State) -> dict[str, float]:
    mark = plan.outside.pulse.phase
    mark("gather")
    if plan.world.size > 1:  # rank 0's running statistics count, as they do in the checkpoint
        for buffer in state.network.buffers():
            dist.broadcast(buffer, 0)
    mark("validate")
    with state.measures.validation():
        sums = evaluate(state.network, _batches(plan, plan.val.epoch(0)), precision=plan.config.run.precision)
    mark("gather")
    total = dict(zip(sums, plan.world.sum(list(sums.values())), strict=True))
    assert total["count"] == plan.val.samples, f"validated {total['count']} of {plan.val.samples} images"
    return means(total)


def _batches(plan: Plan, state: State, raw: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches on the device; rank 0 says how far it is where validation takes long."""
    said, steps = time.perf_counter(), plan.val.steps
    for step, (images, labels) in enumerate(raw):
        yield normalise(images, plan.config.data, plan.world.device), labels.to(plan.world.device)
        plan.outside.pulse.phase("validate")  # anew: it goes on
        if plan.outside.stop_requested():
            _save_and_stop(plan, state)
        if plan.is_main and time.perf_counter() - said > _SAY_EVERY_S:
            said = time.perf_counter()
            plan.outside.say(f"validating: batch {step + 1} of {steps}")


def _save_and_stop(plan: Plan, state: State) -> None:
    """Commit where the run is, tell who asked, and go no further. A validation that was cut begins again."""
    plan.outside.saved(_commit(plan, state, plan.code_version))
    raise Stopped(f"stopped on request at step {state.position.step}, with a checkpoint")


def _commit(plan: Plan, state: State, code_version: str) -> str:
    if not plan.is_main:
        return ""
    plan.outside.pulse.phase("commit")
    snapshot = Checkpoint(
        position=state.position,
        model=checkpoints.model_tensors(state.network),
        optimizer=checkpoints.optimizer_tensors(state.optimizer),
        signs=pack_signs(state.signs),
        config=plan.config.model_dump(mode="json"),
        metrics=state.metrics,
        code_version=code_version,
    )
    name = checkpoints.save(plan.outside.store, snapshot)
    checkpoints.prune(plan.outside.store, plan.config.checkpoint.keep)
    plan.outside.progress({"say": f"checkpoint {plan.outside.store.uri}/{name}"})
    return name
