"""A decoder's modules without its weights, and parts of it that can be filled alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import transformers
from accelerate import init_empty_weights
from depthscope.storage.errors import RequestError
from torch import nn

from . import families
from .description import DTYPES, ModelInfo, load_config, one_line, quiet


class Skeleton:
    """The base model: weights on the meta device, buffers that no checkpoint holds real.

    Parameters
    ----------
    folder
        The checkpoint's folder; only its config is read.
    info
        From `describe_model`; dtype, attention and experts are taken from it.
    trust_remote_code
        Run the checkpoint's own Python files.

    Attributes
    ----------
    model
        The base model.
    families
        Families that may describe it: one where it is known, else guesses.
    path
        Where its list of layers is.
    blocks
        Its layers.

    Raises
    ------
    RequestError
        The model cannot be built, or has no list of decoder layers.
    """

    def __init__(self, folder: Path, info: ModelInfo, trust_remote_code: bool = False) -> None:
        self.model = _build(folder, info, trust_remote_code)
        self._configs = {
            id(config): config
            for module in self.model.modules()
            if (config := getattr(module, "config", None)) is not None
        }
        text = self.model.config.get_text_config()
        parallel = bool(getattr(text, "use_parallel_residual", False))
        found = families.candidates(self.model, info.family, info.layers, parallel)
        self.path = found[0].layers
        self.families = [family for family in found if family.layers == self.path]
        self.blocks = self._layers(folder)

    def _layers(self, folder: Path) -> list[nn.Module]:
        try:
            return list(self.model.get_submodule(self.path).children())
        except AttributeError:
            raise RequestError(
                f"model folder {folder}: {type(self.model).__name__} has no list of "
                f"decoder layers at {self.path!r}; give the checkpoint of the language model alone"
            ) from None

    def copy(self, module: Any) -> Any:
        """A deep copy that keeps the configs themselves: all parts of a model share them."""
        return copy.deepcopy(module, dict(self._configs))

    def layer_path(self, layer: int) -> str:
        """Where a layer is in the model."""
        return f"{self.path}.{layer}"

    def part(self, path: str, module: nn.Module) -> Any:
        """The model with this module alone, in its place."""
        return _branch(self.model, path.split("."), module, keep=False)

    def rest(self) -> Any:
        """The model without its layers."""
        return _branch(self.model, self.path.split("."), nn.ModuleList(), keep=True)


def _branch(root: Any, path: list[str], leaf: nn.Module, *, keep: bool) -> Any:
    """A shallow copy of a module with another at ``path``; ``keep``: and all the rest."""
    clone: Any = copy.copy(root)
    for kind in ("_modules", "_parameters", "_buffers"):
        clone.__dict__[kind] = dict(clone.__dict__[kind]) if keep else {}
    first, *others = path
    child = _branch(root._modules[first], others, leaf, keep=keep) if others else leaf
    clone._modules[first] = child
    return clone


def _build(folder: Path, info: ModelInfo, remote: bool) -> Any:
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
