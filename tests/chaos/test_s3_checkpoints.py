"""A run whose checkpoints go to S3 through a proxy that misbehaves."""

import threading
import time
import uuid
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines import faults
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints import saver
from pipelines.config import parse_config
from pipelines.errors import Fenced, ServiceError
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.storage.s3 import Limits, S3Store
from tests.s3_proxy import S3Proxy
from tests.s3_server import point_at, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(300)]

RUNS = 5
QUICK = Limits(read_timeout=2.0, connect_timeout=2.0, first_pause=0.02, part=5 << 20)
PASSING = ("500", "503", "reset", "reset_upload", "reset_after", "reset_download", "cut")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as services:
        yield services


@pytest.fixture
def proxy(server, monkeypatch):
    with S3Proxy(server.ports.s3) as proxy:
        point_at(server, proxy.url, monkeypatch)
        yield proxy


class _Run:
    """A run in this process; what it told, and a call at each step."""

    def __init__(self, tree, store, session="one", at_step=lambda step: None, **checkpoint):
        tree = {**tree, "checkpoint": {"every": 3, "keep": 3, **checkpoint}, "run": {**tree["run"], "log_every": 1}}
        self.config, self.store, self.steps, self.said, self.tags = parse_config(tree, origin="test"), store, [], [], []
        self._session, self._at_step = session, at_step

    def __call__(self):
        tag = lambda key, value: self.tags.append((key, value))  # noqa: E731
        outside = Outside(
            self.store,
            log=lambda row, step: None,
            progress=self._show,
            on_epoch=lambda metrics: None,
            session=self._session,
            tag=tag,
        )
        alone = World(rank=0, size=1, device=torch.device("cpu"))
        return run(self.config, alone, outside, Path(self.config.data.uri), "test")

    def _show(self, item):
        if "say" in item:
            self.said.append(item["say"])
        else:
            self.steps.append(time.monotonic())
            self._at_step(item["step"])


def _store(prefix=""):
    return S3Store("agmm", prefix or uuid.uuid4().hex, QUICK)


def _pace(monkeypatch, seconds):
    monkeypatch.setattr(faults, "_faults", faults._parse(f"data.batch.rank0=sleep:{seconds}"))


@pytest.mark.parametrize("seed", range(RUNS))
def test_transient_faults_are_survived(tiny_tree, proxy, monkeypatch, seed):
    """One request of six meets one."""
    _pace(monkeypatch, 0.1)
    for kind in PASSING:
        proxy.fault(kind, probability=0.025, seed=f"{seed} {kind}")
    training = _Run({**tiny_tree, "optim": {"lr": 0.1, "epochs": 15}}, _store())
    metrics = training()
    assert proxy.struck > 20
    struck, _ = proxy.struck, proxy.clear()
    assert not [line for line in training.said if "could not" in line]
    names = checkpoints.committed(training.store)
    assert len(names) == 3
    for name in names:
        checkpoints.verify(training.store, name)
    assert checkpoints.load(training.store, names[-1]).metrics == metrics
    print(f"seed {seed}: {struck} requests met a fault")


def test_s3_down_for_good_ends_the_run_only_after_the_age(tiny_tree, proxy, monkeypatch):
    monkeypatch.setattr(saver, "_PAUSE_S", 0.5)
    _pace(monkeypatch, 0.05)
    down = []

    def at_step(step):
        if step == 10:
            down.append(time.monotonic())
            proxy.fault("reset")

    training = _Run({**tiny_tree, "optim": {"lr": 0.1, "epochs": 500}}, _store(), at_step=at_step, max_age=6.0)
    with pytest.raises(ServiceError, match=r"No checkpoint could be stored for \d+ s, and checkpoint\.max_age is 6 s"):
        training()
    went_on = time.monotonic() - down[0]
    assert 4 < went_on < 30  # the newest one was a little older when it went down
    after = [moment for moment in training.steps if moment > down[0]]
    assert len(after) > 20
    assert max(late - early for early, late in pairwise(after)) < 2  # no step waited for S3
    assert any("could not be stored" in line for line in training.said)
    assert any(key == "agmm.checkpoint" and "could not be stored" in text for key, text in training.tags)
    proxy.clear()
    name = checkpoints.newest_usable(training.store, print)
    assert checkpoints.load(training.store, name).position.step >= 6
    print(f"went on for {went_on:.1f} s and {len(after)} steps")


def test_of_two_at_once_the_older_is_refused(tiny_tree, proxy, monkeypatch):
    _pace(monkeypatch, 0.03)
    prefix, reached, ended = uuid.uuid4().hex, threading.Event(), []
    older = _Run(
        {**tiny_tree, "optim": {"lr": 0.1, "epochs": 500}},
        _store(prefix),
        at_step=lambda step: step == 7 and reached.set(),
    )
    newer = _Run(tiny_tree, _store(prefix), session="another")

    def train():
        try:
            older()
        except Fenced as error:
            ended.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert reached.wait(60)
    newer()
    thread.join(60)
    assert not thread.is_alive()
    assert "attempt 1 of the run" in str(ended[0]).lower()
    assert "was overtaken by attempt 2" in str(ended[0])
    assert not ended[0].own
    names = checkpoints.committed(newer.store)
    assert names[-1] == "attempt-0002-step-000000016"
    for name in names:
        checkpoints.verify(newer.store, name)
