"""What is put in place of what a part adds: means over the corpus, or another document's values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from depthscope.storage.layout import ACTIVATIONS
from depthscope.storage.shard_reader import ArrayReader
from depthscope.storage.token_table import TokenTable
from safetensors import safe_open
from torch import Tensor

from .interventions import Intervention
from .residual import as_tensor

_ARRAYS = {
    "attention": ("attention_output",),
    "mlp": ("mlp_output",),
    "layer": ("attention_output", "mlp_output"),
}


@dataclass(frozen=True)
class Replacements:
    """Where replacements come from.

    Attributes
    ----------
    means
        A safetensors file with ``attention`` and ``mlp`` (layers, d) and ``stream`` (points, d), as
        far as they are needed; None where none are.
    patch_root
        The store that patches are read from; None for none.
    patch_document
        The one document they are read from; None for the document of the same number.
    documents
        The task's documents, by their number in the store.
    """

    means: Path | None = None
    patch_root: Path | None = None
    patch_document: int | None = None
    documents: tuple[int, ...] = ()

    def of(self, change: Intervention, document: int, width: int) -> Tensor | None:
        """The replacement, (d,) or (width, d) with zeros beyond its end; None where none is."""
        if change.what == "mean":
            parts = ("attention", "mlp") if change.part == "layer" else (change.part,)
            return torch.stack([self._mean(part, change.at) for part in parts]).sum(0)
        if change.what == "patch":
            return self._patch(change, document, width)
        return None

    def stream(self, point: int) -> Tensor:
        """The mean of the stream at a point, (d,) float32."""
        return self._mean("stream", point)

    def reach(self, document: int, length: int) -> Tensor:
        """bool (length,): positions that the document patched from has."""
        _, _, tokens = self._span(document)
        return torch.arange(length) < tokens

    def _mean(self, name: str, place: int) -> Tensor:
        if self.means is None:
            raise RuntimeError("no means were prepared")
        with safe_open(self.means, framework="pt") as file:
            mean: Tensor = file.get_slice(name)[place]
        return mean

    def _span(self, document: int) -> tuple[int, int, int]:
        """Number, first row and tokens of the document that is patched from."""
        number = self.documents[document] if self.patch_document is None else self.patch_document
        _, starts, lengths = TokenTable(self._root).document_spans()
        return number, int(starts[number]), int(lengths[number])

    @property
    def _root(self) -> Path:
        if self.patch_root is None:
            raise RuntimeError("no store to patch from was given")
        return self.patch_root

    def _patch(self, change: Intervention, document: int, width: int) -> Tensor:
        _, first, tokens = self._span(document)
        count = min(width, tokens)
        total: Tensor | None = None
        for array in _ARRAYS[change.part]:
            reader = ArrayReader(self._root, f"{ACTIVATIONS}/{array}")
            rows = reader.read(change.at, slice(first, first + count), slice(None))
            values = as_tensor(rows).float()
            total = values if total is None else total + values
        if total is None:
            raise RuntimeError(f"part {change.part} has no array")
        return torch.nn.functional.pad(total, (0, 0, 0, width - count))
