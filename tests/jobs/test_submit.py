"""Submission without a cluster: what would run, what is refused, and what is shipped."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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
from depthscope.jobs.inner_command import NOT_IN_A_JOB, inner_command
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


def words_of(script: str) -> str:
    (words,) = [line for line in script.splitlines() if line.startswith("set -- ")]
    return words


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
    words = words_of(script)
    assert "'my store'" in words
    assert words.endswith("--address auto --workers 2 --threads 8 --gpus-per-worker 4")
    assert not Path("jobs").exists()


def test_sbatch_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's own parser finds every value whole, whatever is in it."""
    folder = tmp_path / "it's 100%d #one"
    folder.mkdir()
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(folder / "jobs"))
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\n"
        "MessageTimeout=1\nSlurmctldTimeout=1\nNodeName=n\nPartitionName=p Nodes=n\n"
    )
    script = dry(
        slurm=True, account="a \\ b", partition='the "p"', chdir=folder, time_limit="1-0",
        sbatch=("--comment=my words, don't touch", "--qos=x"),
    )  # fmt: skip
    words = [shlex.split(line.replace("\\\\", "\\")) for line in requests(script)]
    assert [len(line) for line in words] == [1] * len(words)
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch here")
    # Without a controller it only says what it has read.
    done = subprocess.run(
        ["sbatch", "-vv", "--test-only"], input=script, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
    )  # fmt: skip
    found = dict(re.findall(r"^sbatch: (\S+) +: (.*)$", done.stderr, re.MULTILINE))
    if "account" not in found:
        pytest.skip(f"sbatch does not show what it reads: {done.stderr[:200]}")
    assert found["account"] == "a \\ b"
    assert found["partition"] == 'the "p"'
    assert found["comment"] == "my words, don't touch"
    assert found["qos"] == "x"
    assert found["chdir"] == str(folder)
    # What is in the name of the folder must not be replaced.
    assert found["output"].replace("%%", "%").startswith(f"{folder}/jobs/extract-")
    assert found["output"].count("%%") == 1


def test_the_log_of_an_array_has_its_number(tmp_path: Path, state: Path) -> None:
    each = tmp_path / "each"
    each.write_text("--out a\n--out b\n")
    (output,) = [x for x in requests(dry(*EXTRACT[:-2], slurm=True, each=each)) if "output" in x]
    assert re.fullmatch(rf"--output={re.escape(str(state))}/extract-\w+/log-%a", output)


def test_a_store_lies_where_the_command_runs(tmp_path: Path) -> None:
    script = dry(slurm=True, chdir=tmp_path / "there" / "." / "x" / "..")
    assert f"export DEPTHSCOPE_STORE='{tmp_path}/there/my store'" in script
    assert f"export DEPTHSCOPE_STORE='{tmp_path}/here/my store'" in dry(
        slurm=True, chdir=Path("here")
    )
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError, match=f"{tmp_path}/there/store is no store"):
        dry("analyze", "store", slurm=True, chdir=Path("there"))

    def place(**given: Any) -> Path | None:
        return inner_command(cli, EXTRACT, SubmitSpec(**given)).store

    url = "http://head:8265"
    assert place(ray=url) is None
    assert place(ray=url, chdir=Path("there")) is None
    assert place(ray=url, chdir=Path("/data")) == Path("/data/my store")
    assert place(kubernetes=True, image="x") is None
    assert place(kubernetes=True, image="x", chdir=Path("/data")) == Path("/data/my store")
    given = (*EXTRACT[:-1], "/a/./b/../store")
    assert inner_command(cli, given, SubmitSpec(ray=url)).store == Path("/a/store")


@pytest.mark.parametrize(
    ("more", "spec", "said"),
    [
        ((), {"slurm": True, "nodes": 2}, "--address auto --workers 2"),
        ((), {"slurm": True, "sbatch": ("--gres=gpu:8",)}, "--address auto --workers 1"),
        ((), {"slurm": True, "gpus_per_node": "0"}, "--workers 1 --gpus-per-worker 0"),
        (("--workers", "3"), {"slurm": True, "gpus_per_node": "8"}, "--gpus-per-worker 2"),
        (("--workers", "16"), {"slurm": True, "gpus_per_node": "8"}, "--gpus-per-worker 0.5"),
        (
            ("--schedule", "staged", "--stages", "4"),
            {"slurm": True, "nodes": 2, "cpus_per_node": 8, "gpus_per_node": "h100:8"},
            "--address auto --threads 4 --gpus-per-worker 4",
        ),
        ((), {"ray": "http://h:1"}, "--address auto"),
        ((), {"ray": "http://h:1", "nodes": 4}, "--address auto --workers 4"),
        ((), {"ray": "http://h:1", "gpus_per_node": "8"}, "--address auto --gpus-per-worker 8"),
        ((), {"kubernetes": True, "image": "x", "nodes": 2}, "--address auto --workers 2"),
    ],
)
def test_what_the_command_is_told_of_its_cluster(
    more: tuple[str, ...], spec: dict[str, Any], said: str
) -> None:
    found = inner_command(cli, (*EXTRACT, *more), SubmitSpec(**spec)).arguments
    words = found[len(EXTRACT) + len(more) :]
    assert " ".join(words).endswith(said)
    assert words[:2] == ("--address", "auto")
    assert ("--gpus-per-worker" in words) == ("gpus_per_node" in spec)


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


def _choice(script: str) -> str:
    return script[script.index("case ") : script.index("esac") + 4]


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
