"""A layer with a mixture of experts, in pieces: the layer without its experts, and some of those.

A checkpoint holds every expert in tensors of its own, which transformers stacks, or all of them in
one; of the first kind only the tensors of the wanted experts are read, of the second only their
rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from depthscope.storage.errors import RequestError
from torch import nn

from .conversion import ALL, Rows
from .layer_loader import LayerLoader, weight_bytes


class ExpertLoader:
    """One layer's experts.

    Parameters
    ----------
    loader
        Of the checkpoint.
    layer
        0-based.

    Attributes
    ----------
    count
        How many experts the layer has.
    expert_bytes
        Bytes of one expert's weights as they are loaded.
    rest_bytes
        Bytes of the layer's other weights.

    Raises
    ------
    RequestError
        The layer has no experts that can be loaded in groups.
    """

    def __init__(self, loader: LayerLoader, layer: int) -> None:
        self.layer = layer
        self._loader, self._block = loader, loader.skeleton.blocks[layer]
        self._path, self._experts = self._find()
        self.count = int(self._experts.num_experts)
        self._own = self._own_sources()
        self.expert_bytes = weight_bytes(self._experts) // self.count
        self.rest_bytes = loader.layer_bytes[layer] - weight_bytes(self._experts)
        self._check()

    def block(self, stand_in: nn.Module, device: torch.device) -> nn.Module:
        """The layer with its weights, and a stand-in for its experts; any thread.

        Raises
        ------
        WorkFailed, OSError
            The checkpoint can no longer be read.
        """
        block: nn.Module = self._loader.skeleton.copy(self._block)
        block.set_submodule(self._path, stand_in)
        own = {name for names in self._own for name in names}
        names = {name: ALL for name in self._loader.sources[self.layer] if name not in own}
        self._loader.fill(self._loader.skeleton.layer_path(self.layer), block, names, device)
        return block

    def experts(self, first: int, last: int, device: torch.device) -> Any:
        """The module of the experts with experts first..last-1 alone, with weights; any thread.

        Raises
        ------
        WorkFailed, OSError
            The checkpoint can no longer be read.
        """
        module = self._some(last - first)
        self._loader.fill(self._full_path, module, self._names(first, last), device)
        return module

    @property
    def skeleton(self) -> Any:
        """The module of all experts, on the meta device."""
        return self._experts

    @property
    def _full_path(self) -> str:
        return f"{self._loader.skeleton.layer_path(self.layer)}.{self._path}"

    def _find(self) -> tuple[str, Any]:
        for path, module in _experts_of(self._block):
            return path, module
        raise self._refusal("has no mixture of experts that can be loaded in groups")

    def _refusal(self, what: str) -> RequestError:
        return RequestError(
            f"model folder {self._loader.folder}: layer {self.layer} {what}, so it must fit the "
            "device as a whole; use a device with more memory"
        )

    def _own_sources(self) -> list[dict[str, Rows]]:
        """Per expert: the tensors, or rows of them, that it is made of."""
        found: defaultdict[tuple[str, str | None], list[str]] = defaultdict(list)
        start = f"{self._full_path}."
        for name in self._loader.sources[self.layer]:
            source = self._loader.conversion.sources[name]
            if source.target.startswith(start):
                found[source].append(name)
        own: list[dict[str, Rows]] = [{} for _ in range(self.count)]
        for (_, pattern), names in found.items():
            if pattern is None and len(names) == 1:
                for expert in range(self.count):
                    own[expert][names[0]] = slice(expert, expert + 1)
            elif len(names) == self.count:
                for expert, name in enumerate(names):
                    own[expert][name] = ALL
            else:
                raise self._refusal("does not store its experts one by one")
        return own

    def _names(self, first: int, last: int) -> dict[str, Rows]:
        names = {name: rows for own in self._own[first:last] for name, rows in own.items()}
        return {name: rows if rows == ALL else slice(first, last) for name, rows in names.items()}

    def _some(self, count: int) -> Any:
        """A copy of the module, without weights, that has this many experts."""
        module = self._loader.skeleton.copy(self._experts)
        module.num_experts = count
        for name, weight in self._experts.named_parameters(recurse=False):
            shape = (count, *weight.shape[1:])
            few = torch.empty(shape, dtype=weight.dtype, device="meta")
            setattr(module, name, nn.Parameter(few, requires_grad=False))
        return module

    def _check(self) -> None:
        weights = dict(self._experts.named_parameters())
        plain = all("." not in n and w.shape[0] == self.count for n, w in weights.items())
        shapes = self._loader.conversion.shape
        whole = (name for own in self._own for name, rows in own.items() if rows != ALL)
        if not plain or any(shapes(name)[0] != self.count for name in whole):
            raise self._refusal("does not store its experts one by one")
        lacking = self._loader.conversion.check(
            self._loader.skeleton.part(self._full_path, self._some(1)), self._names(0, 1)
        )
        if lacking:
            raise self._refusal("does not store its experts one by one")


def has_experts(loader: LayerLoader, layer: int) -> bool:
    """Whether a layer has a mixture of experts."""
    return any(True for _ in _experts_of(loader.skeleton.blocks[layer]))


def _experts_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in block.named_modules():
        # What transformers gives to every module of experts that its implementations can run.
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
            yield path, module
