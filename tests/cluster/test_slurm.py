"""Studies on a real Slurm: what dies, stops or is sent away comes back to the same bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import psutil
import pytest

from ..conftest import needs_demo_model, write_jsonl
from .conftest import SMALL, Study
from .slurm import Slurm
from .virtual_nodes import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def commits(store: Path) -> int:
    return len(list((store / "commits").glob("*/*.json")))


def hosts(store: Path) -> set[str]:
    return {json.loads(path.read_text())["host"] for path in (store / "commits").glob("*/*.json")}


def begun(study: Study, store: Path, number: str, least: int = 2) -> None:
    """Wait until a job has committed something."""

    def enough() -> bool:
        assert study.slurm.state(number) not in ("FAILED", "COMPLETED"), study.slurm.log(number)
        return commits(store) >= least

    wait_until("the first commits", enough, 240)


def test_a_study_on_both_nodes(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "both"
    number = study.submit(store)
    begun(study, store, number, 1)
    _locked(slurm, number)
    assert slurm.ended(number) == "COMPLETED", slurm.log(number)
    study.is_whole(store)
    assert hosts(store) == {"n1", "n2"}
    listed = slurm.depthscope("jobs")
    assert f"slurm:{number}" in listed
    assert "completed" in listed
    slurm.nothing_left(number)


def _locked(slurm: Slurm, number: str) -> None:
    """While the job runs: who has no token, or calls from a wrong address, gets nothing."""
    (token,) = (slurm.shared / "state").rglob(f"token-{number}")
    assert token.stat().st_mode & 0o777 == 0o600
    for node, machine in enumerate(slurm.network.machines.values()):
        # Ray's sockets, which take orders from whoever reaches them.
        assert (machine.folder / "tmp" / f"ds-{number}-{node}").stat().st_mode & 0o777 == 0o700
    head = slurm.network.machines["n1"]
    (gcs,) = head.processes("gcs_server --")
    (dashboard,) = head.processes("ray/dashboard/dashboard.py")
    port = next(w for w in dashboard.cmdline() if w.startswith("--port=")).partition("=")[2]
    url = f"http://{head.address}:{port}"
    ask = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10")
    assert slurm.run(*ask, f"{url}/api/jobs/").stdout == "401"
    secret = f"Authorization: Bearer {token.read_text()}"
    assert slurm.run(*ask, "-H", secret, f"{url}/api/jobs/").stdout == "200"
    # Listens on the node's address alone.
    inside = slurm.run(
        "nsenter",
        f"--net=/run/netns/{head.namespace}",
        *ask,
        f"http://127.0.0.1:{port}/",
        check=False,
    )
    assert inside.stdout == "000"
    wrong = slurm.shared / "wrong-token"
    wrong.write_text("0" * 64)
    refused = slurm.run(
        "depthscope", "submit", "status", "x", "--ray", url,
        check=False, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(wrong),
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "refuses the token" in refused.stderr
    assert gcs.is_running()


def test_the_driver_is_killed(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "driver"
    number = study.submit(store)
    begun(study, store, number)
    (driver,) = slurm.network.machines["n1"].processes("-m depthscope.jobs extract")
    driver.kill()
    assert slurm.ended(number) == "COMPLETED", slurm.log(number)
    assert "starts again" in slurm.log(number)
    study.is_whole(store)


def test_ray_dies_in_a_living_job(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "without-ray"
    number = study.submit(store)
    begun(study, store, number)
    (gcs,) = slurm.network.machines["n1"].processes("gcs_server --")
    gcs.kill()
    assert slurm.ended(number, 300) == "COMPLETED", slurm.log(number)
    assert slurm.job(number)["Restarts"] == "1"
    study.is_whole(store)


def test_ray_cannot_start(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "no-ray"
    # Less than Ray takes.
    number = study.submit(store, "--object-store", "1KB")
    assert slurm.ended(number) == "FAILED"
    assert slurm.log(number).splitlines()[-1].endswith("Ray did not start on n1")
    assert not store.exists()
    slurm.nothing_left(number)


@pytest.mark.parametrize(
    ("victim", "words"),
    [("n2", ()), ("n1", ()), ("n2", ("--schedule", "staged", "--stages", "2"))],
    ids=["n2", "n1", "n2 of a staged model"],
)
def test_a_node_is_killed(study: Study, victim: str, words: tuple[str, ...]) -> None:
    slurm, store = study.slurm, study.slurm.shared / f"without-{victim}-{len(words)}"
    number = study.submit(store, *words)
    begun(study, store, number)
    slurm.network.machines[victim].kill()
    ended = ("PENDING", "COMPLETED")
    wait_until("Slurm's notice", lambda: slurm.state(number) in ended, 120)
    slurm.start_node(victim)
    assert slurm.ended(number, 300) == "COMPLETED", slurm.log(number)
    # The batch script's own node takes the job with it.
    assert slurm.job(number)["Restarts"] == "1" or victim != "n1"
    study.is_whole(store)
    slurm.idle()


@pytest.mark.parametrize("partition", ["batch", "patient"])
def test_preempted_by_an_urgent_job(study: Study, partition: str) -> None:
    slurm, store = study.slurm, study.slurm.shared / f"preempted-{partition}"
    number = study.submit(store, "--partition", partition)
    begun(study, store, number)
    before = commits(store)
    wanted = ("--partition=urgent", "--nodes=2", "--exclusive", "--mem=0", "--output=/dev/null")
    urgent = slurm.run("sbatch", "--parsable", *wanted, "--wrap", "sleep 5").stdout.strip()
    assert slurm.ended(urgent) == "COMPLETED"
    assert slurm.ended(number, 300) == "COMPLETED", slurm.log(number)
    assert slurm.job(number)["Restarts"] == "1"
    assert before < commits(store)
    if partition == "patient":
        # A grace time is used to stop at a commit, and Slurm is asked to bring the job back.
        assert "back to the queue" in slurm.log(number)
    study.is_whole(store)


def test_the_time_limit_comes(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "limit"
    number = study.submit(store, "--time-limit", "30", "--stop-seconds", "60", pause=8)
    begun(study, store, number)
    hours, minutes, _ = slurm.job(number)["RunTime"].split(":")
    # Between one and two minutes from now: the signal comes at once, or within a minute.
    soon = 60 * int(hours) + int(minutes) + 2
    slurm.run("scontrol", "update", f"JobId={number}", f"TimeLimit={soon}")
    wait_until("the requeue", lambda: slurm.job(number)["Restarts"] == "1", 200)
    middle = slurm.depthscope("status", store)
    slurm.run("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    assert slurm.ended(number, 300) == "COMPLETED", slurm.log(number)
    assert "USR1 from Slurm" in slurm.log(number)
    assert "incomplete" in middle
    study.is_whole(store)


def test_cancelled_and_submitted_again(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "cancelled"
    number = study.submit(store, pause=4)
    begun(study, store, number)
    slurm.depthscope("jobs", number, "--stop")
    assert slurm.ended(number) == "CANCELLED"
    slurm.nothing_left(number)
    again = study.submit(store)
    assert slurm.ended(again, 300) == "COMPLETED", slurm.log(again)
    study.is_whole(store)


def test_the_demo_model_on_both_nodes(slurm: Slurm) -> None:
    needs_demo_model()
    from depthscope.jobs import ExtractSpec, extract

    from ..jobs.processes import data_bytes

    texts = [f"Layer {i} of the model reads what layer {i - 1} has written." for i in range(24)]
    records: list[dict[str, object]] = [{"text": text} for text in texts]
    corpus = write_jsonl(slurm.shared / "demo.jsonl", records)
    store, alone = slurm.shared / "demo", slurm.folder / "demo-alone"
    words = ["--model", "demo", "--task-rows", "128", "--threads", "1", "--batch-tokens", "256"]
    number = slurm.submit(
        "extract", "--data", str(corpus), "--out", str(store), *words, "--nodes", "2", *SMALL
    )
    assert slurm.ended(number, 400) == "COMPLETED", slurm.log(number)
    options = {"task_rows": 128, "threads": 1, "batch_tokens": 256, "engine": "process"}
    extract(ExtractSpec(model="demo", data=(str(corpus),), out=alone, **options))
    assert data_bytes(store) == data_bytes(alone)
    assert hosts(store) == {"n1", "n2"}


def test_a_stage_on_each_node(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "staged"
    number = study.submit(store, "--schedule", "staged", "--stages", "2", pause=0)
    assert slurm.ended(number, 400) == "COMPLETED", slurm.log(number)
    study.is_whole(store)
    found = [json.loads(path.read_text()) for path in (store / "commits").glob("*/*.json")]
    # Which node committed which points: each has its own, the same in every task.
    assert len({(commit["host"], *commit["points"]) for commit in found}) == 2
    assert {commit["host"] for commit in found} == {"n1", "n2"}


def test_an_array_and_what_follows_it(study: Study) -> None:
    slurm = study.slurm
    stores = [slurm.shared / f"array-{i}" for i in range(2)]
    each = slurm.shared / "each.txt"
    each.write_text("".join(f"--out {store}\n" for store in stores))
    words = study.command(stores[0])
    words = [words[0], *words[3:], "--engine", "process"]
    number = slurm.submit(*words, "--each", str(each), *SMALL, "--memory-per-node", "2GB")
    after = slurm.submit("analyze", str(stores[0]), "contributions", "--after", number, *SMALL)
    assert slurm.job(after)["Dependency"].startswith("afterok:")
    assert slurm.ended(after, 200) == "COMPLETED", slurm.log(after)
    for store in stores:
        study.is_whole(store)
    assert (stores[0] / "analysis" / "contributions.zarr").is_dir()


def test_what_follows_a_failure_never_starts(study: Study) -> None:
    slurm, store = study.slurm, study.slurm.shared / "unmade"
    words = [*study.command(store), "--engine", "process", "--model", str(slurm.shared / "none")]
    number = slurm.submit(*words, *SMALL, "--memory-per-node", "2GB")
    after = slurm.submit("analyze", str(store), "contributions", "--after", number, *SMALL)
    assert slurm.ended(number) == "FAILED"
    assert slurm.ended(after) == "CANCELLED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition", "nowhere"], "no such partition"),
        (["--nodes", "9"], "no node of the partition can satisfy"),
        (["--cpus-per-node", "99"], "no node of the partition can satisfy"),
        (["--gpus-per-node", "8"], "no node of the partition can satisfy"),
    ],
)
def test_refused_by_slurm(study: Study, words: list[str], said: str) -> None:
    slurm, store = study.slurm, study.slurm.shared / "refused"
    done = slurm.run("depthscope", "submit", *study.command(store), "--slurm", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not store.exists()
    assert slurm.run("squeue", "-h").stdout == ""


def test_nothing_runs_outside_its_machines(slurm: Slurm) -> None:
    """The last words of the suite: nothing is left, and nothing ran out here."""
    slurm.idle()
    assert not [m for m in slurm.network.machines.values() if m.processes("ray")]
    ours = Path("/proc/self/ns/net").stat().st_ino
    outside = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(OSError, psutil.Error):
            if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == ours:
                belongs = process.environ().get("SLURM_CONF") == str(slurm.folder / "slurm.conf")
                outside += [process.info["name"]] if belongs else []
    assert outside == []
