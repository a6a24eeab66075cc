"""Where the stream of a sweep's micro-batches lives between two layers.

On the device or in host memory as tensors; or in the store, from which every micro-batch is read
back when its turn comes: rows that the task stores come from the shards of the last committed
point, the others from what the sweep carries beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import torch
from depthscope.storage.layout import ACTIVATIONS
from depthscope.storage.shard_reader import ArrayReader

from .batches import Batch
from .carried import CarriedFiles
from .equipment import Equipment
from .frame import Frame
from .own_memory import OwnMemory
from .placement import StoredRange


class Residual(Protocol):
    """The stream of one task's micro-batches at one point."""

    def get(self, number: int) -> torch.Tensor:
        """The stream of a micro-batch, (lines, width, d), on the device that computes."""

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Replace it by what the layer made of it."""


class HeldResidual:
    """Held as tensors on ``place``, handed out on ``device``."""

    def __init__(self, batches: int, place: torch.device, device: torch.device) -> None:
        self._held: list[torch.Tensor | None] = [None] * batches
        self._place, self._device = place, device

    def get(self, number: int) -> torch.Tensor:
        """The stream of a micro-batch."""
        held = self._held[number]
        if held is None:
            raise RuntimeError(f"micro-batch {number} has not been put")
        return held.to(self._device, non_blocking=True)

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Keep it; in host memory it is copied into the memory of what it replaces."""
        if self._place.type != "cpu":
            self._held[number] = hidden
            return
        held = self._held[number]
        if held is None:
            held = self._held[number] = self._room(hidden)
        held.copy_(hidden, non_blocking=True)

    def _room(self, hidden: torch.Tensor) -> torch.Tensor:
        """Host memory of its own: among a layer's temporaries it would keep malloc's from going."""
        if hidden.is_cuda:
            return torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
        return OwnMemory().take(hidden.nbytes).view(hidden.dtype).view(hidden.shape)


class EmbeddedResidual:
    """Point 0, made from the tokens when its turn comes."""

    def __init__(self, frame: Frame, batches: Sequence[Batch]) -> None:
        self._frame, self._batches = frame, batches

    def get(self, number: int) -> torch.Tensor:
        """The embedding of a micro-batch."""
        return self._frame.embed(self._batches[number])

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Nothing: it has been written to the store."""


class StoredResidual:
    """Read back from the store and from what is carried, micro-batch by micro-batch."""

    def __init__(self, rows: StoredRows, point: int, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._carried = rows.carried_stream(point)
        self._point = point

    def get(self, number: int) -> torch.Tensor:
        """The stream of a micro-batch."""
        return self._rows.assemble(self._point, number, self._carried).to(self._device)

    def put(self, number: int, hidden: torch.Tensor) -> None:
        """Nothing: it has been written to the store."""


class StoredRows:
    """Which rows of a task's micro-batches the store holds at a point, and putting both together.

    Parameters
    ----------
    equipment, batches
        The store's plan, and all micro-batches of the task in order.
    rows
        The corpus rows that the task owns.
    stored
        The stored rows of its activations; None where none are stored.
    files
        What the task carries.
    """

    def __init__(
        self,
        equipment: Equipment,
        batches: Sequence[Batch],
        rows: tuple[int, int],
        stored: StoredRange | None,
        files: CarriedFiles,
    ) -> None:
        self._root: Path = equipment.settings.root
        self._batches, self._rows, self.files = batches, rows, files
        self._hidden = equipment.info.hidden
        plan = equipment.activations.get("residual")
        whole = plan is not None and stored is not None and stored.rows is None
        same = plan is not None and plan.dtype == equipment.info.dtype
        points = equipment.record.points if whole and same else ()
        self._planes: Mapping[int, int] = {point: plane for plane, point in enumerate(points)}
        self._starts = np.cumsum([0, *(batch.input_ids.numel() for batch in batches)])

    def held_by_store(self, point: int) -> bool:
        """Whether the store has every row that the task owns at the point, in the model's dtype."""
        return point in self._planes

    def lacking(self, point: int, number: int) -> torch.Tensor:
        """bool (lines × width): places of a micro-batch that the store does not hold."""
        batch = self._batches[number]
        if not self.held_by_store(point):
            return torch.ones(batch.input_ids.numel(), dtype=torch.bool)
        return ~batch.holds(*self._rows)

    def keep(self, point: int, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """The rows that must be carried, (n, d), in host memory."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        lacking = self.lacking(point, number)
        if bool(lacking.all()):
            return flat.cpu()
        return flat.index_select(0, torch.nonzero(lacking)[:, 0].to(flat.device)).cpu()

    def carried_stream(self, point: int) -> Sequence[torch.Tensor] | None:
        """The carried rows of every micro-batch; None where they are missing or unsound."""
        loaded = self.files.load("stream", point)
        if loaded is None or len(loaded) != len(self._batches):
            return None
        return [loaded[str(number)] for number in range(len(self._batches))]

    def assemble(
        self, point: int, number: int, carried: Sequence[torch.Tensor] | None
    ) -> torch.Tensor:
        """The stream of a micro-batch, (lines, width, d), from the store and what was carried."""
        if carried is None:
            raise RuntimeError(f"nothing was carried for point {point}")
        batch = self._batches[number]
        lacking = self.lacking(point, number)
        if bool(lacking.all()):
            return carried[number].reshape(*batch.input_ids.shape, self._hidden)
        flat = torch.empty((batch.input_ids.numel(), self._hidden), dtype=carried[number].dtype)
        flat[lacking] = carried[number]
        first, last = self._rows
        reader = ArrayReader(self._root, f"{ACTIVATIONS}/residual")
        for piece, offset in zip(batch.pieces, batch.offsets, strict=True):
            begin, end = max(first, piece.first_row), min(last, piece.first_row + piece.length)
            if begin < end:
                rows = reader.read(self._planes[point], slice(begin, end), slice(None))
                place = offset + begin - piece.first_row
                flat[place : place + end - begin] = as_tensor(rows)
        return flat.reshape(*batch.input_ids.shape, self._hidden)


def as_tensor(rows: np.ndarray) -> torch.Tensor:
    """Rows of the store as a tensor of the same bits."""
    if rows.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)
