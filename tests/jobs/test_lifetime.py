"""The life of a batch job, with fake commands for Ray and Slurm: codes, signals, tries."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent.parent / "deploy" / "slurm"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder, a store with a commit, and a scontrol that notes what it is asked."""
    (tmp_path / "store" / "commits").mkdir(parents=True)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    # As Slurm does: whoever is requeued is asked to end.
    scontrol.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/asked\nkill -TERM $PPID\n')
    scontrol.chmod(0o755)
    return tmp_path


def start(job: Path, command: str) -> subprocess.Popen[str]:
    """Run the wrapper around a command, which is Bash text."""
    text = "\n".join(
        [
            (SLURM / "lifetime.sh").read_text(),
            "cluster_lives() { [[ ! -e $DEPTHSCOPE_FOLDER/dead ]]; }",
            "start_cluster() { echo start >>$DEPTHSCOPE_FOLDER/seen; }",
            "stop_cluster() { echo stop >>$DEPTHSCOPE_FOLDER/seen; }",
            "commit() { mkdir -p $DEPTHSCOPE_STORE/commits/$1; "
            "touch $DEPTHSCOPE_STORE/commits/$1/0-1.json; }",
            f"run_command() {{ {command}\n}}",
            'life "$@"',
        ]
    )
    script = job / "script.sh"
    script.write_text(text)
    environment = {
        "PATH": f"{job / 'bin'}:{os.environ['PATH']}",
        "DEPTHSCOPE_FOLDER": str(job),
        "DEPTHSCOPE_STORE": str(job / "store"),
        "SLURM_JOB_ID": "17",
    }
    return subprocess.Popen(
        ["bash", str(script)], env=environment, text=True, stderr=subprocess.PIPE
    )


def ended(job: Path, command: str) -> tuple[int, str]:
    process = start(job, command)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def asked(job: Path) -> list[str]:
    path = job / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_an_end_is_an_end(job: Path, code: int) -> None:
    assert ended(job, f"exit {code}")[0] == code
    assert asked(job) == []
    assert (job / "ended").read_text() == f"{code}\n"
    assert (job / "seen").read_text() == "start\nstop\n"


def test_a_killed_command_starts_again_while_it_gets_somewhere(job: Path) -> None:
    command = """
    n=$(ls $DEPTHSCOPE_STORE/commits | wc -l)
    commit $n
    if ((n < 4)); then kill -KILL $BASHPID; fi
    exit 0"""
    code, said = ended(job, command)
    assert code == 0
    assert said.count("starts again") == 4
    assert asked(job) == []


def test_what_gets_nowhere_ends(job: Path) -> None:
    codes = [ended(job, "kill -KILL $BASHPID")[0] for _ in range(3)]
    assert codes == [75, 75, 137]
    assert asked(job) == ["requeue 17"] * 2


def test_a_job_that_returns_says_nothing_else(job: Path) -> None:
    code, said = ended(job, "commit 1; exit 75")
    assert (code, asked(job)) == (75, ["requeue 17"])
    assert said.splitlines()[-1].endswith("back to the queue")
    assert not (job / "ended").exists()


def test_a_job_that_may_not_return_says_what_to_do(job: Path) -> None:
    (job / "bin" / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    code, said = ended(job, "commit 1; exit 75")
    assert code == 75
    assert "submit the same command again" in said.splitlines()[-1]
    assert (job / "ended").read_text() == "75\n"


@pytest.mark.parametrize("ends", [75, 2])
def test_without_its_cluster_a_job_returns_to_the_queue(job: Path, ends: int) -> None:
    code, said = ended(job, f"commit 1; touch $DEPTHSCOPE_FOLDER/dead; exit {ends}")
    assert (code, asked(job)) == (75, ["requeue 17"])
    assert "starts again" not in said


@pytest.mark.parametrize(
    ("number", "state", "requeues"),
    [
        (signal.SIGUSR1, "RUNNING", 1),
        (signal.SIGTERM, "COMPLETING", 0),
        # The grace time before a preemption.
        (signal.SIGTERM, "RUNNING", 1),
    ],
)
def test_signals(job: Path, number: int, state: str, requeues: int) -> None:
    squeue = job / "bin" / "squeue"
    squeue.write_text(f"#!/bin/bash\necho {state}\n")
    squeue.chmod(0o755)
    command = """
    trap 'commit 1; exit 75' TERM
    touch $DEPTHSCOPE_FOLDER/running
    for _ in $(seq 600); do sleep 0.1; done"""
    process = start(job, command)
    while not (job / "running").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert asked(job) == ["requeue 17"] * requeues
    assert (job / "store" / "commits" / "1").is_dir()
    assert (job / "seen").read_text() == "start\nstop\n"


def test_a_finished_command_is_not_requeued_by_a_late_signal(job: Path) -> None:
    command = "trap 'exit 0' TERM; touch $DEPTHSCOPE_FOLDER/running; while :; do sleep 0.05; done"
    process = start(job, command)
    while not (job / "running").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert asked(job) == []


def test_a_container_where_one_is_named(job: Path) -> None:
    apptainer = job / "bin" / "apptainer"
    apptainer.write_text('#!/bin/bash\nprintf "%s|" "$@" >"$DEPTHSCOPE_FOLDER/words"\n')
    apptainer.chmod(0o755)
    text = "".join((SLURM / name).read_text() for name in ("node.sh", "command.sh"))
    text += 'run_command analyze "my store"\n'
    environment = {"PATH": f"{job / 'bin'}:{os.environ['PATH']}", "DEPTHSCOPE_FOLDER": str(job)}
    environment |= {"DEPTHSCOPE_CONTAINER": "/images/a b.sif"}
    environment |= {"DEPTHSCOPE_CONTAINER_OPTIONS": "--nv --bind /scratch"}
    subprocess.run(["bash", "-c", text], env=environment, check=True)
    assert (job / "words").read_text() == (
        "exec|--nv|--bind|/scratch|/images/a b.sif|python|-m|depthscope.jobs|analyze|my store|"
    )
