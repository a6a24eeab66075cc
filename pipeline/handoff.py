"""What one stage hands to the next for a micro-batch, and its form between processes.

Of an extraction, besides the stream only what the last stage needs of earlier layers travels: the
statistics of the batch's rows, and the rows chosen for the lens at earlier points. Of an
intervention sweep, a unit's state does (see `EffectsUnit.take_state`). A stage makes micro-batches
and branches itself, so no token does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.effects_arrays import effects_plans
from depthscope.storage.run_record import RunRecord
from numpy.typing import NDArray

from .costs import item_size
from .recorders import Numbers
from .statistics import N_STATISTICS


@dataclass(frozen=True)
class Carried:
    """A micro-batch between two stages.

    Attributes
    ----------
    hidden
        The stream, (lines, width, hidden).
    statistics
        Those of the batch's rows in all layers so far, float32 (11, layers, n); None where the
        store has none.
    lens
        The rows chosen for the lens at all points so far, (points, n, hidden); None where the
        batch has none.
    """

    hidden: torch.Tensor
    statistics: Numbers | None
    lens: torch.Tensor | None


#: What travels: an extraction's micro-batch, or the state of an intervention sweep's unit by name.
Handed = Carried | Mapping[str, torch.Tensor]


class Packed(NamedTuple):
    """The same as plain NumPy arrays, which Ray shares between processes without a copy.

    bfloat16 travels as its bits; ``dtype`` is the name of what it was.
    """

    hidden: NDArray[np.generic]
    dtype: str
    statistics: Numbers | None
    lens: NDArray[np.generic] | None


#: As `Handed`, between processes: a state's arrays each have their dtype's name beside them.
PackedHanded = Packed | Mapping[str, tuple[NDArray[np.generic], str]]


def pack(carried: Handed) -> PackedHanded:
    """Bring what travels to host memory."""
    if not isinstance(carried, Carried):
        return {name: (_bits(tensor), _dtype_name(tensor)) for name, tensor in carried.items()}
    lens = None if carried.lens is None else _bits(carried.lens)
    return Packed(_bits(carried.hidden), _dtype_name(carried.hidden), carried.statistics, lens)


def unpack(packed: PackedHanded) -> Handed:
    """What travelled, in host memory of its own: what Ray shares must not be written to."""
    if not isinstance(packed, Packed):
        return {
            name: _tensor(bits, getattr(torch, dtype)) for name, (bits, dtype) in packed.items()
        }
    dtype: torch.dtype = getattr(torch, packed.dtype)
    lens = None if packed.lens is None else _tensor(packed.lens, dtype)
    return Carried(_tensor(packed.hidden, dtype), packed.statistics, lens)


def carried_bytes(record: RunRecord) -> int:
    """Bytes of the largest micro-batch of a run between its last two stages, at most."""
    model, identity = record.model, record.identity_fields
    layers, row = int(model["layers"]), int(model["hidden"]) * item_size(str(model["dtype"]))
    tokens = max(int(identity["batch_tokens"]), int(record.corpus["longest"]))
    size = tokens * row
    if "statistics" in record.groups:
        size += tokens * layers * N_STATISTICS * 4
    if "lens" in record.groups:
        size += min(tokens, record.groups["lens"].rows) * layers * row
    return size


def unit_bytes(root: Path, name: str) -> int:
    """Bytes of the largest unit of an intervention sweep between two stages, at most."""
    run, sweep = RunRecord.load(root), EffectsRecord.load(root, name)
    row = int(run.model["hidden"]) * item_size(str(run.model["dtype"]))
    longest = int(run.corpus["longest"])
    measured = max(1, sweep.splits, sweep.positions)
    cases = len(sweep.scopes) * max(1, len(sweep.parts)) * measured
    # Two lines besides for each document; documents that share a call have all of theirs in it.
    lines = longest * (cases * sweep.sources_per_task + 2)
    size = row * max(lines, int(sweep.identity_fields["batch_tokens"]))
    if "local" in sweep.kinds:
        size += 2 * row * longest * sweep.documents_per_task * sweep.layers
    return size + sum(4 * prod(plan.shard) for plan in effects_plans(sweep).values())


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bits(tensor: torch.Tensor) -> NDArray[np.generic]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


def _tensor(bits: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(bits.copy())
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
