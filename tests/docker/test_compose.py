"""The compose file without an engine: what is reachable, secret and bounded, and that it agrees with the code."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import health, stack
from cluster.credentials import MLFLOW_USER
from cluster.environment import client_environment
from cluster.settings import JOB_STOP_WAIT, REGION, Ports, Services

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(set(SERVICES) - {"postgres"})
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def _default(text: str) -> str:
    """Fill in `${NAME:-default}` as compose does where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def _secrets(service: dict[str, Any]) -> dict[str, str]:
    """Each secret's name and where the container finds it."""
    listed = [entry if isinstance(entry, dict) else {"source": entry} for entry in service.get("secrets", [])]
    return {entry["source"]: entry.get("target", f"/run/secrets/{entry['source']}") for entry in listed}


@each_service
def test_ports_are_published_on_loopback_only(name):
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", _default(port)) for port in SERVICES[name].get("ports", []))
    assert "network_mode" not in SERVICES[name]


@each_service
def test_a_container_may_do_little(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)
    assert not any("docker.sock" in volume for volume in service.get("volumes", []))


@each_service
def test_a_container_is_bounded(name):
    assert {"cpus", "memory", "pids"} <= set(SERVICES[name]["deploy"]["resources"]["limits"])
    assert SERVICES[name]["logging"]["options"]["max-size"]


@each_service
def test_each_service_is_asked_how_it_is(name):
    check = SERVICES[name]["healthcheck"]
    if name == "bucket":
        assert check == {"disable": True}  # it ends
        return
    command = check["test"]
    assert command[0] == "CMD"
    if command[1] == "python":
        assert command[2:4] == ["-m", "cluster.health"]
        assert set(command[4:]) <= set(health.CHECKS)


def test_only_what_publishes_a_port_is_on_a_network_with_a_way_out():
    internal = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    assert internal == {"cluster", "database"}
    for name, service in SERVICES.items():
        assert ("ports" in service) == bool(set(service["networks"]) - internal), name


def test_the_data_base_is_seen_by_mlflow_alone():
    assert {name for name, service in SERVICES.items() if "database" in service["networks"]} == {"postgres", "mlflow"}
    assert SERVICES["postgres"]["networks"] == ["database"]


@each_service
def test_a_service_waits_for_what_it_needs(name):
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        ends = SERVICES[other]["restart"] != "unless-stopped"
        assert wait["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_a_secret_is_a_file_and_no_setting():
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        named = {**service.get("environment", {}), "command": shlex.join(map(str, service.get("command", [])))}
        for key, value in named.items():
            assert not re.search(r"(?i)(password|token|secret|key)$", key), (name, key)
            assert not re.search(r"://[^/\s:]*:[^/\s]*@", str(value)), (name, key)


@each_service
def test_a_file_that_a_service_is_pointed_at_is_given_to_it(name):
    given = set(_secrets(SERVICES[name]).values())
    text = yaml.safe_dump({key: SERVICES[name].get(key) for key in ("command", "environment")})
    assert set(re.findall(r"/run/secrets/[\w.-]+", text)) <= given


def test_the_secrets_are_those_that_are_made(tmp_path):
    made = {path.name for path in stack.write_secrets(tmp_path / "secrets")}
    named = {name: Path(_default(secret["file"])).name for name, secret in COMPOSE["secrets"].items()}
    assert set(named.values()) == made
    assert all(name == file for name, file in named.items())
    assert {secret for service in SERVICES.values() for secret in _secrets(service)} == made


def test_mlflow_finds_its_data_base_and_bucket():
    command = SERVICES["mlflow"]["command"]
    assert f"--backend-store-uri={stack.DATA_BASE}" in command
    assert f"--artifacts-destination=s3://{stack.BUCKET}/mlflow" in command
    environment = SERVICES["postgres"]["environment"]
    assert (
        f"postgresql+psycopg2://{environment['POSTGRES_USER']}@postgres/{environment['POSTGRES_DB']}" == stack.DATA_BASE
    )


def test_a_node_is_told_what_a_local_one_is(tmp_path, monkeypatch):
    """What `agmm up` gives to Ray's processes, they have here too, but for what the image or a file says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    services = Services(
        home=tmp_path,
        bucket=stack.BUCKET,
        ports=Ports(s3=1, mlflow=2, dashboard=3, ray=4),
        marker="0123",
        runtime_dir=tmp_path,
        started=datetime.now(UTC),
    )
    stack.write_secrets(tmp_path / "services")
    (tmp_path / "services" / "mlflow-password").write_text("x")
    local = {**client_environment(services), **JOB_STOP_WAIT}
    image = set(re.findall(r"^\s*(?:ENV )?(\w+)=", (DOCKER / "Dockerfile").read_text(), flags=re.M))
    file = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}  # /home/agmm/.mlflow/credentials
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    # A certificate names addresses, and a container has a new one at each start: the network is internal instead.
    tls = {"RAY_USE_TLS", "RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"}
    here = SERVICES["worker"]["environment"]
    assert set(local) - image - file - loopback - tls <= set(here)
    assert COMPOSE["networks"]["cluster"]["internal"]
    assert here["RAY_JOB_STOP_WAIT_TIME_S"] == JOB_STOP_WAIT["RAY_JOB_STOP_WAIT_TIME_S"]
    assert (here["AWS_DEFAULT_REGION"], here["AGMM_STORE"]) == (REGION, f"s3://{stack.BUCKET}")
    assert MLFLOW_USER in (tmp_path / "services" / "mlflow-credentials").read_text()
    assert SERVICES["head"]["environment"] == here


def test_the_cuda_file_changes_images_and_gives_gpus():
    cuda = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())["services"]
    assert sorted(cuda) == OURS
    assert {service["image"] for service in cuda.values()} == {"${AGMM_IMAGE:-agmm:cuda}"}
    assert cuda["worker"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
