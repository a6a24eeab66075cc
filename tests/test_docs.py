"""Every command in docs/operations.md: run where a machine alone can, else checked as written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from depthscope.jobs.cli import cli, main

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
#: What the blocks that are not run may call beside our own commands.
ELSEWHERE = ("python -m venv", "python -m pip wheel", "lfs setstripe", "/shared/depthscope/bin/")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def run(line: str) -> None:
    """Our commands in this process, which spares each of them a start; others in a shell."""
    command = re.sub(r" > [\w.]+$", "", line)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(os.path.expandvars(command))[1:])
    assert stop.value.code == 0, line


def test_every_block_runs(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", str(tiny_model))
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(tmp_path / "jobs"))
    seen: list[str] = []
    for block in blocks("bash"):
        if "depthscope " not in block:
            subprocess.run(["bash", "-euc", block], check=True)
            continue
        for line in block.splitlines():
            if line.startswith("depthscope "):
                run(line)
                seen.append(line)
            else:
                subprocess.run(["bash", "-euc", line], check=True)
    assert len(seen) > 15
    assert "#SBATCH --nodes=2" in capsys.readouterr().out
    assert len(pq.read_table("stores/both/documents.parquet")) == 12
    assert pq.read_table("rows.parquet").column("position").to_numpy().min() == 1
    assert (tmp_path / "training" / "index.json").is_file()
    assert "text" not in pq.read_schema("stores/quiet/documents.parquet").names
    assert pq.read_table("stores/quiet/tokens.parquet").column("token").null_count > 0
    assert not (tmp_path / "stores" / "copy").exists()


def test_commands_that_are_not_run_exist() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            if not line.startswith("depthscope "):
                assert line.startswith(ELSEWHERE), line
                continue
            command: click.Command = cli
            words = shlex.split(line)[1:]
            while isinstance(command, click.Group):
                command = command.commands[words.pop(0)]
            command.make_context("depthscope", words)


def test_the_wheelhouse_installs_without_a_network(tmp_path: Path) -> None:
    """As the guide says, for our own wheel alone, since what it needs fills gigabytes."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools 77 or later is not installed: pip would have to fetch it")
    (make,) = (line for line in "\n".join(blocks("sh")).splitlines() if " pip wheel " in line)
    assert '".[slurm]"' in make
    pip = [sys.executable, "-m", "pip"]
    offline = ["--no-index", "--no-deps", "--quiet"]
    # Of a copy: building leaves folders behind.
    for name in ("storage", "pipeline", "analysis", "jobs", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    house = ["wheel", "--wheel-dir", "wheelhouse", "--no-build-isolation", "./checkout"]
    subprocess.run([*pip, *house, *offline], check=True, cwd=tmp_path)
    install = ["install", "--find-links", "wheelhouse", "--target", "here", "depthscope[slurm]"]
    subprocess.run([*pip, *install, *offline], check=True, cwd=tmp_path)
    installed = tmp_path / "here" / "depthscope"
    assert {path.name for path in installed.iterdir()} >= {"storage", "jobs", "deploy"}
    assert (installed / "deploy" / "slurm" / "lifetime.sh").is_file()


def test_links_exist() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
