"""Matrix products for maps: float32 products, float64 sums, on numpy or on a torch device.

A backend keeps what it is given where it computes, so a GPU gets every block of rows once. Both
backends do the same operations in the same precision; TF32 is off.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Products(Protocol):
    """What a map needs of a device; ``Any`` stands for an array that lives there."""

    name: str

    def put(self, values: NDArray[Any]) -> Any:
        """Bring float32 or float64 values to the device."""

    def zeros(self, *shape: int) -> Any:
        """A float64 total."""

    def get(self, values: Any) -> NDArray[Any]:
        """Bring an array back."""

    def add_product(self, total: Any, left: Any, right: Any) -> None:
        """``total += left.T @ right``: float32 product of float32 blocks of rows, float64 sum."""

    def eigh(self, matrix: Float64) -> tuple[Float64, Float64]:
        """Eigenvalues, ascending, and eigenvectors of a symmetric float64 matrix of the host."""

    def rotate(self, rows: Any, rotation: Any) -> Any:
        """``rows @ rotation`` of a float32 block in float64."""

    def single(self, values: Any) -> Any:
        """The values in float32."""

    def agreement(self, rows: Any, targets: Any, maps: Any, width: int) -> Any:
        """Products of ``rows.T @ targets`` with maps, summed over the dimensions of a target.

        Parameters
        ----------
        rows, targets
            (n, d) float64 and (n, T·width) float32; multiplied in float64.
        maps
            (d, T·width) float32.
        width
            Dimensions of one target.

        Returns
        -------
        (T, d) float64.
        """

    def spread(self, maps: Any) -> Any:
        """``maps @ maps.T`` of float32 maps in float64."""

    def residuals(self, rows: Any, maps: Any, targets: Any, width: int) -> tuple[Any, Any]:
        """Squares of ``targets - rows @ maps``, summed.

        Parameters
        ----------
        rows, maps, targets
            (n, d), (d, T·width) and (n, T·width) float32.
        width
            Dimensions of one target.

        Returns
        -------
        (n, T) and (T·width,) arrays: sums over the dimensions of a target, and over rows.
        """


class NumpyProducts:
    """On the CPU, through BLAS, whose threads the products use."""

    name = "numpy"

    def __init__(self) -> None:
        self._scratch: dict[tuple[int, int], Float32] = {}

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def put(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values themselves."""
        return values

    def zeros(self, *shape: int) -> Float64:
        """A float64 total."""
        return np.zeros(shape)

    def get(self, values: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return values

    def add_product(self, total: Float64, left: Float32, right: Float32) -> None:
        """``total += left.T @ right`` in blocks whose product stays small."""
        step = max(1, (64 << 20) // (4 * left.shape[1]))
        for first in range(0, right.shape[1], step):
            part = right[:, first : first + step]
            product = self._product(left.T, part)
            self._by_rows(
                lambda a, b, first=first, product=product: np.add(  # type: ignore[misc]
                    total[a:b, first : first + product.shape[1]],
                    product[a:b],
                    out=total[a:b, first : first + product.shape[1]],
                ),
                len(product),
            )

    def eigh(self, matrix: Float64) -> tuple[Float64, Float64]:
        """Eigenvalues and eigenvectors."""
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors

    def rotate(self, rows: Float32, rotation: Float64) -> Float64:
        """``rows @ rotation`` in float64."""
        return np.asarray(rows.astype(np.float64) @ rotation)

    def single(self, values: Float64) -> Float32:
        """The values in float32."""
        return values.astype(np.float32)

    def agreement(self, rows: Float64, targets: Float32, maps: Float32, width: int) -> Float64:
        """Products of ``rows.T @ targets`` with maps, a target at a time."""
        found = np.empty((maps.shape[1] // width, rows.shape[1]))
        for number in range(len(found)):
            part = slice(number * width, (number + 1) * width)
            cross = rows.T @ targets[:, part].astype(np.float64)
            np.einsum("dw,dw->d", cross, maps[:, part], out=found[number])
        return found

    def spread(self, maps: Float32) -> Float64:
        """``maps @ maps.T`` in float64."""
        doubles = maps.astype(np.float64)
        return np.asarray(doubles @ doubles.T)

    def residuals(
        self, rows: Float32, maps: Float32, targets: Float32, width: int
    ) -> tuple[Float32, Float64]:
        """Sums of squares of what the maps miss."""
        error = self._product(rows, maps)
        blocks = error.reshape(len(rows), -1, width)
        by_row = np.empty(blocks.shape[:2], np.float32)
        parts: list[Float32] = []

        def reduce(first: int, last: int) -> None:
            part = np.subtract(targets[first:last], error[first:last], out=error[first:last])
            np.einsum("ntd,ntd->nt", blocks[first:last], blocks[first:last], out=by_row[first:last])
            parts.append(np.einsum("nd,nd->d", part, part))

        self._by_rows(reduce, len(rows))
        return by_row, np.sum(parts, axis=0, dtype=np.float64)

    def _product(self, left: Float32, right: Float32) -> Float32:
        shape = (left.shape[0], right.shape[1])
        out = self._scratch.get(shape)
        if out is None:
            self._scratch = {shape: np.empty(shape, np.float32)}
            out = self._scratch[shape]
        return np.matmul(left, right, out=out)

    def _by_rows(self, work: Callable[[int, int], object], rows: int) -> None:
        # BLAS has its own threads; the passes over memory around it would run on one core.
        pieces = len(os.sched_getaffinity(0)) * 4
        step = max(32, -(-rows // pieces))
        list(self._threads.map(lambda a: work(a, min(rows, a + step)), range(0, rows, step)))


class TorchProducts:
    """On a torch device: ``cpu``, ``cuda``, ``cuda:1`` …"""

    def __init__(self, device: str) -> None:
        # This package does without torch; only who names a device has to have it.
        self._torch = importlib.import_module("torch")
        self.name = device
        try:
            self._device = self._torch.device(device)
            self._torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise RequestError(
                f"device {device!r} cannot be used ({str(error).splitlines()[0]}); leave --device "
                "away to compute with numpy"
            ) from None
        self._torch.backends.cuda.matmul.allow_tf32 = False

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


def products_on(device: str | None) -> Products:
    """numpy where no device is named.

    Raises
    ------
    RequestError
        torch cannot use that device.
    """
    return NumpyProducts() if device in (None, "numpy") else TorchProducts(str(device))
