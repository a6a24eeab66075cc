"""What one stage hands to the next for a micro-batch, and its form between processes.

Besides the stream only what the last stage needs of earlier layers travels: the statistics of the
batch's rows, and the rows chosen for the lens at earlier points. A stage makes the micro-batches
itself, so no token does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
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


class Packed(NamedTuple):
    """The same as plain NumPy arrays, which Ray shares between processes without a copy.

    bfloat16 travels as its bits; ``dtype`` is the name of what it was.
    """

    hidden: NDArray[np.generic]
    dtype: str
    statistics: Numbers | None
    lens: NDArray[np.generic] | None


def pack(carried: Carried) -> Packed:
    """Bring a micro-batch to host memory."""
    lens = None if carried.lens is None else _bits(carried.lens)
    dtype = str(carried.hidden.dtype).removeprefix("torch.")
    return Packed(_bits(carried.hidden), dtype, carried.statistics, lens)


def unpack(packed: Packed) -> Carried:
    """The micro-batch, in host memory of its own: what Ray shares must not be written to."""
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


def _bits(tensor: torch.Tensor) -> NDArray[np.generic]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


def _tensor(bits: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(bits.copy())
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
