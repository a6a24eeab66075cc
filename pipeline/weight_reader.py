"""Reading single tensors of a checkpoint into memory of their own: never a map of the file.

A tensor in the wanted dtype, on the CPU, is read straight into the memory it will live in. One that
must be cast, or go to a GPU, passes through a small staging buffer (pinned for a GPU) piece by
piece, so that no second copy of it ever exists. Cost: one read of its bytes.
"""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from depthscope.storage.errors import RequestError, WorkFailed
from torch import Tensor

from .checkpoint import StoredTensor, stored_tensors

_PIECE = {"cpu": 4 << 20, "cuda": 16 << 20}
_READ = 256 << 20
_ALIGNMENT = 64

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightReader:
    """The tensors of a checkpoint's folder, by name; any thread may read.

    Parameters
    ----------
    folder
        A checkpoint's folder; the headers of its files are read now.

    Attributes
    ----------
    tensors
        Where each tensor lies.

    Raises
    ------
    RequestError
        A file is missing, cut short or no safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = stored_tensors(folder)
        self._lock = threading.Lock()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read so far, headers apart."""
        return self._bytes_read

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is stored.

        Raises
        ------
        RequestError
            It is none that a model is run from.
        """
        stored = self.tensors[name]
        if stored.dtype not in _DTYPES:
            raise RequestError(
                f"{stored.file}: tensor {name} is stored as {stored.dtype}; give the checkpoint in "
                "bfloat16, float16 or float32"
            )
        dtype = _DTYPES[stored.dtype]
        numbers = 1
        for length in stored.shape:
            numbers *= length
        if numbers * dtype.itemsize != stored.bytes:
            raise RequestError(
                f"{stored.file}: tensor {name} has {stored.bytes} bytes where its shape says "
                f"{numbers * dtype.itemsize}; fetch the model again"
            )
        return dtype

    def read(self, name: str, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in a dtype (None: as it is stored), on a device.

        Raises
        ------
        WorkFailed
            The file can no longer be read to the end.
        """
        stored = self.tensors[name]
        dtype = dtype or self.dtype(name)
        if device.type == "cpu" and dtype == self.dtype(name):
            target = _aligned_as_stored(stored, dtype)
        else:
            target = torch.empty(stored.shape, dtype=dtype, device=device)
        self.read_rows(name, target, 0, stored.shape[0] if stored.shape else 1)
        return target

    def read_rows(self, name: str, target: Tensor, first: int, last: int) -> None:
        """Read [first, last) along the first axis into ``target``, cast to its dtype.

        Parameters
        ----------
        target
            Contiguous, with last - first rows (for a scalar: itself).

        Raises
        ------
        WorkFailed
            The file can no longer be read to the end.
        """
        stored, dtype = self.tensors[name], self.dtype(name)
        row = stored.bytes // (stored.shape[0] if stored.shape else 1) if stored.bytes else 0
        start, flat = stored.start + first * row, target.view(-1)
        if target.device.type == "cpu" and target.dtype == dtype:
            self._fill(stored.file, start, flat)
        else:
            self._stage(stored.file, start, flat, dtype)

    def _stage(self, file: Path, start: int, flat: Tensor, dtype: torch.dtype) -> None:
        """Read piece by piece through staging memory; two buffers where the copy is a GPU's."""
        cuda = flat.device.type == "cuda"
        numbers = max(1, min(_PIECE[flat.device.type] // dtype.itemsize, flat.numel()))
        buffers = [torch.empty(numbers, dtype=dtype, pin_memory=cuda) for _ in range(1 + cuda)]
        copied: list[Any] = [None] * len(buffers)
        for turn, offset in enumerate(range(0, flat.numel(), numbers)):
            slot = turn % len(buffers)
            if copied[slot] is not None:
                copied[slot].synchronize()
            target = flat[offset : offset + numbers]
            piece = buffers[slot][: target.numel()]
            self._fill(file, start + offset * dtype.itemsize, piece)
            if target.dtype != dtype:
                piece = piece.to(target.device, non_blocking=True)  # Cast where it will live.
            target.copy_(piece, non_blocking=True)
            if cuda:
                copied[slot] = torch.cuda.current_stream(flat.device).record_event()
        for event in copied:
            if event is not None:
                event.synchronize()

    def _fill(self, file: Path, start: int, flat: Tensor) -> None:
        """Fill the memory of a flat tensor of the CPU with a file's bytes."""
        memory = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        descriptor = os.open(file, os.O_RDONLY)
        try:
            while done < len(memory):
                part = memory[done : done + _READ]
                got = os.preadv(descriptor, [part], start + done)
                if got == 0:
                    raise WorkFailed(
                        f"{file} no longer reaches byte {start + len(memory)}, where a tensor "
                        "ended a moment ago; fetch the model again"
                    )
                done += got
        finally:
            os.close(descriptor)
        with self._lock:
            self._bytes_read += done


def _aligned_as_stored(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """Memory whose address and place in the file leave the same rest by `_ALIGNMENT`.

    Where the whole model is loaded, weights that need no cast are a map of the file, and matrix
    products on a CPU can round differently for another alignment.
    """
    memory = torch.empty(stored.bytes + _ALIGNMENT, dtype=torch.uint8)
    start = (stored.start - memory.data_ptr()) % _ALIGNMENT
    if start % dtype.itemsize:
        start = 0
    return memory[start : start + stored.bytes].view(dtype).view(stored.shape)


class LazyTensor:
    """A tensor as transformers' loader takes it: read when its device and dtype are known."""

    def __init__(self, reader: WeightReader, name: str, stream: Any = None) -> None:
        self._reader, self._name, self._stream = reader, name, stream

    def __getitem__(self, everything: Any) -> LazyTensor:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """Read it; on a GPU, in the stream of the thread that asked for the layer."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return self._reader.read(self._name, torch.device(device or "cpu"), dtype)


class ShapeOnly:
    """Stands for a tensor where only names, shapes and dtypes are tried; reads nothing."""

    def __init__(self, reader: WeightReader, name: str) -> None:
        self._shape, self._dtype = reader.tensors[name].shape, reader.dtype(name)

    def __getitem__(self, everything: Any) -> ShapeOnly:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """An empty tensor on the meta device."""
        return torch.empty(self._shape, dtype=dtype or self._dtype, device="meta")
