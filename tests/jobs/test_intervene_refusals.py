"""What `intervene` cannot do is refused in one line, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.jobs.cli import main
from depthscope.storage.errors import RequestError

from ..conftest import sentences, write_jsonl


def make(model: Path, root: Path, texts: list[str]) -> Path:
    data = write_jsonl(root.parent / f"{root.name}.jsonl", [{"text": text} for text in texts])
    options = {"engine": "process", "threads": 1, "sublayers": True, "lens_rows": "none"}
    extract(ExtractSpec(model=str(model), data=(str(data),), out=root, **options))
    return root


@pytest.fixture(scope="module")
def stores(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store; one of single tokens; one that is not finished; one of a wider model."""
    folder = tmp_path_factory.mktemp("refusals")
    store = make(tiny_model, folder / "store", sentences(4, seed=2))
    short = make(tiny_model, folder / "short", ["a", "b"])
    unfinished, wider = folder / "unfinished", folder / "wider"
    for copy in (unfinished, wider):
        shutil.copytree(store, copy)
    for commit in (unfinished / "commits").glob("*/*.json"):
        commit.unlink()
    record = json.loads((wider / "run.json").read_text())
    record["model"]["hidden"] = 48
    (wider / "run.json").write_text(json.dumps(record))
    return {"store": store, "short": short, "unfinished": unfinished, "wider": wider}


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ("store", ["--splits", "900"], "no split lies inside a document .* give smaller ones"),
        ("store", ["--layers", "0,7"], "--layers 7 does not exist: .* layers 0 to 2"),
        ("store", ["--also", "mlp:skip:9"], "layer 9 does not exist: .* layers 0 to 2"),
        ("store", ["--memory", "1KB"], r"too little: .* need \d+\.\d+ GB .* give that"),
        ("store", ["--schedule", "staged", "--stages", "4"], "--stages 4: .* give at most 3"),
        ("store", ["--stages", "2"], "--stages is for --schedule staged, not for auto"),
        (
            "store",
            ["--what", "gradients", "--schedule", "staged"],
            "goes back through all layers: give --schedule resident, not staged",
        ),
        ("store", ["--name", "../elsewhere"], "--name '../elsewhere'"),
        ("short", [], "every document is shorter than two tokens"),
        ("store", ["--what", "patch", "--patch-from", "{wider}"], "hidden size 48, this one 32"),
        ("store", ["--what", "patch", "--patch-from", "{unfinished}"], "of which 0 of"),
        ("store", ["--what", "patch", "--patch-from", "{store}/none"], "none"),
        ("unfinished", ["--what", "mean"], "of which 0 of .* run its extract to the end first"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_one_line_and_nothing_written(
    stores: dict[str, Path],
    which: str,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in stores[which].rglob("*")}
    given = [option.format(**stores) for option in options]
    command = ["intervene", str(stores[which]), "--name", "bad", "--engine", "process", "--quiet"]
    with pytest.raises(SystemExit) as left:
        main([*command, *given])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("depthscope: ")
    assert re.search(message, line)
    assert {path: path.stat().st_mtime_ns for path in stores[which].rglob("*")} == before


def test_the_least_memory_that_is_named_is_enough(stores: dict[str, Path]) -> None:
    def spec(memory: str) -> InterveneSpec:
        return InterveneSpec(name="least", engine="process", threads=1, memory=memory)

    with pytest.raises(RequestError) as refused:
        intervene(stores["store"], spec("1KB"))
    found = re.search(r"need (\d+\.\d+) GB", str(refused.value))
    assert found is not None
    done = intervene(stores["store"], spec(f"{found[1]}GB"))
    assert done.committed == done.tasks
