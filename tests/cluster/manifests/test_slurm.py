"""Batch scripts: what shells say of them, and that they end as the training does.

Slurm itself is not needed here: srun and scontrol are stand-ins that run what they are given on this machine, ray one
that waits for its end, and agmm one that ends as the test says.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.manifests import renderers
from cluster.manifests.settings import ClusterSettings
from tests.cluster.manifests.helpers import FULL, settings

TIMEOUT_S = 60
STAND_INS = {
    "srun": """
for word; do shift; [ "$word" != bash ] || break; done
SLURMD_NODENAME=$(basename "$(mktemp -u)") exec bash "$@"
""",
    "scontrol": """
[ "$1" = show ] || { echo "$@" >> "$SEEN/scontrol"; exit; }
printf '%s\\n' n1 n2
""",
    "ray": """
[ "$1" = start ] || { printf ' 1 node_a\\n 1 node_b\\n'; exit; }
echo "$@" >> "$SEEN/ray"
trap 'exit 0' TERM
while :; do sleep 0.05; done
""",
    "agmm": """
printf '%s\\n' "$@" > "$SEEN/agmm"
stat -c '%a' "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" > "$SEEN/modes"
env > "$SEEN/environment"
[ -z "${SLOW:-}" ] || { trap 'sleep 0.3; exit 130' TERM; while :; do sleep 0.05; done; }
exit "${CODE:-0}"
""",
}


@pytest.fixture
def job(tmp_path):
    """Start a script as Slurm would: its process, with what the stand-ins saw in `seen`."""
    programs, seen = tmp_path / "programs", tmp_path / "seen"
    programs.mkdir()
    seen.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text.lstrip()}")
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path)}
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    started = []

    def start(chosen, **environment):
        script = tmp_path / "job.sh"
        script.write_text(renderers.render("slurm", chosen))
        environ = os.environ | slurm | {"PATH": path, "SEEN": str(seen)} | environment
        process = subprocess.Popen(
            ["bash", script], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start, seen
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_shells_find_no_fault(tmp_path):
    for name, chosen in (("plain", settings()), ("full", ClusterSettings.model_validate(FULL))):
        script = tmp_path / f"{name}.sh"
        script.write_text(renderers.render("slurm", chosen))
        subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_no_fault(tmp_path):
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("shellcheck is not installed")
    text = renderers.render("slurm", ClusterSettings.model_validate(FULL))
    (tmp_path / "job.sh").write_text(text)
    (tmp_path / "node.sh").write_text(re.search(r"<<'NODE'\n(.*?)^NODE$", text, re.S | re.M)[1])
    for name in ("job.sh", "node.sh"):
        found = subprocess.run([program, "-s", "bash", tmp_path / name], capture_output=True, text=True)
        assert found.stdout == ""


@pytest.mark.parametrize("code", [0, 1, 2, 77])
def test_the_jobs_exit_code_is_the_trainings_and_nothing_is_left(job, tmp_path, code):
    start, seen = job
    process = start(settings(), CODE=str(code))
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, output
    assert (seen / "modes").read_text().split() == ["600", "700"]
    assert not list(tmp_path.glob(".agmm-*"))
    assert not list(Path("/tmp").glob("agmm-4242-*"))
    assert not (seen / "scontrol").exists()


def test_a_first_turn_starts_a_run_and_a_later_one_goes_on(job):
    start, seen = job
    start(settings()).communicate(timeout=TIMEOUT_S)
    first = (seen / "agmm").read_text().split("\n")
    assert "--resume" not in first
    assert "name=agmm" in first
    start(settings(), SLURM_RESTART_COUNT="1").communicate(timeout=TIMEOUT_S)
    assert {"--resume", "--or-start"} <= set((seen / "agmm").read_text().split("\n"))


@pytest.mark.parametrize(("turn", "requeued"), [("0", True), ("2", True), ("3", False)])
def test_a_notice_lets_the_training_save_and_asks_for_another_turn(job, turn, requeued):
    start, seen = job
    process = start(settings(job={"retries": 3}), SLOW="1", SLURM_RESTART_COUNT=turn)
    deadline = time.monotonic() + TIMEOUT_S
    while not (seen / "environment").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert (seen / "scontrol").exists() is requeued
    assert not requeued or (seen / "scontrol").read_text() == "requeue 4242\n"


def test_what_is_written_in_an_override_is_not_run(job, tmp_path):
    start, seen = job
    nasty = f"data.dataset=a\"b'c $(touch {tmp_path}/pwned) `touch {tmp_path}/pwned`; touch {tmp_path}/pwned"
    start(settings(job={"overrides": [nasty]})).communicate(timeout=TIMEOUT_S)
    assert (seen / "agmm").read_text().split("\n")[-2] == nasty
    assert not (tmp_path / "pwned").exists()


def test_credentials_come_from_a_file_that_nobody_else_reads(job, tmp_path):
    start, seen = job
    file = tmp_path / "agmm.env"
    file.write_text("AWS_SECRET_ACCESS_KEY='a b$c'\n")
    file.chmod(0o644)
    process = start(settings(secrets={"file": str(file)}))
    assert "chmod 600" in process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 1
    assert not (seen / "agmm").exists()
    file.chmod(0o600)
    output, _ = start(settings(secrets={"file": str(file)})).communicate(timeout=TIMEOUT_S)
    assert "AWS_SECRET_ACCESS_KEY=a b$c\n" in (seen / "environment").read_text()
    assert "a b$c" not in output


def test_two_jobs_of_a_node_have_ports_of_their_own(job):
    start, seen = job
    ports = []
    for number in ("7", "8"):
        start(settings(), SLURM_JOB_ID=number).communicate(timeout=TIMEOUT_S)
        ports.append({int(port) for port in re.findall(r"port=(\d+)", (seen / "ray").read_text())} - {0})
        (seen / "ray").unlink()
    assert len(ports[0]) == len(ports[1]) == 9
    assert not ports[0] & ports[1]
    assert all(1024 < port < 32768 for port in ports[0] | ports[1])


def test_directives_are_the_settings():
    text = renderers.render("slurm", ClusterSettings.model_validate(FULL))
    head = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, flags=re.M))
    assert head["nodes"] == "2-6"
    assert head["gres"] == "gpu:l4:4"
    assert head["time"] == "36:30:00"
    assert (head["cpus-per-task"], head["mem"], head["open-mode"]) == ("32", "240G", "append")
    assert int(head["signal"].removeprefix("B:TERM@")) > FULL["grace"]
    assert "#SBATCH --requeue" in text
    once = renderers.render("slurm", settings(job={"retries": 0}))
    assert "#SBATCH --no-requeue" in once
