"""A running Ray cluster that asks for a token: jobs are sent, shown, followed, stopped, resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from depthscope.jobs import ExtractSpec, extract

from ..conftest import sentences, write_jsonl
from ..jobs.processes import data_bytes
from .slurm import SLOW, missing
from .virtual_nodes import Machine, Network, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


class Cluster:
    """A machine that runs Ray, and depthscope on the login machine before it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.head: Machine = network.machines["head"]
        self.url = f"http://{self.head.address}:8265"
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text("5" * 64)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "DEPTHSCOPE_JOBS": str(folder / "jobs"),
            "PYTHONPATH": str(SLOW),
            "TEST_PAUSE": "1",
        }

    def start(self) -> None:
        """Boot the machine and wait for the dashboard."""
        ray = (
            "ray start --head --block --disable-usage-stats --num-cpus=3 --port=6379 "
            f"--node-ip-address={self.head.address} --dashboard-host={self.head.address} "
            "--object-store-memory=100000000 --min-worker-port=0 --max-worker-port=0"
        )
        self.head.boot(ray, self.environment, self.network.hosts)
        ask = ("submit", "status", "x", "--ray", self.url, "--no-ship", "--no-record")

        def up() -> bool:
            return self.run(*ask, check=False).returncode == 0

        wait_until("Ray's dashboard", up, 180, 2)

    def popen(self, *words: object) -> subprocess.Popen[bytes]:
        """Start depthscope on the login machine."""
        command = [*self.network.login.enter(), "depthscope", *map(str, words)]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment)

    def run(
        self, *words: object, check: bool = True, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run depthscope on the login machine."""
        done = subprocess.run(
            [*self.network.login.enter(), "depthscope", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            env=self.environment | environment,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no cluster of namespaces can run here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="ds-ray-", dir="/var/tmp"))
    network = Network(folder, ["head"], subnet="10.213.88")
    try:
        network.up()
        found = Cluster(network, folder)
        found.start()
        yield found
    finally:
        network.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def words(cluster: Cluster, tiny_model: Path) -> list[str]:
    model = shutil.copytree(tiny_model, cluster.folder / "model")
    records: list[dict[str, object]] = [{"text": t} for t in sentences(60, seed=3)]
    corpus = write_jsonl(cluster.folder / "corpus.jsonl", records)
    shape = ["--task-rows", "128", "--batch-tokens", "128", "--threads", "1"]
    return ["--model", str(model), "--data", str(corpus), *shape]


def test_a_job_is_followed_stopped_and_resumed(cluster: Cluster, words: list[str]) -> None:
    store, alone = cluster.folder / "store", cluster.folder / "alone"
    send = ["submit", "extract", *words, "--out", store, "--ray", cluster.url]
    follower = cluster.popen(*send, "--follow")
    wait_until("a commit", lambda: any((store / "commits").glob("*/*.json")), 240)
    follower.terminate()
    assert follower.wait(120) == 75
    (shown,) = json.loads(cluster.run("jobs", "--json").stdout)["jobs"]
    assert shown["state"] == "stopped"
    assert 0 < shown["tasks_committed"] < shown["tasks_total"]
    job = shown["record"]["id"]
    assert "tokenising" in cluster.run("jobs", job, "--logs").stdout
    assert cluster.run("jobs", job, "--follow", check=False).returncode == 75
    followed = cluster.run(*send, "--follow")
    assert "complete" in followed.stderr
    listed = cluster.run("jobs").stdout
    assert "succeeded" in listed
    assert f"ray:{job}" in listed
    given = dict(zip(words[::2], words[1::2], strict=True))
    shape = {"task_rows": 128, "batch_tokens": 128, "threads": 1, "engine": "process"}
    model, data = given["--model"], (given["--data"],)
    extract(ExtractSpec(model=model, data=data, out=alone, **shape))
    assert data_bytes(store) == data_bytes(alone)


def test_the_code_that_runs_is_the_one_that_was_sent(cluster: Cluster) -> None:
    sent = cluster.run("submit", "status", "nowhere", "--ray", cluster.url, "--follow", check=False)
    assert sent.returncode == 2
    assert "is no store" in sent.stderr


def test_a_request_that_no_node_satisfies(cluster: Cluster, words: list[str]) -> None:
    store = cluster.folder / "refused"
    wanted = [*words[:-1], "7"]
    done = cluster.run(
        "submit", "extract", *wanted, "--out", store, "--ray", cluster.url, "--follow", check=False
    )
    assert done.returncode == 2
    assert "a worker needs 7 CPUs" in done.stderr
    assert not store.exists()


def test_a_wrong_token(cluster: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("6" * 64)
    ask = ("submit", "status", "x", "--ray", cluster.url)
    done = cluster.run(*ask, check=False, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "refuses the token" in done.stderr
