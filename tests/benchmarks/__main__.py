"""``python -m tests.benchmarks``: run.py, whose modules stand beside it as plain scripts."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE)
runpy.run_path(str(HERE / "run.py"), run_name="__main__")
