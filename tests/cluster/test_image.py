"""The image of deploy/Containerfile, built and run: on a base made here, as CUDA's own is large."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from depthscope.jobs import ExtractSpec, extract

from ..conftest import sentences, write_jsonl
from ..jobs.processes import data_bytes
from .slurm import install

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = ("buildah", "debootstrap")
BASE, IMAGE = "localhost/base", "localhost/depthscope"


@dataclass
class Builder:
    """Buildah with storage of its own, which ends with the test."""

    folder: Path

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of buildah's commands."""
        place = ("--root", self.folder / "storage", "--runroot", self.folder / "run")
        command = ("buildah", *place, "--storage-driver", "vfs", *words)
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.folder)},
        )
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, words))}: {done.stdout}{done.stderr}")
        return done


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """Buildah, with a base image of Debian that installs packages as this machine does."""
    if os.geteuid() != 0:
        pytest.skip("no image can be built here: needs root")
    install(PROGRAMS)
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        pytest.skip(f"no image can be built here: {', '.join(absent)} cannot be installed")
    folder = Path(tempfile.mkdtemp(prefix="ds-image-", dir="/var/tmp"))
    try:
        found = Builder(folder)
        _make_base(found)
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_base(builder: Builder) -> None:
    system = builder.folder / "system"
    words = ("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm")
    done = subprocess.run([*words, str(system)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no image can be built here: debootstrap: {done.stdout[-300:]}")
    for path in ("etc/apt", "etc/ssl/certs", "usr/local/share/ca-certificates"):
        shutil.rmtree(system / path, ignore_errors=True)
        shutil.copytree(f"/{path}", system / path, symlinks=True)
    (system / "etc/pip.conf").write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in _pip_settings().items())
    )
    builder.run("from", "--name", "system", "scratch")
    builder.run("add", "--quiet", "system", system, "/")
    builder.run("commit", "--quiet", "--rm", "system", BASE)
    shutil.rmtree(system)


def _pip_settings() -> dict[str, str]:
    """How pip finds packages on this machine."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pairs = [line.partition("=") for line in lines]
    return {name.rpartition(".")[2]: value.strip("'") for name, _, value in pairs}


def _volumes() -> list[str]:
    """Folders of this machine that pip's settings name."""
    named = " ".join(_pip_settings().values()).replace("file://", "").split()
    folders = {path for path in named if path.startswith("/") and Path(path).is_dir()}
    # An index refers to files beside it.
    folders |= {str(Path(path).parent) for path in folders if Path(path).name == "simple"}
    return [f"--volume={path}:{path}:ro" for path in sorted(folders)]


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    """The image, built as the file's own first lines say."""
    context = builder.folder / "context"
    context.mkdir()
    for name in ("constraints.txt", ".dockerignore", "deploy/Containerfile"):
        shutil.copy(ROOT / name, context)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*wheel, f"--wheel-dir={context / 'dist'}", str(ROOT)], check=True)
    # The index of builds for CUDA is not asked.
    arguments = [f"--build-arg=BASE={BASE}", "--build-arg=TORCH_INDEX=file:///var/empty"]
    file = context / "Containerfile"
    builder.run(
        "build", *arguments, *_volumes(), "--network=host", f"--file={file}", f"--tag={IMAGE}",
        context,
    )  # fmt: skip
    return IMAGE


def test_an_extraction_in_the_image(builder: Builder, image: str, tiny_model: Path) -> None:
    data = builder.folder / "data"
    model = shutil.copytree(tiny_model, data / "model")
    records: list[dict[str, object]] = [{"text": text} for text in sentences(12, seed=5)]
    corpus = write_jsonl(data / "corpus.jsonl", records)
    # The image's user has a number of its own.
    subprocess.run(["chown", "-R", "1000", str(data)], check=True)
    builder.run("from", "--pull-never", "--name", "try", image)

    def inside(*words: str) -> str:
        # Stores keep the names of the corpus's files.
        return builder.run("run", f"--volume={data}:{data}", "try", "--", *words).stdout

    assert inside("id", "-u").strip() == "1000"
    assert "extract" in inside("depthscope", "--help")
    shape = ["--task-rows", "64", "--batch-tokens", "64", "--threads", "1"]
    store = data / "store"
    places = ["--model", str(model), "--data", str(corpus), "--out", str(store)]
    inside("depthscope", "extract", *places, *shape)
    options = {"task_rows": 64, "batch_tokens": 64, "threads": 1, "engine": "process"}
    alone = builder.folder / "alone"
    extract(ExtractSpec(model=str(model), data=(str(corpus),), out=alone, **options))
    ours, theirs = data_bytes(store), data_bytes(alone)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
