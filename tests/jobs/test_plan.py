"""`depthscope plan` as a user meets it, and its arithmetic against a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from depthscope.jobs import extract
from depthscope.jobs.plan_build import build_plan
from depthscope.jobs.plan_spec import PlanSpec
from depthscope.jobs.plan_store import plan_of_store
from depthscope.jobs.plan_table import plan_content, plan_text, slurm_line
from depthscope.jobs.spec import ExtractSpec
from depthscope.pipeline.costs import model_costs
from depthscope.pipeline.model_configs import find_config
from depthscope.pipeline.plan import choose
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

from ..conftest import Run, make_llama


def asked(**options: object) -> PlanSpec:
    return PlanSpec(**{"model": "llama-3.1-405b", "devices": "h100:8", "tokens": "1e7", **options})


def test_a_table_side_by_side(depthscope: Run) -> None:
    result = depthscope(
        "plan", "--model", "llama-3.1-405b", "--devices", "h100:8", "--tokens", "1e7"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "405.85 B parameters, 401.65 B in 126 layers" in lines[0]
    header = next(line for line in lines if line.split()[:2] == ["resident", "staged"])
    assert header.split() == ["resident", "staged", "sweep"]
    assert any("resident does not fit" in line and "GB are missing" in line for line in lines)
    assert "auto takes sweep" in lines
    assert any(line.startswith("sbatch --nodes=1 ") for line in lines)
    assert max(map(len, lines[lines.index(header) :][:11])) <= 100


def test_json_is_one_object(depthscope: Run, tiny_model: Path, corpus: Path) -> None:
    result = depthscope(
        "plan", "--model", tiny_model, "--data", corpus, "--devices", "cpu", "--json"
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["corpus"]["source"] == "counted"
    assert answer["choice"] == "resident"
    assert set(answer["schedules"]) == {"resident", "staged", "sweep"}
    assert all(one["fits"] for one in answer["schedules"].values())
    assert answer["model"]["layers"] == 3


def test_measuring_is_remembered(
    depthscope: Run, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ("plan", "--model", tiny_model, "--data", corpus, "--devices", "cpu", "--json")
    environment = {"DEPTHSCOPE_CACHE": str(tmp_path / "cache")}
    first = depthscope(*command, "--measure", "--out", tmp_path, **environment)
    assert first.returncode == 0, first.stderr
    assert "measuring this machine" in first.stderr
    again = json.loads(depthscope(*command, **environment).stdout)
    assert again["speed"].startswith("measured on this machine")
    assert again["schedules"] == json.loads(first.stdout)["schedules"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--devices": "h999"}, "no kind is called 'h999'"),
        ({"--model": "gpt-17"}, "no model folder gpt-17"),
        ({"--tokens": "many"}, "--tokens"),
        ({"--points": "0,200"}, "its points are 0 to 126"),
        ({"--memory": "lots"}, "--memory: 'lots' is no size"),
        ({"--utilisation": "3"}, "--utilisation 3 is more than the whole"),
        ({"--nodes": "0"}, "--nodes"),
        ({"--rows": "NOT special"}, "the share of the rows"),
        ({"--dtype": "int8"}, "unknown dtype 'int8'"),
        ({"--lens-rows": "NOT special"}, "a number of documents"),
        ({"--document-tokens": "999999"}, "beyond the model's context"),
    ],
)
def test_wrong_requests_are_one_line(options: dict[str, str], message: str) -> None:
    """In this process: the command line adds nothing but the exit code, which is tried below."""
    given = {"model": "llama-3.1-405b", "devices": "h100:8", "tokens": "1e6"}
    given |= {name[2:].replace("-", "_"): value for name, value in options.items()}
    from depthscope.jobs.errors_to_exit import exit_codes

    codes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("depthscope.jobs.errors_to_exit.say", said.append)
        with exit_codes(codes.append):
            build_plan(PlanSpec(**given))
    assert codes == [2]
    assert message in said[0]
    assert "\n" not in said[0]


def test_a_model_that_is_quantised(depthscope: Run, tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = depthscope("plan", "--model", tmp_path, "--devices", "h100", "--tokens", 1000)
    assert result.returncode == 2
    assert "quantised with fp8" in result.stderr
    assert result.stdout == ""


def test_nothing_fits_is_a_refusal_after_the_table(depthscope: Run) -> None:
    """Two layers of 405B are 12.8 GB."""
    result = depthscope(
        *("plan", "--model", "llama-3.1-405b", "--devices", "rtx4090", "--tokens", "1e6"),
        *("--device-memory", "8GB"),
    )
    assert result.returncode == 2
    assert "sweep does not fit" in result.stdout
    assert "no schedule fits" in result.stderr
    assert "the smallest schedule: it needs" in result.stderr


def test_exclusive_options() -> None:
    with pytest.raises(RequestError, match="how large is the corpus"):
        asked(tokens=None)
    with pytest.raises(RequestError, match="exclude each other"):
        asked(data=("x.jsonl",))
    with pytest.raises(RequestError, match="one cpu"):
        build_plan(asked(devices="cpu:2"))
    with pytest.raises(RequestError, match="this machine's processor"):
        build_plan(asked(measure=True))


def test_numbers_in_any_hand() -> None:
    assert asked(tokens="1e9").tokens == asked(tokens="1,000,000,000").tokens == 10**9


def test_codec_auto_follows_storage_and_cores() -> None:
    def codec(**options: object) -> str:
        return build_plan(asked(**options)).case.selection.codec

    assert codec() == "zstd"
    assert codec(cores=4) == "none"
    assert codec(codec="none") == "none"
    assert codec(points="none") == "none"


def test_the_slurm_line_has_a_margin() -> None:
    found = build_plan(asked(nodes=2, storage_bandwidth="100GB/s"))
    line = slurm_line(found, "staged")
    assert line.startswith("sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 ")
    days, clock = line.rsplit("--time=", 1)[1].split("-")
    hours, minutes, _ = map(int, clock.split(":"))
    asked_seconds = ((int(days) * 24 + hours) * 60 + minutes) * 60
    assert 1.5 <= asked_seconds / found["staged"].seconds <= 1.5 + 600 / found["staged"].seconds
    memory = int(line.split("--mem=")[1].split("G")[0]) * 2**30
    assert memory >= found["staged"].host_memory


def test_text_and_json_say_the_same() -> None:
    found = build_plan(asked())
    choice = choose(found)
    content = plan_content(found, choice)
    assert json.loads(json.dumps(content))["choice"] == choice
    assert content["slurm"] in plan_text(found, choice)
    assert f"{content['schedules']['sweep']['tokens_per_second']:,.0f}" in plan_text(found, choice)


def test_auto_follows_the_memory(corpus: Path, tmp_path: Path) -> None:
    """A store whose resident model does not fit is swept; one that fits nowhere is refused."""
    model, store = tmp_path / "model", tmp_path / "store"
    # Weights must be most of what is needed: 25 layers of a megabyte each.
    make_llama(model, layers=25, seed=7, width=128, inner=512)
    extract(
        ExtractSpec(
            model=str(model), data=(str(corpus),), out=store, engine="process", rows="row < 99"
        )
    )
    record = RunRecord.load(store)
    named = find_config(str(model))
    costs = model_costs(named.config, named.dtype)

    def chosen(memory: int) -> str:
        return choose(plan_of_store(store, record, costs, threads=1, memory=memory))

    roomy = plan_of_store(store, record, costs, threads=1)
    assert roomy.case.volume.plane_rows == 26 * 99
    least = roomy["sweep"].host_memory
    assert chosen(roomy["resident"].device_memory) == "resident"
    assert chosen(least) == "sweep"
    with pytest.raises(RequestError, match="no schedule fits"):
        chosen(least - 1)


@pytest.mark.parametrize("sublayers", [False, True])
def test_bytes_and_files_of_a_real_store(
    tiny_model: Path, corpus: Path, tmp_path: Path, sublayers: bool
) -> None:
    """A resident run in this process writes what the plan says it will."""
    options = {
        "model": str(tiny_model),
        "data": (str(corpus),),
        "points": "0,2,3",
        "sublayers": sublayers,
        "lens_rows": "all",
        "task_rows": 256,
        "codec": "none",
    }
    store = tmp_path / "store"
    extract(ExtractSpec(**options, out=store, engine="process"))
    found = build_plan(PlanSpec(**options, devices="cpu"))
    shards = [
        path
        for metadata in store.glob("*.zarr/**/zarr.json")
        if "sharding_indexed" in metadata.read_text()
        for path in (metadata.parent / "c").rglob("*")
        if path.is_file()
    ]
    commits = list((store / "commits").rglob("*.json"))
    record = json.loads((store / "run.json").read_text())
    assert found.case.corpus.rows == record["rows"]
    assert found.case.volume.tasks == record["tasks"]
    assert found["resident"].files == len(shards) + len(commits)
    folders = {path.parent for path in commits}
    folders |= {path.parent for path in shards if "activations.zarr" in path.parts}
    assert found["resident"].inodes == len(shards) + len(commits) + len(folders)
    written = sum(path.stat().st_size for path in shards)
    # The last chunk is filled up, and checksums and indices are a few percent of small chunks.
    filled = record["tasks"] * record["task_rows"] / record["rows"]
    assert found.case.volume.nbytes * filled == pytest.approx(written, rel=0.05)
    again = plan_of_store(store, RunRecord.load(store), found.case.costs, threads=1)
    assert (again.case.corpus, again.case.volume) == (found.case.corpus, found.case.volume)
    assert again.case.selection == found.case.selection
    assert choose(again) == "resident"
    twice = found.case.volume.rows_run - found.case.corpus.rows
    assert twice == pytest.approx(record["rows_run_twice"], abs=2)
