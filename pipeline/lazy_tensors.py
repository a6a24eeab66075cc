"""What transformers' loader is given in place of tensors, so that each is read when it is due."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .weight_reader import WeightReader


class LazyTensor:
    """A tensor as transformers' loader takes it: read when its device and dtype are known.

    Parameters
    ----------
    reader, name, rows
        What to read.
    stream
        On a GPU: that of the thread that asked for the layer.
    later
        Do not read it then, but once it is known where it belongs in a larger tensor.
    """

    def __init__(
        self, reader: WeightReader, name: str, rows: slice, stream: Any, later: bool = False
    ) -> None:
        self._reader, self._name, self._rows = reader, name, rows
        self._stream, self._later = stream, later
        self._settings: tuple[torch.device, torch.dtype | None] = (torch.device("cpu"), None)

    def __getitem__(self, everything: Any) -> LazyTensor:
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, as it is stored."""
        return self._reader.tensors[self._name].shape

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor | LazyTensor:
        """Read it, or keep in mind where to."""
        self._settings = torch.device(device or "cpu"), dtype
        if self._later:
            return self
        with self._in_stream():
            return self._reader.read(self._name, *self._settings, self._rows)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for a larger tensor, of the dtype and on the device it shall have."""
        device, dtype = self._settings
        with self._in_stream():
            return self._reader.empty(shape, dtype or self._reader.dtype(self._name), device)

    def read_into(self, target: Tensor) -> None:
        """Read all of it into a contiguous part of a larger tensor."""
        with self._in_stream():
            self._reader.read_rows(self._name, target, 0)

    def _in_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class ShapeOnly:
    """Stands for a tensor where only names, shapes and dtypes are tried; reads nothing."""

    def __init__(self, reader: WeightReader, name: str, rows: slice) -> None:
        self._dtype, (first, *others) = reader.dtype(name), reader.tensors[name].shape or (1,)
        self._shape = (len(range(first)[rows]), *others) if reader.tensors[name].shape else ()

    def __getitem__(self, everything: Any) -> ShapeOnly:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """An empty tensor on the meta device."""
        return torch.empty(self._shape, dtype=dtype or self._dtype, device="meta")
