"""Submission without a cluster: what would run, what is refused, and what is shipped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from depthscope.jobs.cli import cli
from depthscope.jobs.submit import submit
from depthscope.jobs.submit_spec import SubmitSpec
from depthscope.jobs.wheel import pack_wheel
from depthscope.storage.errors import RequestError

ROOT = Path(__file__).parent.parent.parent
EXTRACT = ("extract", "--model", "demo", "--data", "corpus.jsonl", "--out", "my store")
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs"


def dry(*words: str, **spec: Any) -> str:
    return submit(cli, words or EXTRACT, SubmitSpec(dry_run=True, **spec)).text


def requests(script: str) -> list[str]:
    return [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]


def shellcheck(*words: object, text: str | None = None) -> str:
    command = [str(PROGRAMS / "shellcheck"), "--shell=bash", *map(str, words)]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def test_the_batch_script_says_what_was_asked() -> None:
    script = dry(
        slurm=True, nodes=2, cpus_per_node=8, gpus_per_node="h100:4", time_limit="8:00:00",
        partition="gpu", account="mine", sbatch=("--qos=long",), stop_seconds=300, after=("17",),
    )  # fmt: skip
    found = requests(script)
    for line in (
        "--nodes=2", "--cpus-per-task=8", "--gpus-per-node=h100:4", "--time=8:00:00",
        "--partition=gpu", "--account=mine", "--qos=long", "--signal=B:USR1@300", "--requeue",
        "--dependency=afterok:17",
    ):  # fmt: skip
        assert line in found
    (words,) = [line for line in script.splitlines() if line.startswith("set -- ")]
    assert "'my store'" in words
    assert words.endswith("--address auto --workers 2 --threads 8 --gpus-per-worker 4")
    assert not Path("jobs").exists()


@pytest.mark.parametrize(
    "given", [{}, {"dask_nodes": 2}, {"each": True}], ids=["ray", "dask nodes", "array"]
)
def test_scripts_are_clean(given: dict[str, Any], tmp_path: Path) -> None:
    words = EXTRACT
    if "each" in given:
        given = {"each": tmp_path / "each", "at_once": 2}
        given["each"].write_text("--out 'store a'\n# a remark\n--out b\n")
    if "dask_nodes" in given:
        words = ("analyze", "store", "contributions")
        given = {**given, "after": ("3",)}
    script = dry(*words, slurm=True, **given)
    assert shellcheck("-", text=script) == ""
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_wrappers_are_clean() -> None:
    assert shellcheck(*sorted((ROOT / "deploy" / "slurm").glob("*.sh"))) == ""


def test_the_container_file_is_clean() -> None:
    command = [str(PROGRAMS / "hadolint"), str(ROOT / "deploy" / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_what_it_needs_and_pins_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_package(line) for line in lines if "==" in line}
    assert {_package(line) for line in project["dependencies"]} <= pinned
    # What is copied from the context is what the context is allowed to hold.
    (copied,) = re.findall(r"^COPY (.*) \S+$", (ROOT / "deploy/Containerfile").read_text(), re.M)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line[1:] for line in allowed if line.startswith("!")] == copied.split()


def _package(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return name[0].lower().replace("_", "-")


def test_an_array_has_one_choice_per_line(tmp_path: Path) -> None:
    each = tmp_path / "each"
    each.write_text("--out 'store a'\n\n--out b --points none\n")
    script = dry(*EXTRACT[:-2], slurm=True, each=each, at_once=1)
    assert "--array=0-1%1" in requests(script)
    for number, store in enumerate(["store a", "b"]):
        head = f'SLURM_ARRAY_TASK_ID={number}\n{_choice(script)}\necho "$DEPTHSCOPE_STORE"'
        done = subprocess.run(["bash", "-c", head], capture_output=True, text=True)
        assert done.stdout.strip() == str(tmp_path / store)
    each.write_text("--out a\n--out a\n")
    with pytest.raises(RequestError, match="two lines write the store"):
        dry(*EXTRACT[:-2], slurm=True, each=each)


def _choice(script: str) -> str:
    return script[script.index("case ") : script.index("esac") + 4]


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


class OldCluster(BaseHTTPRequestHandler):
    """A dashboard of another version of Ray."""

    def do_GET(self) -> None:
        body = json.dumps({"version": "4", "ray_version": "2.40.0", "ray_commit": "x"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_another_version_of_ray(state: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), OldCluster) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            with pytest.raises(RequestError, match=r"runs Ray 2\.40\.0, this is .*pip install ray"):
                submit(cli, EXTRACT, SubmitSpec(ray=url))
        finally:
            server.shutdown()
            thread.join()
    assert not state.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sbatch: error: invalid partition specified: x", "no such partition"),
        ("sbatch: error: Invalid account or account/partition combination", "this account"),
        (
            "sbatch: error: Requested node configuration is not available",
            "no node of the partition",
        ),
        ("sbatch: error: Unable to contact slurm controller", "does not answer"),
        ("sbatch: error: something new", "Slurm refuses the job: something new"),
    ],
)
def test_what_slurm_says_becomes_one_line(text: str, said: str) -> None:
    from depthscope.jobs.slurm import _advice

    assert said in _advice(text)
    assert "\n" not in _advice(text)


def test_no_option_of_submit_is_one_of_its_commands() -> None:
    from depthscope.jobs.inner_command import NOT_IN_A_JOB

    ours = {option for parameter in cli.commands["submit"].params for option in parameter.opts}
    for name, command in cli.commands.items():
        theirs = {option for parameter in command.params for option in parameter.opts}
        if name not in (*NOT_IN_A_JOB, "plan"):
            assert {o for o in ours & theirs if o.startswith("-")} <= {"--json", "-h"}, name


def test_options_stand_before_or_after_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (
        [*EXTRACT, "--slurm", "--nodes", "3", "--dry-run"],
        ["--slurm", "--nodes", "3", "--dry-run", "--", *EXTRACT],
    ):
        cli.main(["submit", *words], standalone_mode=False)
        assert "--nodes=3" in requests(capsys.readouterr().out)


def schema_says(text: str, tmp_path: Path) -> str:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    schema = ROOT / "deploy" / "kubernetes" / "rayjob.schema.json"
    command = [str(PROGRAMS / "check-jsonschema"), "--schemafile", str(schema), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout


def test_the_manifest_is_what_kuberay_accepts(tmp_path: Path) -> None:
    text = dry(
        kubernetes=True, image="registry/depthscope:1", nodes=4, gpus_per_node="8",
        claim="studies", namespace="depth", memory_per_node="64GB", chdir=Path("/data"),
    )  # fmt: skip
    assert schema_says(text, tmp_path) == ""
    manifest = yaml.safe_load(text)
    import ray

    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    assert "--workers 4" in manifest["spec"]["entrypoint"]
    for spoil in (
        lambda m: m["spec"].update(submissionMode="Somehow"),
        lambda m: m["spec"].update(entryPoint="x"),
        lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(a=0),
        lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="4"),
        lambda m: m["metadata"].update(name="Not_A_Name"),
    ):
        other = yaml.safe_load(text)
        spoil(other)
        assert schema_says(yaml.safe_dump(other), tmp_path) != ""


def test_the_wheel_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack_wheel(tmp_path)
    content = first.read_bytes()
    assert pack_wheel(tmp_path) == first
    assert first.read_bytes() == content
    target = tmp_path / "target"
    # As Ray unpacks it: pip into a folder of its own; it must not fetch anything.
    install = [sys.executable, "-m", "pip", "install", "--no-index", "--quiet", str(first)]
    subprocess.run([*install, f"--target={target}"], check=True)
    names = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    for file in ("jobs/cli.py", "deploy/slurm/lifetime.sh", "analysis/py.typed"):
        if (ROOT / file).exists():
            assert f"depthscope/{file}" in names
    assert [n for n in names if not n.startswith(("depthscope/", "depthscope-", "bin/"))] == []
    code = "import depthscope.jobs, importlib.metadata as m; print(depthscope.jobs.__file__)"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env={"PYTHONPATH": str(target)})
    assert done.stdout.strip().startswith(str(target)), done.stderr
    # Ray knows a wheel by its name alone: other files must have another.
    monkeypatch.setattr("depthscope.jobs.wheel.PACKAGES", ("storage", "jobs"))
    assert pack_wheel(tmp_path).name != first.name


def test_jobs_are_listed_with_their_progress(
    state: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    from depthscope.jobs import ExtractSpec, extract
    from depthscope.jobs.job_records import JobRecord, find_record, make_folder, now, records
    from depthscope.jobs.submitted import job_states, logs

    store = tmp_path / "store"
    extract(ExtractSpec(model=str(tiny_model), data=(str(corpus),), out=store, engine="process"))
    made = JobRecord("extract-1", "slurm", "999999", ("extract",), (str(store),), "", now())
    make_folder(made.id)
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
