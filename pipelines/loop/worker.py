"""What every worker of a run executes. The loop knows no service: storage, tracking and progress enter as arguments."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from agmm.loop import NotFinite, train_step
from agmm.metrics.flips import signs
from agmm.mixing import mix_images, mix_targets
from agmm.optim import learning_rate, set_learning_rate
from agmm.related import set_progress
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Position, load, newest_usable
from pipelines.config import RunConfig
from pipelines.data.loaders import open_loader
from pipelines.faults import fault_point
from pipelines.loop.epoch_end import finish_epoch
from pipelines.loop.generators import seed_generators
from pipelines.loop.gradients import distribute, is_whole
from pipelines.loop.keeping import ATTEMPT_TAG, finish, keep, new_saver, save_and_stop
from pipelines.loop.measure import Measures
from pipelines.loop.profile import Profiler
from pipelines.loop.state import Plan, State
from pipelines.loop.utilisation import Utilisation
from pipelines.loop.window import Window
from pipelines.loop.world import Outside, World
from pipelines.network import build_optimizer, normalise, training_network
from pipelines.teacher import build_criterion


def run(config: RunConfig, world: World, outside: Outside, folder: Path, code_version: str) -> dict[str, float]:
    """Train from the newest checkpoint, or from the start, to the end; returns the last metrics.

    Every rank calls it, inside an initialised process group if there are several.

    Raises:
        NotFinite: before an update with a loss or a gradient that is NaN or infinite.
        Fenced: where a newer attempt of the run has been claimed.
        Stopped: after a checkpoint that was asked for.
        ServiceError: where no checkpoint could be stored for `checkpoint.max_age`, or none can be read.

    """
    torch.manual_seed(config.seed)  # of the weights
    torch.use_deterministic_algorithms(config.run.deterministic)
    plan = _open_plan(config, world, outside, folder, code_version)
    state = None
    try:
        state = _start(plan)
        plan.outside.pulse.lap()
        if state.position.epoch:
            _tell(plan, state)  # again: the process that told of it may have been lost before it was heard
        while not plan.is_over(state.position):
            _train_epoch(plan, state)
            finish_epoch(plan, state)
            _end_epoch(plan, state)
        return state.metrics
    finally:
        if state is not None:
            state.close()
        plan.train.close()
        plan.val.close()


def _open_plan(config: RunConfig, world: World, outside: Outside, folder: Path, code_version: str) -> Plan:
    open_split = partial(open_loader, folder, data=config.data, seed=config.seed, rank=world.rank, world=world.size)
    train, val = open_split("train"), open_split("val")
    outside.mark("loader")
    return Plan(config, world, outside, train, val, code_version)


def _start(plan: Plan) -> State:
    config, world = plan.config, plan.world
    network = training_network(config, world.device)
    optimizer = build_optimizer(network, config.optim)
    criterion = build_criterion(config, network, world.device)
    measures = Measures(network, config, world.sum, world.size)
    plan.outside.pulse.phase("gather")
    utilisation = Utilisation(config.model, world, config.run.precision)
    profiler = Profiler(config.run.profile, world, plan.outside)
    state = State(network, network, optimizer, criterion, measures, utilisation, profiler, signs(network))
    plan.outside.mark("network")
    _resume(plan, state)
    plan.outside.mark("checkpoint")
    if config.run.compile:
        network.compile()
    plan.outside.pulse.phase("gather")
    state.model, state.exchange = distribute(network, world, config, plan.outside.pulse.phase)
    if world.size == 1 and config.run.gradients.kind != "fp32":
        plan.outside.say(f"run.gradients.kind={config.run.gradients.kind}: one worker has nobody to send gradients to")
    return state


def _resume(plan: Plan, state: State) -> None:
    """Claim an attempt, and have all ranks go on from the checkpoint that rank 0 finds."""
    store, name = plan.outside.store, ""
    if plan.is_main:
        attempt = claim(store, plan.outside.session)
        name = newest_usable(store, plan.outside.say)
        state.saver = new_saver(plan, attempt)
        plan.outside.tag(ATTEMPT_TAG, str(attempt.number))
    plan.outside.pulse.phase("gather")
    name = plan.world.share(name)
    plan.outside.pulse.phase("start")
    if name:
        state.restore(load(store, name))
        if plan.is_main:
            plan.outside.say(f"resumed at step {state.position.step} of {plan.total}")


def _train_epoch(plan: Plan, state: State) -> None:
    """Steps from the state's position to the end of the epoch, or of the run."""
    state.model.train()
    if state.position.step == plan.total:
        return
    state.window.between(plan.outside.pulse.lap())
    mark = plan.outside.pulse.phase
    mark("load", state.position.step + 1)
    for images, labels in plan.train.epoch(state.position.epoch, start_step=state.position.offset):
        fault_point(f"data.batch.rank{plan.world.rank}")
        plan.outside.mark("first batch")
        with state.measures.step(ends_epoch=_ends_epoch(plan, state.position)):
            result = _step(plan, state, images, labels)
        state.window.add(result, len(labels), state.utilisation.flops(images))
        state.position = _next(state.position)
        state.profiler.step(state.position.step)
        plan.outside.mark("first step")
        done = state.position.step
        if done % plan.config.run.log_every == 0 or done == plan.total:
            _report(plan, state)
        if done == plan.total:
            return
        if state.settled and plan.outside.stop_requested():
            save_and_stop(plan, state)
        if state.position.offset < plan.train.steps:
            keep(plan, state)
        mark("load", done + 1)


