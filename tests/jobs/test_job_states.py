"""`depthscope jobs`: states from few questions, progress from the stores' own commits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, InterveneSpec, cluster_program, extract, intervene
from depthscope.jobs.cli import cli
from depthscope.jobs.inner_command import inner_command
from depthscope.jobs.job_records import JobRecord, find_record, make_folder, now, records
from depthscope.jobs.submit import record_of
from depthscope.jobs.submit_spec import SubmitSpec
from depthscope.jobs.submitted import job_states, logs


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(tmp_path / "jobs"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("squeue", "sacct", "kubectl"):
        program(folder, name, "exit 1")
    return folder


def program(folder: Path, name: str, text: str) -> None:
    """A program of the cluster that notes that it was asked, and does this."""
    (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "$0.asked"\n{text}\n')
    (folder / name).chmod(0o755)


def asked(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.asked"
    return path.read_text().splitlines() if path.exists() else []


def record(
    number: str, kind: str = "slurm", stores: tuple[str, ...] = (), **more: Any
) -> JobRecord:
    made = JobRecord(f"job-{number}", kind, number, ("extract",), stores, "", now(), **more)
    make_folder(made.id)
    return made


def states(*made: JobRecord) -> list[str]:
    return [found.state for found in job_states(made)]


def test_slurm_is_asked_once_for_all_jobs(programs: Path) -> None:
    lines = "7 RUNNING\\n8 COMPLETED\\n8 RUNNING\\n8 COMPLETED\\n9 COMPLETED\\n10 PENDING"
    program(programs, "squeue", f"printf '{lines}\\n'")
    lines = "11_0 COMPLETED\\n11_1 FAILED\\n12 CANCELLED by 1000\\n13+0 COMPLETED\\n13+1 CANCELLED"
    program(programs, "sacct", f"printf '{lines}\\n'")
    found = states(*(record(str(number)) for number in (7, 8, 9, 11, 12, 13, 14)))
    assert found == [
        "running",
        "2 completed, 1 running",
        "completed",
        "1 completed, 1 failed",
        "cancelled",
        "completed",
        "unknown",
    ]
    assert len(asked(programs, "squeue")) == 1
    (question,) = asked(programs, "sacct")
    assert question.endswith("11,12,13,14")


def test_the_accounting_is_not_asked_in_vain(programs: Path) -> None:
    program(programs, "squeue", "echo 7 RUNNING")
    assert states(record("7")) == ["running"]
    assert asked(programs, "sacct") == []


def test_no_question_after_one_that_had_no_answer(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_program, "PATIENCE", 0.5)
    for name in ("squeue", "sacct", "kubectl"):
        program(programs, name, "exec sleep 20")
    made = [record(str(number)) for number in (1, 2)]
    made += [record(f"k{number}", "kubernetes") for number in (1, 2)]
    assert states(*made) == ["unknown"] * 4
    counts = [len(asked(programs, name)) for name in ("squeue", "sacct", "kubectl")]
    assert counts == [1, 0, 1]


def test_kubernetes_is_asked_for_each_job(programs: Path) -> None:
    answer = json.dumps({"status": {"jobStatus": "RUNNING"}})
    program(programs, "kubectl", f"[ $3 != gone ] && echo '{answer}'")
    made = [record(name, "kubernetes") for name in ("gone", "a")]
    assert states(*made) == ["unknown", "running"]


def test_what_tasks_leave_behind(programs: Path) -> None:
    made = record("5", tasks=3)
    expected = ["1 of 3 completed", "2 of 3 completed", "completed"]
    for number, state in enumerate(expected):
        (made.folder / f"ended-{number}").write_text("0\n")
        assert states(made) == [state]
    (made.folder / "ended-1").write_text("2\n")
    assert states(made) == ["ended with code 2"]


def test_jobs_are_listed_with_their_progress(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    extract(ExtractSpec(model=str(tiny_model), data=(str(corpus),), out=store, engine="process"))
    made = record("999999", stores=(str(store),))
    made.save()
    assert list(records()) == [made]
    assert find_record("999999") == made
    (made.folder / "ended").write_text("0\n")
    (made.folder / "log").write_text("what it said\n")
    (found,) = job_states([made])
    assert (found.state, found.tasks_committed) == ("completed", found.tasks_total)
    assert found.tasks_total > 0
    assert logs(made) == "what it said\n"
    assert json.dumps(found.line)
    _sweep(store)


def _sweep(store: Path) -> None:
    """The progress of a sweep is its own, not that of the extraction before it."""
    words = ("intervene", str(store), "--name", "skips")
    command = inner_command(cli, words, SubmitSpec(slurm=True))
    made = record_of("intervene-1", "slurm", "1", "", [command])
    assert made.sweeps == ("skips",)
    (found,) = job_states([made])
    assert (found.tasks_committed, found.tasks_total) == (0, 0)
    spec = {"engine": "process", "schedule": "resident", "documents": 2, "threads": 1}
    done = intervene(store, InterveneSpec(name="skips", **spec))
    (found,) = job_states([made])
    assert (found.tasks_committed, found.tasks_total) == (done.tasks, done.tasks)
    for commit in (store / "commits" / "effects" / "skips").rglob("*.json"):
        commit.unlink()
    (found,) = job_states([made])
    assert (found.tasks_committed, found.tasks_total) == (0, done.tasks)


def test_records_of_earlier_versions() -> None:
    made = record("5", stores=("a", "b"), tasks=2)
    made.save()
    content = {k: v for k, v in asdict(made).items() if k not in ("sweeps", "tasks")}
    (made.folder / "record.json").write_text(json.dumps(content))
    assert list(records()) == [made]
