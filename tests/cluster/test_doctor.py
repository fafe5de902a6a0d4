"""What the checks of services and nodes make of what they see; tests/integration/test_doctor.py plants the faults."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster import doctor, node_probe, nodes, secrecy
from cluster.doctor import Addresses
from cluster.settings import Services

NOWHERE = Addresses("", "sqlite:///mlflow.db", "", "")


def _row(name: str = "here", **look: object) -> dict[str, object]:
    versions = {"python": "3.11.7", "ray": "2.60.0"}
    place = {"path": "/somewhere", "free": 10**11}
    free = {"cache": place, "home": place, "shm": 10**10, "memory": 10**10}
    return {"node": name, "skew": (0.0, 0.0), "look": {"versions": versions, "code": "1", **free, **look}}


class _Answered(nodes.Nodes):
    """Nodes that have answered."""

    def __init__(self, *rows: dict[str, object]) -> None:
        super().__init__("head:1")
        self._answer = {"nodes": list(rows), "driver": _row()["look"]}


@pytest.mark.parametrize(
    ("ahead", "doubt", "status"),
    [(0.9, 0.0, "pass"), (1.2, 0.5, "pass"), (-2.0, 0.5, "warn"), (299.0, 0.0, "warn"), (-301.0, 0.5, "fail")],
)
def test_clocks(ahead: float, doubt: float, status: str) -> None:
    got, words, _ = nodes.judge_clock("its clock", ahead, doubt)
    assert got == status
    assert status == "pass" or ("ahead of" if ahead > 0 else "behind") in words


def test_the_worst_clock_counts() -> None:
    late = {**_row("late"), "skew": (-400.0, 0.1)}
    assert nodes.clocks(_Answered(_row(), late))[:2][0] == "fail"
    assert "the clock of late" in nodes.clocks(_Answered(_row(), late))[1]


def test_versions_name_the_node() -> None:
    other = _row("other", versions={"python": "3.11.7", "ray": "2.59.0"}, code="2")
    status, words, _ = nodes.versions(_Answered(_row(), other))
    assert status == "fail"
    assert words == "other has ray 2.59.0, here 2.60.0; agmm's code 2, here 1."
    assert nodes.versions(_Answered(_row(), _row()))[0] == "pass"


def test_a_silent_node_is_named() -> None:
    silent = {"node": "gone", "resources": {}, "error": "GetTimeoutError"}
    assert nodes.ray_answers(_Answered(_row(), silent))[:2] == ("fail", "no task runs on gone (GetTimeoutError)")
    assert nodes.versions(_Answered(_row(), silent))[0] == "pass"


def test_room_that_is_needed() -> None:
    assert nodes.disk(_Answered(_row()), cache_needs=10**10)[0] == "pass"
    assert nodes.disk(_Answered(_row()), cache_needs=10**12)[0] == "fail"
    assert nodes.shared_memory(_Answered(_row()), needed=10**9)[0] == "pass"
    assert nodes.shared_memory(_Answered(_row()), needed=10**10)[0] == "fail"
    assert nodes.shared_memory(_Answered(_row(shm=None)))[0] == "pass"


def test_this_machine_is_a_node_without_ray() -> None:
    here = nodes.Nodes(None)
    assert [nodes.ray_answers(here)[0], nodes.versions(here)[0], nodes.clocks(here)[0]] == ["pass"] * 3
    assert 0 < node_probe.free_memory() < 2**50


def test_a_control_group_bounds_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert node_probe._left_in(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert node_probe._left_in(tmp_path) is None
    assert node_probe._left_in(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("host", "near"),
    [("127.0.0.1", True), ("127.3.3.3", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)],
)
def test_loopback(host: str, near: bool) -> None:
    assert doctor.is_loopback(host) is near


def test_what_leaves_the_machine_in_the_clear() -> None:
    assert doctor.encrypted(NOWHERE)[0] == "pass"
    assert doctor.encrypted(Addresses("http://127.0.0.1:1", "https://far.example", "", ""))[0] == "pass"
    status, words, _ = doctor.encrypted(Addresses("http://far.example:1", "", "", ""))
    assert (status, "S3 at http://far.example:1" in words) == ("warn", True)


def test_a_far_head_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert doctor.ray_token(NOWHERE)[0] == "pass"
    assert doctor.ray_token(NOWHERE._replace(ray="10.0.0.1:6379"))[0] == "fail"
    assert doctor.ray_token(NOWHERE._replace(ray="127.0.0.1:6379"))[0] == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor.ray_token(NOWHERE._replace(ray="10.0.0.1:6379"))[0] == "pass"


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({}, "warn"),
        ({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}, "pass"),
        ({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}, "fail"),
        ({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "true"}, "fail"),
    ],
)
def test_models_run_no_code(variables: dict[str, str], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_ALLOW_MODEL_CODE_EXECUTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert secrecy.no_code_in_models()[0] == status


def test_a_readable_file_behind_a_shut_door_is_none(tmp_path: Path) -> None:
    path = tmp_path / "door" / "token"
    path.parent.mkdir()
    path.write_text("token")
    path.chmod(0o604)
    reached = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    assert secrecy._is_reached(path) is reached
    path.parent.chmod(0o700)
    assert not secrecy._is_reached(path)


@pytest.mark.s3
@pytest.mark.ray
def test_services_with_tls_are_well(client: Services) -> None:
    """S3 and MLflow by HTTPS with an authority of their own, Ray's parts by mutual TLS; and every node takes a task."""
    addresses = Addresses(client.s3_url, client.mlflow_url, client.ray_address, client.dashboard_url)
    asked = nodes.Nodes(client.ray_address)
    checks = {
        **doctor.service_checks(client.home, addresses),
        **nodes.node_checks(asked, cache_needs=lambda: 0, shm_needs=lambda: 0),
    }
    found = {name: check() for name, check in checks.items()}
    assert {name: outcome for name, outcome in found.items() if outcome[0] != "pass"} == {}
    assert "asks for a password" in found["mlflow password"][1]
    assert "the clock of S3" in found["s3 clock"][1]
