"""What follows an epoch's last step: validation on every image, flips, and the row that is logged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch.distributed as dist
from torch import Tensor

from agmm.loop import evaluate, means
from agmm.metrics.flips import flip_ratio, signs
from pipelines.loop.keeping import save_and_stop
from pipelines.loop.state import Plan, State
from pipelines.network import normalise

_SAY_EVERY_S = 10.0


def finish_epoch(plan: Plan, state: State) -> None:
    """Validate on all images, measure flips, and step into the next epoch."""
    state.window.train(plan.outside.pulse.lap())
    started = time.perf_counter()
    result = _validate(plan, state)  # leaves the pulse in `gather`
    state.val_seconds = time.perf_counter() - started
    now = signs(state.network)
    flips = flip_ratio(state.signs, now)
    state.keep_signs(now)
    measured, costs = state.measures.row(flips), state.measures.costs(result["count"])  # every rank takes part
    firing = {"firing": measured["firing/total"]} if "firing/total" in measured else {}
    state.window.between(plan.outside.pulse.lap())
    speed = _speed(plan, state)
    best = max(result["top1"], state.metrics.get("best_top1", 0.0))
    state.metrics = state.metrics | result | {"best_top1": best, "flips": flips["total"]} | costs | firing | speed
    state.position = replace(state.position, epoch=state.position.epoch + 1, offset=0)
    if plan.is_main:
        row = {f"val/{key}": result[key] for key in ("loss", "top1", "top5")} | {"val/best_top1": best}
        row |= {f"cost/{key}": value for key, value in costs.items()}
        plan.outside.log(row | measured, state.position.step)
        plan.outside.say(
            f"epoch {state.position.epoch}: val top1 {result['top1']:.4f}  top5 {result['top5']:.4f}  "
            f"loss {result['loss']:.4f}  flips {flips['total']:.4f}"
        )


def _speed(plan: Plan, state: State) -> dict[str, float]:
    """How fast this process has been since its first report, the time of this validation included."""
    if not state.windows:
        return {}
    total = state.whole + state.window.over(plan.world)
    return state.utilisation.speed(total) | total.times()


def _validate(plan: Plan, state: State) -> dict[str, float]:
    mark = plan.outside.pulse.phase
    mark("gather")
    if plan.world.size > 1:  # rank 0's running statistics count, as they do in the checkpoint
        for buffer in state.network.buffers():
            dist.broadcast(buffer, 0)
    mark("validate")
    with state.measures.validation(is_last=state.position.step == plan.total):
        sums = evaluate(state.network, _batches(plan, state, plan.val.epoch(0)), precision=plan.config.run.precision)
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
            save_and_stop(plan, state)
        if plan.is_main and time.perf_counter() - said > _SAY_EVERY_S:
            said = time.perf_counter()
            plan.outside.say(f"validating: batch {step + 1} of {steps}")
