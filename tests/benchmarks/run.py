"""All benchmarks, or some: ``python tests/benchmarks/run.py [--quick] [--only a,c] [--out DIR]``.

Contestants of one number take turns in one run, every number is a median of at least five samples,
and what comes out goes to RESULTS.md and RESULTS.json beside this file, misses included. A quick
run checks in a few minutes that everything works; it writes only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Before anything that starts OpenMP's threads: threads that spin while they wait slow down others.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import findings
import surroundings
from depthscope.pipeline.model import resolve_folder
from scale import FULL, QUICK, Setting

HERE = Path(__file__).resolve().parent

#: Letter of a benchmark, and its module with a function ``run``.
BENCHMARKS = {
    "a": "extraction",
    "b": "contest",
    "c": "writing",
    "d": "reading",
    "e": "scaling",
    "f": "memory",
    "g": "staged",
    "h": "sweeping",
    "i": "large_layers",
    "j": "predictions",
    "k": "skips",
    "m": "maps",
    "n": "scans",
}


def main() -> int:
    """Run what is asked for; 0 when all of it ran, whether targets were met or missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="letters, such as a,c")
    parser.add_argument("--out", type=Path, help="folder of RESULTS.md and RESULTS.json")
    parser.add_argument("--model", default="demo", help="the model (SmolLM2 is what is asked for)")
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=Path(os.environ.get("DEPTHSCOPE_PEERS_PYTHON", sys.executable)),
        help="interpreter that has nnsight and transformer-lens (extra: benchmark)",
    )
    options = parser.parse_args()
    out = options.out or (None if options.quick else HERE)
    model = resolve_folder(options.model)
    failed = 0
    for letter in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="depthscope-bench-", dir=options.scratch) as folder:
            setting = Setting(
                scale=QUICK if options.quick else FULL,
                model=model,
                scratch=Path(folder),
                peers_python=options.peers_python,
            )
            try:
                _run(letter, setting, out, options.quick)
            except Exception:
                traceback.print_exc()
                failed += 1
    return int(failed > 0)


def _run(letter: str, setting: Setting, out: Path | None, quick: bool) -> None:
    """One benchmark; its section is saved at once, so that a later failure costs nothing."""
    around = surroundings.describe(HERE.parents[1], setting.scratch)
    start = time.perf_counter()
    section = importlib.import_module(BENCHMARKS[letter]).run(setting)
    around |= {"quick": quick, "seconds": time.perf_counter() - start}
    print(findings.render([(content := section.as_json(around))]).split("\n\n", 2)[2], flush=True)
    if out is not None:
        findings.save([content], out)


if __name__ == "__main__":
    sys.exit(main())
