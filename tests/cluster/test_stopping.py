"""Stopping the real services. The last tests of this folder: what the others share is gone afterwards."""

from __future__ import annotations

import time

import psutil
import pytest

from cluster import jobs, services
from cluster.errors import ServiceError
from cluster.settings import Services
from tests.cluster.listeners import family

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.timeout(120)]


def test_down_leaves_nothing(client: Services, capsys: pytest.CaptureFixture[str]) -> None:
    """Also not what a job started and left to itself."""
    script = "import subprocess as s; print('pid', s.Popen(['sleep', '987'], start_new_session=True).pid)"
    with jobs.connected() as head:
        assert jobs.submit(head, ["python", "-c", script], shared=True, say=lambda _: None) == 0
    words = capsys.readouterr().out.split()
    left_alone = psutil.Process(int(words[words.index("pid") + 1]))
    assert left_alone not in psutil.Process(client.processes[2].pid).children(recursive=True)
    members = family(client)
    assert len(members) > 10
    said: list[str] = []
    began = time.monotonic()
    assert services.down(client.home, said.append)
    assert time.monotonic() - began < 40
    assert [process for process in [*members, left_alone] if process.is_running()] == []
    assert [line.split()[0] for line in said[:3]] == ["ray", "mlflow", "s3"]
    assert not client.runtime_dir.exists()
    assert [path for path in client.sockets if path.exists()] == []
    assert services.status(client.home) == []
    assert services.environment(client.home) == {}
    assert not services.down(client.home, said.append)
    with pytest.raises(ServiceError, match="agmm up"), jobs.connected(client.dashboard_url):
        pass
