"""Any layer of a decoder on its own, read from its checkpoint's tensors alone.

The model's modules are built once without weights; a layer is a copy of one of them, filled by
transformers' own conversions with just the tensors it is made of. Everything that can be wrong with
the checkpoint is found before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .conversion import ALL, Conversion, Rows, refuse_missing
from .description import DTYPES, ModelInfo
from .frame import Frame, place_buffers
from .frame_probe import find_needed
from .own_memory import OwnMemory
from .quantisation import RESIDENT_ONLY, refuse_quantised
from .skeleton import Skeleton
from .weight_reader import WeightReader


class LayerLoader:
    """The layers of a checkpoint, one by one, and the frame around them.

    Layers and frames of one loader share one config: use them, but for `load_layer`, on one thread.

    Parameters
    ----------
    folder
        The checkpoint's folder.
    info
        From `describe_model`; dtype, attention and experts are taken from it.
    trust_remote_code
        Run the checkpoint's own Python files.

    Attributes
    ----------
    layers
        L.
    families
        Families that may describe the model: one where it is known, else guesses, which
        `LayerStack.check_identity` narrows.
    layer_bytes
        Bytes of each layer's weights as they are loaded.
    frame_bytes
        Bytes of the weights before the layers (embeddings) as they are loaded.
    sources
        Names of the checkpoint's tensors that each layer is made of.
    skeleton, conversion
        The model without weights, and what fills parts of it.

    Raises
    ------
    RequestError
        Weights are quantised; files are missing or cut short; tensors are missing or of another
        shape than the config asks for; the architecture has no list of layers that can be called
        one by one.
    """

    def __init__(self, folder: Path, info: ModelInfo, trust_remote_code: bool = False) -> None:
        refuse_quantised(info.quantisation, folder, RESIDENT_ONLY)
        self.info, self.folder = info, folder
        self._reader = WeightReader(folder)
        self.skeleton = Skeleton(folder, info, trust_remote_code)
        self.families = self.skeleton.families
        self.layers = len(self.skeleton.blocks)
        self.conversion = Conversion(self.skeleton.model, self._reader, DTYPES[info.dtype])
        self._assign_sources()
        missing: set[str] = set()
        for layer, block in enumerate(self.skeleton.blocks):
            part = self.skeleton.part(self.skeleton.layer_path(layer), block)
            missing |= self.conversion.check(part, dict.fromkeys(self.sources[layer], ALL))
        rest = dict.fromkeys(self._rest, ALL)
        lacking = self.conversion.check(self.skeleton.rest(), rest)
        self._find_frame()
        refuse_missing(folder, missing | (lacking & self._needed))
        self.layer_bytes = [weight_bytes(block) for block in self.skeleton.blocks]
        weights = dict(self.skeleton.rest().named_parameters())
        self.frame_bytes = sum(weights[name].nbytes for name in self._needed)

    @property
    def memory(self) -> OwnMemory:
        """Where weights on the CPU live."""
        return self._reader.memory

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read so far, headers apart."""
        return self._reader.bytes_read

    def load_layer(self, layer: int, device: torch.device | str) -> nn.Module:
        """A layer with its weights, in evaluation mode and without gradients; any thread.

        Parameters
        ----------
        layer
            0-based.
        device
            Where it shall live; on a GPU the copy runs in the thread's current stream.

        Raises
        ------
        WorkFailed, OSError
            The checkpoint can no longer be read.
        """
        block: nn.Module = self.skeleton.copy(self.skeleton.blocks[layer])
        path = self.skeleton.layer_path(layer)
        self.fill(path, block, dict.fromkeys(self.sources[layer], ALL), torch.device(device))
        return block

    def fill(
        self, path: str, module: nn.Module, names: Mapping[str, Rows], device: torch.device
    ) -> None:
        """Give a copy of the module at ``path`` what is made of these tensors; as `load_layer`."""
        self.conversion.load(self.skeleton.part(path, module), names, device)
        place_buffers(module, device)
        module.eval().requires_grad_(False)
        if device.type == "cuda":
            _keep_for_compute(module, device)

    def frame(self, device: torch.device | str) -> Frame:
        """The decoder without its layers, its weights not yet loaded."""
        return self._frame(self._needed, torch.device(device))

    def _frame(self, needed: frozenset[str], device: torch.device) -> Frame:
        sources = self.conversion.sources
        names = {name: ALL for name in self._rest if sources[name].target in needed}

        def read(model: Any, device: torch.device) -> None:
            self.conversion.load(model, names, device)

        skeleton = self.skeleton
        model = skeleton.copy(skeleton.rest())
        frame = Frame(model, skeleton.path, skeleton.blocks, needed, read, device)
        frame.layers_return_tuples = self._tuples
        return frame

    def _assign_sources(self) -> None:
        self.sources: list[list[str]] = [[] for _ in self.skeleton.blocks]
        self._rest: list[str] = []
        start = f"{self.skeleton.path}."
        for name, source in self.conversion.sources.items():
            if source.target.startswith(start):
                self.sources[int(source.target[len(start) :].partition(".")[0])].append(name)
            else:
                self._rest.append(name)

    def _find_frame(self) -> None:
        self._tuples = False
        everything = frozenset(name for name, _ in self.skeleton.rest().named_parameters())
        cpu = torch.device("cpu")
        self._needed, self._tuples = find_needed(
            lambda needed: self._frame(needed, cpu), everything, self.info
        )


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights, on the meta device or not."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _keep_for_compute(module: nn.Module, device: torch.device) -> None:
    """Weights copied in another stream must not be reused while the default one computes."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.record_stream(torch.cuda.default_stream(device))
