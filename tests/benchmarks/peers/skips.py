"""What those share that skip layers one by one: their command line, their clock, what they answer.

A contestant is a process of its own. It loads the model in float32, warms up and answers
``{"ready": true}``; then, for every line ``{"documents": [0, 3], "out": FILE}`` on stdin, it
measures the matrices of those documents and answers with its seconds. The file holds effect_max
(documents, splits, source, target) and output_l2_max (documents, splits, source), so that the
harness sees that all contestants measured the same.

The peers import nothing of depthscope.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Model, token ids, splits: effect_max (splits, source, target), output_l2_max (splits, source).
Measure = Callable[[Any, list[int], list[int]], tuple[Any, Any]]


def reduce(
    base: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], split: int
) -> tuple[torch.Tensor, float]:
    """Largest relative change of what every layer adds, and of the probabilities, from split on.

    Parameters
    ----------
    base, other
        What the layers add, (layers, tokens, d), and probabilities at ``split`` and after it.
    """
    added, changed = base[0][:, split:], other[0][:, split:]
    ratio = (added - changed).norm(dim=-1) / added.norm(dim=-1).clamp_min(1e-6)
    return ratio.amax(1), float((base[1] - other[1]).norm(dim=-1).max())


def serve(load: Callable[[Path], Any], measure: Measure) -> None:
    """Run the protocol of the module's docstring until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    work = json.loads(options.work.read_text())
    with torch.no_grad():
        model = load(options.model)
        measure(model, work["documents"][0], [])
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            start = time.perf_counter()
            found = [
                measure(model, work["documents"][n], work["splits"][n]) for n in order["documents"]
            ]
            seconds = time.perf_counter() - start
            effects, outputs = (np.stack([one[k] for one in found]) for k in (0, 1))
            np.savez(order["out"], effect_max=effects, output_l2_max=outputs)
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)
