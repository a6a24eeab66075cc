"""Matrix products for maps on a torch device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .products import Float64
from .torch_device import open_device


class TorchProducts:
    """On a torch device: ``cpu``, ``cuda``, ``cuda:1`` …"""

    def __init__(self, device: str) -> None:
        self.name = device
        self._torch, self._device = open_device(device, "leave --device away to compute with numpy")

    def each(self, work: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Call for every number in order: the device is busy with each."""
        for number in numbers:
            work(number)

    def put(self, values: NDArray[Any]) -> Any:
        """A copy on the device."""
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def zeros(self, *shape: int) -> Any:
        """A float64 total on the device."""
        return self._torch.zeros(shape, dtype=self._torch.float64, device=self._device)

    def get(self, values: Any) -> NDArray[Any]:
        """A copy in the host's memory."""
        return np.asarray(values.cpu().numpy())

    def add_product(self, total: Any, left: Any, right: Any) -> None:
        """``total += left.T @ right`` in blocks whose product stays small."""
        step = max(1, (256 << 20) // (4 * left.shape[1]))
        for first in range(0, right.shape[1], step):
            total[:, first : first + step] += left.T @ right[:, first : first + step]

    def eigh(self, matrix: Float64) -> tuple[Float64, Float64]:
        """Eigenvalues and eigenvectors, found on the device."""
        values, vectors = self._torch.linalg.eigh(self.put(matrix))
        return self.get(values), self.get(vectors)

    def rotate(self, rows: Any, rotation: Any) -> Any:
        """``rows @ rotation`` in float64."""
        return rows.double() @ rotation

    def single(self, values: Any) -> Any:
        """The values in float32."""
        return values.float()

    def agreement(self, rows: Any, targets: Any, maps: Any, width: int) -> Any:
        """Products of ``rows.T @ targets`` with maps, a target at a time."""
        found = []
        for first in range(0, maps.shape[1], width):
            part = slice(first, first + width)
            found.append(((rows.T @ targets[:, part].double()) * maps[:, part]).sum(dim=1))
        return self._torch.stack(found)

    def spread(self, maps: Any) -> Any:
        """``maps @ maps.T`` in float64."""
        doubles = maps.double()
        return doubles @ doubles.T

    def residuals(self, rows: Any, maps: Any, targets: Any, width: int) -> tuple[Any, Any]:
        """Sums of squares of what the maps miss."""
        square = (targets - rows @ maps).square_()
        by_row = square.reshape(len(rows), -1, width).sum(dim=2)
        return by_row, square.sum(dim=0, dtype=self._torch.float64)
