"""Submissions that are refused: one line, exit code 2, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs.cli import cli
from depthscope.jobs.job_records import JobRecord, make_folder, now
from depthscope.jobs.submit import submit
from depthscope.jobs.submit_checks import seconds_of
from depthscope.jobs.submit_spec import SubmitSpec
from depthscope.storage.errors import RequestError

EXTRACT = ("extract", "--model", "demo", "--data", "corpus.jsonl", "--out", "my store")
RAY = {"ray": "http://127.0.0.1:9"}
SLURM: dict[str, Any] = {"slurm": True}
KUBERNETES = {"kubernetes": True, "image": "registry/depthscope:1"}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs"


def refused(words: tuple[str, ...], **spec: Any) -> str:
    with pytest.raises(RequestError) as caught:
        submit(cli, words, SubmitSpec(dry_run=True, **spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "spec", "said"),
    [
        (("extract", "--nonsense", "1"), {"slurm": True}, "No such option"),
        (("extract", "--model", "demo"), {"slurm": True}, "--data, --out is missing"),
        (("fly",), {"slurm": True}, "submit cannot run fly"),
        (("submit", "status"), {"slurm": True}, "submit cannot run submit"),
        ((), {"slurm": True}, "needs a command"),
        (EXTRACT, {}, "one of --ray URL, --slurm and --kubernetes"),
        (EXTRACT, {"slurm": True, "kubernetes": True}, "one of --ray URL"),
        (EXTRACT, {"kubernetes": True}, "needs --image"),
        (EXTRACT, {"slurm": True, "nodes": 0}, "--nodes 0"),
        (EXTRACT, {"slurm": True, "gpus_per_node": "many"}, "KIND:NUMBER"),
        (EXTRACT, {"slurm": True, "dask_nodes": 1}, "does not compute with Dask"),
        ((*EXTRACT, "--address", "ray://x"), {"slurm": True}, "finds its cluster by itself"),
        (("analyze", "nowhere"), {"slurm": True}, "is no store"),
        (EXTRACT, {"slurm": True, "after": ("that",)}, "no job is called that"),
        (EXTRACT, {"slurm": True, "sbatch": ("--qos=a\n--x",)}, "is one line"),
        (EXTRACT, {"slurm": True, "stop_seconds": 59}, "at least 60"),
        (EXTRACT, {"slurm": True, "time_limit": "2"}, "leaves no time to work in --time-limit 2"),
        (EXTRACT, {"slurm": True, "partition": "a\nb"}, "is one line"),
        (EXTRACT, {"ray": "head:8265"}, "write the dashboard's address"),
        (EXTRACT, {"ray": "http://127.0.0.1:9"}, "no Ray dashboard answers there"),
    ],
)
def test_refused(words: tuple[str, ...], spec: dict[str, Any], said: str, state: Path) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        submit(cli, words, SubmitSpec(dry_run="ray" not in spec, **spec))
    assert "\n" not in str(caught.value)
    assert not state.exists()


def test_no_slurm_on_the_path(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match="sbatch is not on the path"):
        submit(cli, EXTRACT, SubmitSpec(slurm=True))
    with pytest.raises(RequestError, match="kubectl is not on the path"):
        submit(cli, EXTRACT, SubmitSpec(kubernetes=True, image="registry/depthscope:1"))
    assert not state.exists()


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_what_the_cluster_refuses_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    say = "echo 'error: no more today' >&2; exit 1"
    program(tmp_path / "bin", "sbatch", f'[ "$1" = --test-only ] || {{ {say}; }}')
    program(tmp_path / "bin", "kubectl", say)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for spec in (SLURM, KUBERNETES):
        with pytest.raises(RequestError, match="no more today"):
            submit(cli, EXTRACT, SubmitSpec(**spec))
        assert not state.exists()
    make_folder("another")
    with pytest.raises(RequestError, match="no more today"):
        submit(cli, EXTRACT, SubmitSpec(**SLURM))
    assert [path.name for path in state.iterdir()] == ["another"]


@pytest.mark.parametrize(
    ("where", "given", "said"),
    [
        (SLURM, {"follow": True}, "--follow needs --ray"),
        (SLURM, {"record": False}, "--no-record needs --ray"),
        (SLURM, {"await_nodes": 1}, "--await-nodes needs --ray"),
        (KUBERNETES, {"ship": False}, "--no-ship needs --ray"),
        (RAY, {"partition": "p"}, "--partition needs --slurm"),
        (RAY, {"time_limit": "3"}, "--time-limit needs --slurm"),
        (RAY, {"account": "p"}, "--account needs --slurm"),
        (RAY, {"sbatch": ("--x",)}, "--sbatch needs --slurm"),
        (RAY, {"each": Path("each")}, "--each needs --slurm"),
        (RAY, {"after": ("17",)}, "--after needs --slurm"),
        (RAY, {"dask_nodes": 1}, "--dask-nodes needs --slurm"),
        (KUBERNETES, {"stop_seconds": 120}, "--stop-seconds needs --slurm"),
        (SLURM, {"at_once": 2}, "--at-once needs --each"),
        (SLURM, {"dask_partition": "p"}, "--dask-partition needs --dask-nodes"),
        (SLURM, {"image": "x"}, "--image needs --kubernetes"),
        (RAY, {"claim": "x"}, "--claim needs --kubernetes"),
        (SLURM, {"namespace": "x"}, "--namespace needs --kubernetes"),
        (RAY, {"object_store": "1GB"}, "--object-store needs --slurm or --kubernetes"),
        (RAY, {"memory_per_node": "1GB"}, "--memory-per-node needs --slurm or --kubernetes"),
    ],
)
def test_an_option_that_would_be_ignored(
    where: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    assert refused(EXTRACT, **where, **given) == said
    SubmitSpec(**where).checked()


def test_what_a_batch_job_asks_of_its_own_cluster() -> None:
    SubmitSpec(
        ray="http://10.0.0.1:8265", follow=True, ship=False, record=False, await_nodes=2
    ).checked()
    # Said, but as it would be anyway.
    SubmitSpec(slurm=True, follow=False, record=True, ship=True).checked()


@pytest.mark.parametrize(
    "name", ["A", "my job", "a_b", "-a", "a-", "a--b", "1st", "", "a\nb", "a/b", "x" * 41]
)
def test_names_that_are_refused(name: str) -> None:
    assert "--job-name" in refused(EXTRACT, slurm=True, job_name=name)


def test_names_that_are_not() -> None:
    for name in ("a", "depth-of-8b", "x" * 40):
        spec = SubmitSpec(slurm=True, job_name=name, dry_run=True)
        assert f"--job-name={name}\n" in submit(cli, EXTRACT, spec).text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("01:30", 90), ("8:00:00", 28800), ("1-12", 129600), ("1-12:30", 131400),
        ("2-00:00:01", 172801), ("0", 0), ("UNLIMITED", None), ("a", None), ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_times_as_slurm_writes_them(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_time_to_stop_within_the_limit() -> None:
    for limit in ("0", "UNLIMITED", "2:01", "30"):
        SubmitSpec(slurm=True, time_limit=limit).checked()
    assert "120 leaves no time" in refused(EXTRACT, slurm=True, time_limit="1:59")


def each(folder: Path, *lines: str) -> Path:
    path = folder / "each"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("place", ["a", "./a", "x/../a", "{here}/a"])
def test_two_tasks_of_an_array_that_write_one_store(tmp_path: Path, place: str) -> None:
    other = place.format(here=tmp_path)
    for engine in ("ray", "process"):
        words = (*EXTRACT[:-2], "--engine", engine)
        lines = each(tmp_path, "--out a", f"--out {other}")
        assert f"two lines write the store {tmp_path}/a" in refused(words, slurm=True, each=lines)


def test_arrays_that_are_refused(tmp_path: Path) -> None:
    words = EXTRACT[:-2]
    lines = each(tmp_path, "--out a", "--out b --engine process")
    assert "some lines run on Ray and some do not" in refused(words, slurm=True, each=lines)
    lines = each(tmp_path, "--out a", "--out 'b")
    assert refused(words, slurm=True, each=lines).endswith("no closing quotation in: --out 'b")
    lines = each(tmp_path, "--out b", "--out c")
    assert "has no arrays" in refused(words, slurm=True, each=lines, dask_nodes=1)


def test_waiting_for_a_job_of_another_cluster() -> None:
    record = JobRecord("extract-1", "ray", "extract-1", ("extract",), (), "http://h:1", now())
    make_folder(record.id)
    record.save()
    said = refused(EXTRACT, slurm=True, after=("extract-1",))
    assert "--after extract-1: is a ray job" in said
