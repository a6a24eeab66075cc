"""The whole trip on the built-in model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..conftest import Run, needs_demo_model


@pytest.mark.trained
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_demo(depthscope: Run, tmp_path: Path) -> None:
    needs_demo_model()
    out = tmp_path / "demo"
    result = depthscope("demo", "--out", out, timeout=1100)
    assert result.returncode == 0, result.stderr
    first, *sentences = result.stdout.strip().splitlines()
    assert first == f"Report: {(out / 'report.html').resolve().as_uri()}"
    assert len(sentences) == 3
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "SmolLM2" in page or "demo" in page
    assert list((out / "report_figures").glob("*.png"))
    status = json.loads(depthscope("status", out / "store", "--json").stdout)
    assert status["state"] == "complete"
    documents = json.loads((out / "store" / "run.json").read_text())["documents"]
    assert documents >= 200
