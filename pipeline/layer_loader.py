"""Any layer of a decoder on its own, read from its checkpoint's tensors alone.

The model's modules are built once without weights; a layer is a copy of one of them, filled by
transformers' own conversions with just the tensors it is made of. Everything that can be wrong with
the checkpoint is found before a weight is read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from depthscope.storage.errors import RequestError
from torch import nn

from . import families
from .conversion import Conversion, refuse_missing
from .description import DTYPES, ModelInfo, load_config, one_line, quiet
from .frame import Frame, place_buffers
from .frame_probe import find_needed
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

    Raises
    ------
    RequestError
        Files are missing or cut short; tensors are missing or of another shape than the config
        asks for; the architecture has no list of layers that can be called one by one.
    """

    def __init__(self, folder: Path, info: ModelInfo, trust_remote_code: bool = False) -> None:
        self.info = info
        self._folder = folder
        self._reader = WeightReader(folder)
        self._model = _build(folder, info, trust_remote_code)
        self._configs = {
            id(config): config
            for module in self._model.modules()
            if (config := getattr(module, "config", None)) is not None
        }
        self._conversion = Conversion(self._model, self._reader, DTYPES[info.dtype])
        text = self._model.config.get_text_config()
        parallel = bool(getattr(text, "use_parallel_residual", False))
        found = families.candidates(self._model, info.family, info.layers, parallel)
        self._path = found[0].layers
        self.families = [family for family in found if family.layers == self._path]
        self._blocks = self._layers_at(self._path)
        self.layers = len(self._blocks)
        self._check()
        self.layer_bytes = [_bytes(block) for block in self._blocks]

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
        device = torch.device(device)
        block: nn.Module = self._copy(self._blocks[layer])
        part = self._part({str(layer): block})
        self._conversion.load(part, self._sources[layer], device)
        place_buffers(block, device)
        block.eval().requires_grad_(False)
        if device.type == "cuda":
            _keep_for_compute(block, device)
        return block

    def frame(self, device: torch.device | str) -> Frame:
        """The decoder without its layers, its weights not yet loaded."""
        return self._frame(self._needed, torch.device(device))

    def _frame(self, needed: frozenset[str], device: torch.device) -> Frame:
        names = [name for name, target in self._rest.items() if target in needed]

        def read(model: Any, device: torch.device) -> None:
            self._conversion.load(model, names, device)

        model = self._copy(self._part({}, whole=True))
        frame = Frame(model, self._path, self._blocks, needed, read, device)
        frame.layers_return_tuples = self._tuples
        return frame

    def _check(self) -> None:
        """Give the meta weights their dtypes and find what is missing or does not fit."""
        self._sources: list[list[str]] = [[] for _ in self._blocks]
        self._rest: dict[str, str] = {}
        start = f"{self._path}."
        for name, target in self._conversion.sources.items():
            if target.startswith(start):
                self._sources[int(target[len(start) :].partition(".")[0])].append(name)
            else:
                self._rest[name] = target
        missing: set[str] = set()
        for layer, block in enumerate(self._blocks):
            part = self._part({str(layer): block})
            missing |= self._conversion.check(part, self._sources[layer])
        lacking = self._conversion.check(self._part({}, whole=True), self._rest)
        self._tuples = False
        everything = frozenset(name for name, _ in self._part({}, whole=True).named_parameters())
        cpu = torch.device("cpu")
        self._needed, self._tuples = find_needed(
            lambda needed: self._frame(needed, cpu), everything, self.info
        )
        refuse_missing(self._folder, missing | (lacking & self._needed))
        weights = dict(self._model.named_parameters())
        self.frame_bytes = sum(weights[name].nbytes for name in self._needed)

    def _layers_at(self, path: str) -> list[nn.Module]:
        try:
            layers = self._model.get_submodule(path)
        except AttributeError:
            raise RequestError(
                f"model folder {self._folder}: {type(self._model).__name__} has no list of "
                f"decoder layers at {path!r}; give the checkpoint of the language model alone"
            ) from None
        return list(layers.children())

    def _copy(self, module: Any) -> Any:
        """A deep copy that keeps the configs themselves."""
        return copy.deepcopy(module, dict(self._configs))

    def _part(self, layers: Mapping[str, nn.Module], *, whole: bool = False) -> Any:
        """The model with these layers alone under their names; ``whole``: and with all the rest."""
        part = _shallow(self._model)
        module = part
        for name in self._path.split("."):
            child = _shallow(module._modules[name])
            if not whole:
                module._modules.clear()
                module._parameters.clear()
                module._buffers.clear()
            module._modules[name] = child
            module = child
        module._modules = dict(layers)
        return part


def _shallow(module: nn.Module | None) -> Any:
    clone: Any = copy.copy(module)
    for kind in ("_modules", "_parameters", "_buffers"):
        clone.__dict__[kind] = dict(clone.__dict__[kind])
    return clone


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _build(folder: Path, info: ModelInfo, remote: bool) -> Any:
    """The base model: weights on the meta device, buffers that no checkpoint holds real."""
    config = load_config(folder, remote)
    experts = {} if info.experts is None else {"experts_implementation": info.experts}
    try:
        with quiet(), init_empty_weights(include_buffers=False):
            model = transformers.AutoModel.from_config(
                config,
                dtype=DTYPES[info.dtype],
                attn_implementation=info.attention,
                trust_remote_code=remote,
                **experts,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RequestError(f"the model in {folder} cannot be built: {one_line(error)}") from error
    _renew_buffers(model)
    model.eval()
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _renew_buffers(model: Any) -> None:
    """Compute buffers that no checkpoint holds as from_pretrained does: in float32, then cast."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            module._is_hf_initialized = False
    model.initialize_weights()


def _keep_for_compute(block: nn.Module, device: torch.device) -> None:
    """Weights copied in another stream must not be reused while the default one computes."""
    for tensor in (*block.parameters(), *block.buffers()):
        tensor.record_stream(torch.cuda.default_stream(device))
