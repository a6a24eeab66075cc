"""Matrix products for maps: float32 products, float64 sums, on numpy or on a torch device.

A backend keeps what it is given where it computes, so a GPU gets every block of rows once. Both
backends do the same operations in the same precision; TF32 is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .blas_threads import cores, one_blas_thread

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Columns, and rows, of what one thread works on: small enough for a core's cache.
COLUMNS, ROWS = 512, 1024

#: From this size on a factorisation is worth BLAS's own threads.
LARGE = 2048


class Products(Protocol):
    """What a map needs of a device; ``Any`` stands for an array that lives there."""

    name: str

    def each(self, work: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Call for every number, beside each other where that helps."""

    def put(self, values: NDArray[Any]) -> Any:
        """Bring float32 or float64 values to the device."""

    def zeros(self, *shape: int) -> Any:
        """A float64 total."""

    def get(self, values: Any) -> NDArray[Any]:
        """Bring an array back."""

    def add_product(self, total: Any, left: Any, right: Any) -> None:
        """``total += left.T @ right``: product in the precision of the blocks, float64 sum."""

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
    """On the CPU: threads of our own, each with products of its own (see ``blas_threads``)."""

    name = "numpy"

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(cores())

    def each(self, work: Callable[[int], None], numbers: Iterable[int]) -> None:
        """Call for every number, on all cores."""
        with one_blas_thread():
            list(self._threads.map(work, numbers))

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
        """``total += left.T @ right``, in columns whose product stays in a core's cache."""

        def add(first: int) -> None:
            part = slice(first, first + COLUMNS)
            total[:, part] += left.T @ right[:, part]

        self.each(add, range(0, right.shape[1], COLUMNS))

    def eigh(self, matrix: Float64) -> tuple[Float64, Float64]:
        """Eigenvalues and eigenvectors."""
        if len(matrix) > LARGE:
            values, vectors = np.linalg.eigh(matrix)
        else:
            with one_blas_thread():
                values, vectors = np.linalg.eigh(matrix)
        return values, vectors

    def rotate(self, rows: Float32, rotation: Float64) -> Float64:
        """``rows @ rotation`` in float64."""
        out = np.empty((len(rows), rotation.shape[1]))

        def multiply(first: int) -> None:
            part = slice(first, first + ROWS)
            np.matmul(rows[part].astype(np.float64), rotation, out=out[part])

        self.each(multiply, range(0, len(rows), ROWS))
        return out

    def single(self, values: Float64) -> Float32:
        """The values in float32."""
        return values.astype(np.float32)

    def agreement(self, rows: Float64, targets: Float32, maps: Float32, width: int) -> Float64:
        """Products of ``rows.T @ targets`` with maps, a target at a time."""
        found = np.empty((maps.shape[1] // width, rows.shape[1]))

        def add(number: int) -> None:
            part = slice(number * width, (number + 1) * width)
            cross = rows.T @ targets[:, part].astype(np.float64)
            np.einsum("dw,dw->d", cross, maps[:, part], out=found[number])

        self.each(add, range(len(found)))
        return found

    def spread(self, maps: Float32) -> Float64:
        """``maps @ maps.T`` in float64."""
        doubles = maps.astype(np.float64)
        return np.asarray(doubles @ doubles.T)

    def residuals(
        self, rows: Float32, maps: Float32, targets: Float32, width: int
    ) -> tuple[Float32, Float64]:
        """Sums of squares of what the maps miss, a target and some rows at a time."""
        by_row = np.empty((len(rows), maps.shape[1] // width), np.float32)
        by_dimension = np.zeros(maps.shape[1])

        def reduce(number: int) -> None:
            part = slice(number * width, (number + 1) * width)
            for first in range(0, len(rows), ROWS):
                some = slice(first, first + ROWS)
                error = rows[some] @ maps[:, part]
                np.subtract(targets[some, part], error, out=error)
                by_row[some, number] = np.vecdot(error, error)
                by_dimension[part] += np.einsum("nd,nd->d", error, error)

        self.each(reduce, range(by_row.shape[1]))
        return by_row, by_dimension


def products_on(device: str | None) -> Products:
    """numpy where no device is named.

    Raises
    ------
    RequestError
        torch cannot use that device.
    """
    if device in (None, "numpy"):
        return NumpyProducts()
    from .torch_products import TorchProducts

    return TorchProducts(str(device))
