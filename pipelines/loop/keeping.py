"""When the loop keeps what it has reached: at the steps that the configuration names, on request, and at the end."""

from __future__ import annotations

from typing import NoReturn

from pipelines.checkpoints.attempts import Attempt
from pipelines.checkpoints.saver import Saver
from pipelines.errors import Stopped
from pipelines.loop.state import Plan, State

ATTEMPT_TAG, CHECKPOINT_TAG = "agmm.attempt", "agmm.checkpoint"


def new_saver(plan: Plan, attempt: Attempt) -> Saver:
    """A saver as the run's configuration says, which tells the run how it goes."""
    outside, config = plan.outside, plan.config.checkpoint

    def failed(why: str) -> None:
        outside.say(why)
        outside.tag(CHECKPOINT_TAG, why)

    def saved(name: str) -> None:
        outside.say(f"checkpoint {outside.store.uri}/{name}")
        outside.tag(CHECKPOINT_TAG, name)

    return Saver(attempt, keep=config.keep, max_age_s=config.max_age, on_saved=saved, on_failure=failed)


def keep(plan: Plan, state: State) -> None:
    """Take a checkpoint where one is due and the saver is free; elsewhere see that the saver has not given up.

    Where ranks have gradients left that they have not sent, it waits for the step that sends them.
    """
    if state.saver is None:
        return
    every = plan.config.checkpoint.every
    state.is_due |= state.saver.failing or (every is not None and state.position.step % every == 0)
    if state.saver.ready() and state.is_due and state.settled:
        plan.outside.pulse.phase("commit")
        state.saver.save(state.snapshot(plan))
        state.is_due = False


def finish(plan: Plan, state: State) -> str:
    """Store the state and wait until it is committed; returns the checkpoint's name, empty on ranks that write none."""
    if state.saver is None:
        return ""
    plan.outside.pulse.phase("commit")
    return state.saver.finish(state.snapshot(plan))


def save_and_stop(plan: Plan, state: State) -> NoReturn:
    """Store where the run is, tell who asked, and go no further. A validation that was cut begins again."""
    plan.outside.saved(finish(plan, state))
    raise Stopped(f"stopped on request at step {state.position.step}, with a checkpoint")
