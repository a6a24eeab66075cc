"""Reading single tensors of a checkpoint into memory of their own: never a map of the file.

A tensor in the wanted dtype, on the CPU, is read straight into the memory it will live in. One that
must be cast, or go to a GPU, passes through a small staging buffer (pinned for a GPU) piece by
piece, so that no second copy of it ever exists. Cost: one read of its bytes.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import torch
from depthscope.storage.errors import RequestError, WorkFailed
from torch import Tensor

from .checkpoint import stored_tensors
from .own_memory import OwnMemory

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
    memory
        Where weights on the CPU live.

    Raises
    ------
    RequestError
        A file is missing, cut short or no safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = stored_tensors(folder)
        self.memory = OwnMemory()
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
        size = math.prod(stored.shape) * dtype.itemsize
        if size != stored.bytes:
            raise RequestError(
                f"{stored.file}: tensor {name} has {stored.bytes} bytes where its shape says "
                f"{size}; fetch the model again"
            )
        return dtype

    def read(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """A tensor (or some rows of it) in a dtype (None: as it is stored), on a device.

        Raises
        ------
        WorkFailed
            The file can no longer be read to the end.
        """
        stored, wanted = self.tensors[name], dtype or self.dtype(name)
        first, last, _ = rows.indices(stored.shape[0] if stored.shape else 1)
        shape = (last - first, *stored.shape[1:]) if stored.shape else ()
        place = self._start(name, first) if wanted == self.dtype(name) else 0
        target = self.empty(shape, wanted, device, place)
        self.read_rows(name, target, first)
        return target

    def _start(self, name: str, row: int) -> int:
        """Where a row of a tensor begins in its file."""
        stored = self.tensors[name]
        return stored.start + (row * (stored.bytes // stored.shape[0]) if row else 0)

    def empty(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, place: int = 0
    ) -> Tensor:
        """Memory for a weight; on a CPU, its address and ``place`` leave the same rest by 64.

        Where the whole model is loaded, weights that need no cast are a map of the file, and matrix
        products on a CPU can round differently for another alignment.
        """
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        memory = self.memory.take(size + _ALIGNMENT)
        start = (place - memory.data_ptr()) % _ALIGNMENT
        if start % dtype.itemsize:
            start = 0
        return memory[start : start + size].view(dtype).view(shape)

    def read_rows(self, name: str, target: Tensor, first: int) -> None:
        """Fill ``target`` with as many rows as it has, from row ``first``, cast to its dtype.

        Parameters
        ----------
        target
            Contiguous.

        Raises
        ------
        WorkFailed
            The file can no longer be read to the end.
        """
        file, dtype = self.tensors[name].file, self.dtype(name)
        start, flat = self._start(name, first), target.view(-1)
        if target.device.type == "cpu" and target.dtype == dtype:
            self._fill(file, start, flat)
        else:
            self._stage(file, start, flat, dtype)

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
