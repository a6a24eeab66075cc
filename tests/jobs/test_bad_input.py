"""Bad input: one clear line on stderr, exit code 2, and no trace of a store."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from depthscope.jobs.cli import main

from ..conftest import Run, write_jsonl

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tiny_model: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Refused:
    """Run ``depthscope extract`` on a good request with these changes; the one line it says."""

    def run(**changes: object) -> str:
        options = {"model": tiny_model, "data": corpus, "out": tmp_path / "store"} | changes
        arguments = ["extract", "--engine", "process"]
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("depthscope: ")]
        assert stop.value.code == 2, lines
        assert len(said) == 1, lines
        out = Path(str(options["out"]))
        assert not out.exists() or not (out / "run.json").exists()
        if out.parent.is_dir():
            assert not list(out.parent.glob(".*preparing*"))
        return said[0]

    return run


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_missing_corpus(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in refused(data=tmp_path / "nowhere.jsonl")


def test_empty_corpus(refused: Refused, tmp_path: Path) -> None:
    assert "empty" in refused(data=text(tmp_path / "none.jsonl", ""))


def test_wrong_field(refused: Refused) -> None:
    said = refused(text_field="body")
    assert "body" in said
    assert "text" in said
    assert "kind" in said


def test_broken_json_at_a_line(refused: Refused, tmp_path: Path) -> None:
    said = refused(data=text(tmp_path / "broken.jsonl", '{"text": "a"}\n{"text": \n'))
    assert "broken.jsonl" in said
    assert "line 2" in said


def test_not_utf8(refused: Refused, tmp_path: Path) -> None:
    said = refused(data=text(tmp_path / "latin.jsonl", b'{"text": "caf\xe9"}\n'))
    assert "latin.jsonl" in said
    assert "UTF-8" in said


def test_document_longer_than_the_context(refused: Refused, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "long.jsonl", [{"text": "short"}, {"text": "x" * 600}])
    said = refused(data=data)
    for part in ("long.jsonl", "line 2", "600", "512", "--on-long"):
        assert part in said


def test_empty_document(refused: Refused, tmp_path: Path) -> None:
    said = refused(data=write_jsonl(tmp_path / "gap.jsonl", [{"text": "a"}, {"text": ""}]))
    assert "line 2" in said


def test_model_folder_without_safetensors(
    refused: Refused, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    assert "safetensors" in refused(model=tmp_path / "bare")


def test_model_folder_with_a_missing_file(
    refused: Refused, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "part"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(model=folder)


def test_truncated_weights(refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(model=folder)


def test_no_such_model(refused: Refused, tmp_path: Path) -> None:
    assert "nothing-here" in refused(model=tmp_path / "nothing-here")


def test_a_hub_that_cannot_be_reached(refused: Refused) -> None:
    assert "nobody/nothing" in refused(model="nobody/nothing")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("dtype", "float12", "float12"),
        ("points", "0,4", "0 to 3"),
        ("points", "-1", "-1"),
        ("points", "first", "first"),
        ("rows", "position %% 4 =", "position %% 4 ="),
        ("rows", "colour = 'red'", "colour"),
        ("rows", "position", "position"),
        ("rows", "position < 0", "selects no row"),
        ("lens_rows", "token LIKE", "LIKE"),
        ("task_rows", "many", "--task-rows"),
        ("codec", "lzma", "codec"),
        ("attention", "imaginary", "imaginary"),
        ("config", "nowhere.yaml", "nowhere.yaml"),
        ("address", "127.0.0.1:1", "--engine ray"),
    ],
)
def test_wrong_values(refused: Refused, option: str, value: str, expected: str) -> None:
    assert expected in refused(**{option: value})


def test_unknown_option_and_missing_option(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["extract", "--colour", "red"], "--colour"),
        (["extract", "--model", "demo"], "--data, --out"),
        (["paint"], "paint"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert expected in line


def test_unwritable_path(refused: Refused, tmp_path: Path) -> None:
    blocked = text(tmp_path / "file", "")
    assert "cannot be" in refused(out=blocked / "store")


def test_a_folder_that_is_no_store(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    text(folder / "thesis.tex", "precious")
    assert "no store" in refused(out=folder)
    assert (folder / "thesis.tex").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 66 MB, two of them above the reserve."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(refused: Refused, small_disk: Path) -> None:
    said = refused(out=small_disk / "store")
    assert "GB" in said
    assert "free" in said
    assert not list(small_disk.iterdir())


def test_a_store_of_a_newer_version(
    depthscope: Run, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = (
        "extract",
        "--model",
        tiny_model,
        "--data",
        corpus,
        "--out",
        store,
        "--engine",
        "process",
    )
    assert depthscope(*command).returncode == 0
    record = json.loads((store / "run.json").read_text())
    (store / "run.json").write_text(json.dumps(record | {"format": 99}))
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    for again in (command, ("status", store), ("verify", store)):
        result = depthscope(*again)
        assert result.returncode == 2
        assert "99" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before


def test_a_store_that_does_not_exist(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "verify"):
        with pytest.raises(SystemExit) as stop:
            main([command, str(tmp_path / "nothing")])
        assert stop.value.code == 2
        assert "no store" in capfd.readouterr().err
