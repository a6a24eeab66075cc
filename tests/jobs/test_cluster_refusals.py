"""Clusters that cannot be joined: one line, exit code 2, no store, nothing left running."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from depthscope.jobs.cli import main

MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.2\n"
    "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(MISMATCH), "other versions (Version mismatch: The cluster was started with: "
         "Ray: 2.59.0"),
        (ConnectionError("Failed to connect to GCS.\nmore"), "answers there (Failed to connect"),
        (TimeoutError(), "no Ray cluster answers there (TimeoutError)"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined(
    error: Exception,
    said: str,
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(**options: object) -> None:
        raise error

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", refuse)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    out = tmp_path / "store"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "extract",
                "--model",
                str(tiny_model),
                "--data",
                str(corpus),
                "--out",
                str(out),
                "--address",
                "10.0.0.1:6379",
                "--quiet",
            ]
        )
    assert stop.value.code == 2
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("depthscope: ")]
    assert len(lines) == 1
    assert "--address 10.0.0.1:6379: " in lines[0]
    assert said in lines[0]
    assert not out.exists()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