def _end_epoch(plan: Plan, state: State) -> None:
    """Keep the epoch and tell of it: of the last one when it is committed, since who is told may end the worker."""
    state.is_due = True
    if plan.is_over(state.position) or plan.outside.commits_epochs:
        finish(plan, state)
        state.is_due = False
    else:
        keep(plan, state)
    _tell(plan, state)


def _tell(plan: Plan, state: State) -> None:
    plan.outside.on_epoch(state.metrics | {"epoch": state.position.epoch})


def _step(plan: Plan, state: State, images: Tensor, labels: Tensor) -> dict[str, float]:
    seed_generators(plan.config.seed, state.position.step, plan.world.rank)
    set_progress(state.network, state.position.step / plan.total)
    set_learning_rate(state.optimizer, _rate(plan, state.position.step))
    _begin_exchange(plan, state)
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


def _begin_exchange(plan: Plan, state: State) -> None:
    if state.exchange is not None:
        step, ends = state.position.step, _ends_epoch(plan, state.position)
        whole = is_whole(plan.config.run.gradients, step, plan.total, ends_epoch=ends)
        state.exchange.begin(step, whole=whole)


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
    window.train(plan.outside.pulse.lap())
    plan.outside.pulse.phase("gather")
    window = window.over(plan.world)
    plan.outside.pulse.phase("report")
    state.windows += 1
    if state.windows > 1 or state.position.step == plan.total:
        state.whole += window
    if not plan.is_main:
        return
    step = state.position.step
    row = {"loss": window.loss / window.images, "top1": window.correct / window.images}
    row |= state.utilisation.speed(window)
    plan.outside.log(
        {f"train/{key}": value for key, value in row.items()} | window.times() | {"optim/lr": _rate(plan, step - 1)},
        step,
    )
    where = {"epoch": state.position.epoch + 1, "epochs": plan.config.optim.epochs, "step": step, "total": plan.total}
    plan.outside.progress(row | where | {"eta": _seconds_left(plan, state, row["images_per_second"])})


def _seconds_left(plan: Plan, state: State, speed: float) -> float:
    """Training at the window's speed, and the validations to come at the pace of the last."""
    steps = plan.total - state.position.step
    validations = -(-steps // plan.train.steps)
    return steps * plan.config.data.batch_size / speed + validations * state.val_seconds
