"""When gradients are sent whole, what waits for it, and what is refused; `test_distributed` has several ranks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.config import GradientsConfig, parse_config
from pipelines.errors import UserError
from pipelines.loop import keeping
from pipelines.loop.gradients import check_gradients, is_whole
from pipelines.loop.pulse import Pulse
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.network import build_network
from pipelines.storage import open_store


def _whole(total=20, ends=(), **config):
    parsed = GradientsConfig(**config)
    return [step for step in range(total) if is_whole(parsed, step, total, ends_epoch=step in ends)]


def test_whole_steps_are_every_so_many_and_the_last_of_epochs():
    assert _whole(kind="sign", whole_every=8) == [7, 15]
    assert _whole(kind="sign", whole_every=8, ends=(9, 19)) == [7, 9, 15, 19]
    assert _whole(kind="sign", whole_every=1) == list(range(20))


def test_powersgd_begins_whole():
    assert _whole(kind="powersgd", whole_every=100) == [0, 1]
    assert _whole(kind="powersgd", whole_every=100, start=0) == []


def _network(tiny_config, **changes):
    return build_network(tiny_config.model.model_copy(update=changes))


def test_what_has_nothing_to_compress_is_refused(tiny_config):
    for kind in ("fp32", "bf16", "powersgd"):
        check_gradients(GradientsConfig(kind=kind), _network(tiny_config, method="full_precision"))
    for method in ("agmm", "q_snn", "xnor_learned"):
        check_gradients(GradientsConfig(kind="sign"), _network(tiny_config, method=method))
    with pytest.raises(UserError, match=r"run.gradients.kind=sign .* no binary weights"):
        check_gradients(GradientsConfig(kind="sign"), _network(tiny_config, method="full_precision"))
    with pytest.raises(UserError, match=r"at rank 100 PowerSGD would send every weight as it is"):
        check_gradients(GradientsConfig(kind="powersgd", rank=100), _network(tiny_config))


@pytest.mark.parametrize("kind", ["bf16", "powersgd", "sign"])
def test_bop_takes_gradients_as_they_are(tiny_tree, kind):
    tiny_tree["optim"]["optimizer"] = "bop"
    tiny_tree["run"]["gradients"] = {"kind": kind}
    with pytest.raises(UserError, match="changes how large gradients are"):
        parse_config(tiny_tree, origin="test")


def test_a_checkpoint_that_is_due_waits_until_all_is_sent(tiny_config):
    saved = []
    saver = SimpleNamespace(failing=False, ready=lambda: True, save=saved.append)
    plan = SimpleNamespace(config=tiny_config, outside=SimpleNamespace(pulse=Pulse()))
    position = SimpleNamespace(step=3)
    state = SimpleNamespace(saver=saver, is_due=True, settled=False, position=position, snapshot=lambda plan: "state")
    keeping.keep(plan, state)
    assert (saved, state.is_due) == ([], True)
    state.settled = True
    keeping.keep(plan, state)
    assert (saved, state.is_due) == (["state"], False)


def test_one_worker_sends_nothing_and_says_so(tiny_tree, tmp_path):
    said = []
    tiny_tree["run"]["gradients"] = {"kind": "sign"}
    tiny_tree["optim"]["max_steps"] = 1
    config = parse_config(tiny_tree, origin="test")
    outside = Outside(open_store(str(tmp_path / "a")), lambda row, step: None, said.append, lambda metrics: None)
    run(config, World(0, 1, torch.device("cpu")), outside, Path(config.data.uri), "test")
    assert {"say": "run.gradients.kind=sign: one worker has nobody to send gradients to"} in said
